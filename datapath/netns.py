"""Opens and enters network namespaces. Owns descriptors and setns(2), never a process: nothing forks."""

from __future__ import annotations

import ctypes
import fcntl
import os
from typing import TYPE_CHECKING

from datapath.errors import NamespaceError, NamespaceGoneError, NotANamespaceError

if TYPE_CHECKING:
    from types import TracebackType

THREAD_NAMESPACE = "/proc/thread-self/ns/net"

_CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703

# Keeps the interpreter's lock, which is worth more than the microsecond that setns takes.
_libc = ctypes.PyDLL(None, use_errno=True)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)


def open_namespace(path: str) -> int:
    """Return a descriptor of the network namespace at `path`; the caller closes it.

    Raises:
        NamespaceGoneError: nothing is there: the sandbox was removed.
        NotANamespaceError: something else is there. A plain file under /run/netns is what a removed namespace
            leaves, or what a container sees that the host's mounts do not reach.
        NamespaceError: it could not be opened for another reason.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NamespaceGoneError(
            f"there is no network namespace at {path}: its sandbox was removed"
        ) from error
    except OSError as error:
        raise NamespaceError(f"network namespace {path} can't be opened: {error.strerror}") from error
    try:
        _require_network_namespace(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def identity(descriptor: int) -> tuple[int, int]:
    """Return device and inode of an open namespace: equal for two descriptors of one namespace."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def current_namespace() -> int:
    """Return a descriptor of the calling thread's network namespace; the caller closes it."""
    return os.open(THREAD_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)


class entered:  # noqa: N801 - it reads as a verb, as those of contextlib do
    """Run the body with the calling thread in another network namespace, then return to where it was.

    Sockets and files of /proc/sys/net opened inside belong to that namespace; the other threads don't move.
    Nothing in the body may await or yield.

    Args:
        descriptor: of the namespace to enter.
        home: of the one that the thread is in, for callers that keep it open.
    """

    __slots__ = ("_descriptor", "_home", "_opened")

    def __init__(self, descriptor: int, home: int | None = None) -> None:
        self._descriptor = descriptor
        self._home = home
        self._opened: int | None = None

    def __enter__(self) -> None:
        if self._home is None:
            self._opened = current_namespace()
        if _libc.setns(self._descriptor, _CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            self._close()
            raise NamespaceError(
                f"a network namespace can't be entered: {os.strerror(code)} (CAP_SYS_ADMIN is needed)"
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        home = self._home if self._opened is None else self._opened
        if _libc.setns(home, _CLONE_NEWNET) != 0:
            # This thread would go on to write the node's routes into a pod. No handler can repair that.
            os.abort()
        if self._opened is not None:
            self._close()

    def _close(self) -> None:
        if self._opened is not None:
            os.close(self._opened)
            self._opened = None


def _require_network_namespace(descriptor: int, path: str) -> None:
    try:
        # The number is the kernel's for namespaces alone: all else refuses it, and is not touched by it.
        kind = fcntl.ioctl(descriptor, _NS_GET_NSTYPE)
    except OSError as error:
        raise NotANamespaceError(
            f"{path} is no namespace: it was removed, or the mounts below {os.path.dirname(path)} don't "
            "reach this process (in a container they need mountPropagation: HostToContainer)"
        ) from error
    if kind != _CLONE_NEWNET:
        raise NotANamespaceError(f"{path} is a namespace of another kind (clone flag {kind:#x})")
