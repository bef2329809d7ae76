"""Builds Kubernetes, containerd 2 and CoreDNS, once, into a cache; owns nothing that runs."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weft-e2e"
_OUTSIDE = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
"""The network in which this was imported: tests are in that of the cluster, where nothing can be had from."""
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubelet")


class BuildError(Exception):
    """The cluster's programs cannot be built here; the text says what is missing."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lets one build run at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def outside(*command: str) -> list[str]:
    """Returns a command that may download something."""
    return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{_OUTSIDE}", "--", *command]


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
            outside(_go(sources), "build", "-trimpath", "-ldflags", "-s -w", "-o", f"{building}/", *packages),
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


def coredns() -> Path:
    """Builds CoreDNS and returns the program; a minute on two cores from nothing.

    Raises:
        BuildError: Go is missing, or the build fails.
    """
    return _build("coredns", (".",)) / "coredns"
