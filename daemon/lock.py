"""The lock that makes this daemon the only one of its node: a second one would steal its sockets."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class LockedError(Exception):
    """Another daemon holds the lock; the message names it."""


@contextlib.contextmanager
def only_daemon(path: str) -> Iterator[None]:
    """Hold the lock; the kernel releases it when the process ends, however it ends.

    The file keeps the holder's process id, which is for people only: it means nothing once the lock is free.

    Raises:
        LockedError: another process holds it.
        OSError: the file can't be made.
    """
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise LockedError(
                f"another weftd (process {holder}) serves this node: it holds {path}. Stop it first; two "
                "daemons would undo each other's work"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
