"""Another build of Weft than this tree's, for roll-outs between two: an earlier commit, with its manifest."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.e2e.cluster import manifests
from tests.e2e.cluster.agent_image import CONTAINERFILE, INPUTS, ROOT, agent_image
from tests.e2e.cluster.build import CACHE, BuildError
from tests.e2e.cluster.deployment import image_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.cluster.api import Object

COMMIT = "265fdf91b78533b432b923fa9ebf66d70c5160e9"
"""Its shim, state and ConfigMap are what users may come from; a release will take its place."""
MANIFEST = "deploy/weft.yaml"
NAME = "localhost/weft:previous"
OTHERS = (MANIFEST, CONTAINERFILE, ".containerignore")


@dataclass(frozen=True, slots=True)
class Release:
    """What its users apply, and the archive of the image in it."""

    objects: list[Object]
    archive: Path


def previous_release() -> Release:
    """Builds it, unless that was done before.

    Raises:
        BuildError: see agent_image; or its shim can't be told from ours.
    """
    source = CACHE / "previous"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    if not _check_out(source):
        _copy(source)
    # Other bytes, the same words: a test can tell the shims apart even where nothing in them changed.
    _replace(source / "shim" / "Makefile", " -Os ", " -O2 ")
    objects = manifests.load(source / MANIFEST)
    (daemonset,) = (each for each in objects if each["kind"] == "DaemonSet")
    spec = daemonset["spec"]["template"]["spec"]
    # It may be older than the label by which tests take an agent off its node.
    (ours,) = (each for each in manifests.load(ROOT / MANIFEST) if each["kind"] == "DaemonSet")
    spec.setdefault("affinity", ours["spec"]["template"]["spec"]["affinity"])
    for container in (*spec["initContainers"], *spec["containers"]):
        container["image"] = NAME
    assert image_of(objects) == NAME
    return Release(objects, agent_image(NAME, source))


def _check_out(source: Path) -> bool:
    """Puts the commit's files there; false where the history is not that deep."""
    git = ("git", "-c", "safe.directory=*", "-C", str(ROOT))
    done = subprocess.run(
        [*git, "archive", COMMIT, *INPUTS, *OTHERS],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        return False
    subprocess.run(["tar", "-x", "-C", str(source)], input=done.stdout, check=True)
    return True


def _copy(source: Path) -> None:
    """Copies this tree under another version: the second best."""
    for name in (*INPUTS, *OTHERS):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target)
        else:
            shutil.copy(ROOT / name, target)
    _replace(source / "pyproject.toml", 'version = "', 'version = "0.0.')


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    if old not in text:
        raise BuildError(f"{path} has no {old!r} by which another build could be made")
    path.write_text(text.replace(old, new, 1))
