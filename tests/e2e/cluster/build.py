"""Builds Kubernetes, containerd 2 and the pods' image, once, into a cache; owns nothing that runs."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weft-e2e"
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubelet")
IMAGE = "weft.invalid/busybox:1"
BUSYBOX_DIRECTORIES = ("bin", "dev", "etc", "proc", "run", "sys", "tmp", "www/cgi-bin")


class BuildError(Exception):
    """The cluster's programs cannot be built here; the text says what is missing."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lets one build run at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _go(sources: Path) -> str:
    """Finds a Go that can build the module in a directory."""
    found = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go-1.24/bin")
    needed = next(
        line.split()[1] for line in (sources / "go.mod").read_text().splitlines() if line.startswith("go ")
    )
    if not found:
        raise BuildError(
            f"the end-to-end tests build {sources.name} and need Go {needed} or newer: install it from "
            f"https://go.dev/dl to /usr/local/go, or put it in PATH"
        )
    version = subprocess.run([found, "env", "GOVERSION"], capture_output=True, text=True, check=True).stdout
    have = tuple(int(part) for part in version.strip().removeprefix("go").split(".")[:2])
    if have < tuple(int(part) for part in needed.split(".")[:2]):
        raise BuildError(f"{found} is {version.strip()}, but {sources.name} needs Go {needed} or newer")
    return found


def _build(name: str, packages: tuple[str, ...], names: tuple[str, ...] = ()) -> Path:
    """Builds the packages of the Go module in a directory of that name, unless it was done before.

    Args:
        name: of the directory beside this package.
        packages: what to build, as `go build` takes it.
        names: further names for the one program that is built.
    """
    sources = SOURCES / name
    identity = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources.glob("*.*")))).hexdigest()
    directory = CACHE / f"{name}-{identity[:12]}"
    with locked(CACHE / "build.lock"):
        if directory.exists():
            return directory
        building = CACHE / f"{name}.building"
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        done = subprocess.run(
            [_go(sources), "build", "-trimpath", "-ldflags", "-s -w", "-o", f"{building}/", *packages],
            cwd=sources,
            env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BuildError(f"building {name} failed; the end of its output:\n{done.stdout[-3000:]}")
        for program in names:
            (building / program).symlink_to(name)
        building.rename(directory)
    return directory


def kubernetes() -> Path:
    """Builds Kubernetes and returns the directory that holds its programs.

    Five to eight minutes on two cores from nothing; the result is kept, by the sources it was built from.

    Raises:
        BuildError: Go is missing, or the build fails.
    """
    return _build("kubernetes", (".",), PROGRAMS)


def containerd() -> Path:
    """Builds containerd 2 and returns the directory that holds its programs; two minutes from nothing.

    Raises:
        BuildError: Go is missing, or the build fails.
    """
    command = "github.com/containerd/containerd/v2/cmd"
    return _build(
        "containerd", tuple(f"{command}/{name}" for name in ("containerd", "containerd-shim-runc-v2", "ctr"))
    )


ADDRESS_SCRIPT = """#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\n%s' "$REMOTE_ADDR"
"""


def _file(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def _root_filesystem() -> bytes:
    """A layer with busybox under all its names, and a script that tells a client its address."""
    busybox = Path("/bin/busybox")
    if not busybox.exists():
        raise BuildError("the pods' image needs /bin/busybox: apt-get install busybox-static")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        for name in BUSYBOX_DIRECTORIES:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        _file(archive, "bin/busybox", busybox.read_bytes(), 0o755)
        links = {f"bin/{name}": "busybox" for name in applets if name != "busybox"}
        links["www/busybox"] = "/bin/busybox"  # something large to download
        for name, target in links.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
        _file(archive, "etc/passwd", b"root:x:0:0:root:/:/bin/sh\n")
        _file(archive, "www/cgi-bin/address", ADDRESS_SCRIPT.encode(), 0o755)
        _file(archive, "www/index.html", b"ready\n")
    return layer.getvalue()


def image() -> Path:
    """Makes the one image that sandboxes and pods run, in the form of `docker save`, and returns its archive.

    Raises:
        BuildError: busybox is missing.
    """
    layer = _root_filesystem()
    digest = hashlib.sha256(layer).hexdigest()
    config = json.dumps(
        {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
            "os": "linux",
            "config": {"Entrypoint": ["/bin/sleep", "2147483647"], "Env": ["PATH=/bin"], "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
    ).encode()
    name = hashlib.sha256(config).hexdigest()
    path = CACHE / f"image-{name[:12]}.tar"
    with locked(CACHE / "build.lock"):
        if not path.exists():
            with tarfile.open(path.with_suffix(".part"), "w") as archive:
                _file(archive, f"{digest}/layer.tar", layer)
                _file(archive, f"{name}.json", config)
                manifest = [
                    {"Config": f"{name}.json", "RepoTags": [IMAGE], "Layers": [f"{digest}/layer.tar"]}
                ]
                _file(archive, "manifest.json", json.dumps(manifest).encode())
            path.with_suffix(".part").rename(path)
    return path
