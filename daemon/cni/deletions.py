"""DELs that the shim wrote down while the daemon was away: directory, lock, and working them off.

The protocol is shim/README.md, "Tombstones". The daemon's part: hold the lock exclusively from before the
first drain until it serves, so that a DEL is either in the directory then or reaches the socket; and drain
while serving too, for shims that could not wait for the lock. A file whose name begins with a dot is being
written. Owns the files, not what a deletion does.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from weft_rpc.cni_pb2 import ExecuteRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

LIMIT = 4096
"""Tombstones that the shim leaves at most; one drain works off no more, so that ADDs get their turn."""
SIZE_LIMIT = 2 << 20
"""Bytes: the shim takes a configuration of 1 MiB and an environment."""
CORRUPT_LIMIT = 64
"""Unreadable files that are kept for the curious; more are removed."""
TICK_NANOSECONDS = 50_000_000
"""Two changes of a directory within a tick of the kernel's clock (10 ms at most) bear the same time."""
LOCK_POLL_SECONDS = 0.01
LOCK_PATIENCE_SECONDS = 12.0
"""Shims hold the shared lock for the rest of their 10 s at most."""


class CorruptTombstoneError(Exception):
    """A tombstone can't be read as a deletion."""


@dataclass(slots=True)
class Drained:
    """What became of the tombstones: how many were done, were no deletions, and in words why others stay."""

    done: int = 0
    corrupt: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Deletions:
    """The directory of tombstones; all calls but `hold` are synchronous and short.

    It stays open from the first `waiting` on, as a lookup by path costs more than a look at what is open.
    `waiting` and `close` are called one after the other.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._lock_path = f"{directory}.lock"
        self._corrupt = f"{directory}.corrupt"
        self._descriptor = -1
        self._empty_since = -1

    def prepare(self) -> None:
        """Make the directory, readable by root alone. Raises OSError."""
        os.makedirs(self.directory, mode=0o700, exist_ok=True)

    @asynccontextmanager
    async def hold(self, patience: float = LOCK_PATIENCE_SECONDS) -> AsyncIterator[bool]:
        """Keep shims from writing tombstones while the body runs; yields whether the lock was had in time."""
        self.prepare()
        descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            held = await _lock(descriptor, patience)
            if held:
                self._remove_unfinished()
            yield held
        finally:
            os.close(descriptor)

    def names(self) -> list[str]:
        """Return the waiting tombstones, oldest first; none when the directory is gone."""
        try:
            return sorted(name for name in os.listdir(self.directory) if not name.startswith("."))
        except FileNotFoundError:
            return []

    def waiting(self) -> bool:
        """Whether there are tombstones; costs one fstat while nothing is written there."""
        status = os.fstat(self._descriptor) if self._descriptor >= 0 else None
        if status is None or not status.st_nlink:
            status = self._look()
            if status is None:
                return False
        changed = status.st_mtime_ns
        if changed == self._empty_since:
            return False
        # Read before the listing: what is written after it shows as a later change, unless within one tick.
        settled = time.time_ns() - changed > TICK_NANOSECONDS
        found = bool(self.names())
        self._empty_since = changed if settled and not found else -1
        return found

    def close(self) -> None:
        """Close the directory; a later `waiting` opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _look(self) -> os.stat_result | None:
        """Open what is at the path now, if that can be, and return its status; None when nothing is."""
        self.close()
        try:
            self._descriptor = os.open(self.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError:
            with suppress(FileNotFoundError):
                return os.stat(self.directory)
            return None
        return os.fstat(self._descriptor)

    def drain(self, apply: Callable[[ExecuteRequest], None]) -> Drained:
        """Work off the waiting tombstones, oldest first.

        Args:
            apply: does one deletion, idempotently. It raises CorruptTombstoneError for a request that is
                none, which is set aside; with any other Exception the tombstone stays for the next time.
        """
        drained = Drained()
        for name in self.names()[:LIMIT]:
            path = f"{self.directory}/{name}"
            try:
                apply(_read(path))
            except FileNotFoundError:
                continue
            except CorruptTombstoneError as error:
                self._set_aside(name)
                drained.corrupt.append(f"{name}: {error}")
            except Exception as error:  # noqa: BLE001 - one that fails must not keep the others waiting
                drained.problems.append(f"{name}: {error}")
            else:
                os.unlink(path)
                drained.done += 1
        return drained

    def _set_aside(self, name: str) -> None:
        os.makedirs(self._corrupt, mode=0o700, exist_ok=True)
        if len(os.listdir(self._corrupt)) < CORRUPT_LIMIT:
            os.replace(f"{self.directory}/{name}", f"{self._corrupt}/{name}")
        else:
            os.unlink(f"{self.directory}/{name}")

    def _remove_unfinished(self) -> None:
        for name in os.listdir(self.directory):
            if name.startswith("."):
                with suppress(OSError):
                    os.unlink(f"{self.directory}/{name}")


async def _lock(descriptor: int, patience: float) -> bool:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if loop.time() >= deadline:
                return False
            await asyncio.sleep(LOCK_POLL_SECONDS)
        else:
            return True


def _read(path: str) -> ExecuteRequest:
    try:
        with open(path, "rb") as file:
            content = file.read(SIZE_LIMIT + 1)
    except IsADirectoryError as error:
        raise CorruptTombstoneError("it is a directory") from error
    if len(content) > SIZE_LIMIT:
        raise CorruptTombstoneError(f"it is larger than {SIZE_LIMIT} bytes")
    try:
        return ExecuteRequest.FromString(content)
    except DecodeError as error:
        raise CorruptTombstoneError(str(error)) from error
