"""Makes the images that the tests' pods run, out of single programs, in the form of `docker save`."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.cluster import build
from tests.e2e.cluster.build import BuildError, locked

if TYPE_CHECKING:
    from collections.abc import Mapping

IMAGE = "weft.invalid/busybox:1"
DNS_IMAGE = "weft.invalid/coredns:1"
BUSYBOX_DIRECTORIES = ("bin", "dev", "etc", "proc", "run", "sys", "tmp", "www/cgi-bin")

_SCRIPT = """#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\n%s' "{}"
"""
SCRIPTS = {"address": _SCRIPT.format("$REMOTE_ADDR"), "name": _SCRIPT.format("$(hostname)")}
"""What pods tell their clients: the client's address, and their own name."""


def _file(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def _busybox_layer() -> bytes:
    """A layer with busybox under all its names, and scripts that answer clients."""
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
        for name, script in SCRIPTS.items():
            _file(archive, f"www/cgi-bin/{name}", script.encode(), 0o755)
        _file(archive, "www/index.html", b"ready\n")
    return layer.getvalue()


def image() -> Path:
    """Makes the image that sandboxes and most pods run, and returns its archive.

    Raises:
        BuildError: busybox is missing.
    """
    how = {"Entrypoint": ["/bin/sleep", "2147483647"], "Env": ["PATH=/bin"], "WorkingDir": "/"}
    return _archive(IMAGE, _busybox_layer(), how)


def dns_image() -> Path:
    """Makes the image of CoreDNS, and returns its archive.

    Raises:
        BuildError: Go is missing, or the build fails.
    """
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        _file(archive, "coredns", build.coredns().read_bytes(), 0o755)
    return _archive(DNS_IMAGE, layer.getvalue(), {"Entrypoint": ["/coredns"], "WorkingDir": "/"})


def _archive(tag: str, layer: bytes, how: Mapping[str, object]) -> Path:
    """Writes an image of one layer, unless it was done before.

    Args:
        tag: its name.
        layer: the root file system, as a tar archive.
        how: it is run, the `config` of an OCI image configuration.
    """
    digest = hashlib.sha256(layer).hexdigest()
    config = json.dumps(
        {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
            "os": "linux",
            "config": how,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
    ).encode()
    name = hashlib.sha256(config).hexdigest()
    path = build.CACHE / f"image-{name[:12]}.tar"
    with locked(build.CACHE / "build.lock"):
        if not path.exists():
            with tarfile.open(path.with_suffix(".part"), "w") as archive:
                _file(archive, f"{digest}/layer.tar", layer)
                _file(archive, f"{name}.json", config)
                manifest = [{"Config": f"{name}.json", "RepoTags": [tag], "Layers": [f"{digest}/layer.tar"]}]
                _file(archive, "manifest.json", json.dumps(manifest).encode())
            path.with_suffix(".part").rename(path)
    return path
