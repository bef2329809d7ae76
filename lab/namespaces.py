"""Network, mount and UTS namespaces by system call: making, entering, mounting. Knows no nodes and no pods.

Nothing here has a name in the file system: namespaces live as long as the descriptors to them, so a lab
whose process is killed leaves none behind. A thread that changes its namespaces is never used for anything
else (see `apart`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# include/uapi/linux/sched.h and mount.h
CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, action: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{action}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    """Give the calling thread namespaces of its own."""
    _checked(_libc.unshare(ctypes.c_int(flags)), f"unshare({flags:#x})")


def setns(descriptor: int, kind: int) -> None:
    """Move the calling thread into a namespace."""
    _checked(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(kind)), f"setns({kind:#x})")


def set_host_name(name: str) -> None:
    """Set the host name of the calling thread's UTS namespace."""
    encoded = name.encode()
    _checked(_libc.sethostname(encoded, len(encoded)), f"sethostname({name})")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Mount in the calling thread's mount namespace."""
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None
    )
    _checked(result, f"mount {source} on {target}")


def unmount(target: str) -> None:
    """Detach what is mounted at `target`; see umount2(2)."""
    _checked(_libc.umount2(target.encode(), MNT_DETACH), f"umount {target}")


def apart(job: Callable[[], T]) -> T:
    """Run `job` in a thread made for it, which may change its namespaces because it ends with the job."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(job())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, name="lab-apart", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _own(kind: str) -> int:
    return os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)


def new_network() -> int:
    """A new network namespace; the descriptor keeps it alive."""

    def make() -> int:
        unshare(CLONE_NEWNET)
        return _own("net")

    return apart(make)


@dataclass(slots=True)
class Namespaces:
    """The namespaces of one machine of the lab, as open descriptors."""

    net: int
    mnt: int
    uts: int

    def enter(self) -> None:
        """Move the calling thread into them; only for threads made by `apart`."""
        unshare(CLONE_FS)
        setns(self.net, CLONE_NEWNET)
        setns(self.uts, CLONE_NEWUTS)
        setns(self.mnt, CLONE_NEWNS)

    def run(self, job: Callable[[], T]) -> T:
        """Run `job` inside them, in a thread of its own."""

        def inside() -> T:
            self.enter()
            return job()

        return apart(inside)

    def command(self, *arguments: str, net: str = "") -> list[str]:
        """The command line that runs `arguments` inside; `net` is the path of another network namespace."""
        return enter_command(self.paths(), *arguments, net=net)

    def paths(self) -> dict[str, str]:
        """Where other processes find them while this process lives."""
        return {
            "net": descriptor_path(self.net),
            "mount": descriptor_path(self.mnt),
            "uts": descriptor_path(self.uts),
        }

    def close(self) -> None:
        """Let go of them; they end with the last process inside."""
        for descriptor in (self.net, self.mnt, self.uts):
            with contextlib.suppress(OSError):
                os.close(descriptor)


def enter_command(paths: dict[str, str], *arguments: str, net: str = "") -> list[str]:
    """The command line that runs `arguments` in the namespaces at `paths` (kind → path)."""
    paths = {**paths, "net": net} if net else paths
    return ["nsenter", *(f"--{kind}={path}" for kind, path in paths.items()), "--", *arguments]


def descriptor_path(descriptor: int) -> str:
    """The path by which any process of the machine can open this process's descriptor."""
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def new_machine(host_name: str, prepare: Callable[[], None]) -> Namespaces:
    """New network, mount and UTS namespaces; `prepare` mounts what the machine is to see, inside them."""

    def make() -> Namespaces:
        unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWUTS)
        set_host_name(host_name)
        mount("none", "/", flags=MS_REC | MS_PRIVATE)
        prepare()
        return Namespaces(_own("net"), _own("mnt"), _own("uts"))

    try:
        return apart(make)
    except OSError as error:
        raise LabError(f"cannot make the namespaces of {host_name}: {error}; the lab needs root") from error
