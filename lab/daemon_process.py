"""The real weftd of one node as a child process: start, stop, kill, start again when it dies by itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lab.errors import NodeError

if TYPE_CHECKING:
    from lab.namespaces import Namespaces

log = logging.getLogger(__name__)

_RESTART_SECONDS = 1.0
_STOP_SECONDS = 20.0
_SOON_SECONDS = 15.0


def default_command() -> list[str]:
    """The weftd that is installed beside the running Python."""
    script = Path(sys.executable).with_name("weftd")
    return [str(script)] if script.exists() else [sys.executable, "-m", "daemon"]


class DaemonProcess:
    """weftd inside a node's namespaces, its output appended to a log file.

    It is killed by the kernel when the lab's process dies (PR_SET_PDEATHSIG), so a lab never leaves a
    daemon behind.
    """

    def __init__(self, command: list[str], log_file: Path) -> None:
        self.command = command
        self.log_file = log_file
        self.starts = 0
        self.failures = 0
        """How often it ended by itself, each time soon after its start."""
        self._since = 0.0
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Process id; 0 when it does not run."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else 0

    @property
    def kept(self) -> bool:
        """Whether it is started again when it ends."""
        return self._keeper is not None

    async def start(self, namespaces: Namespaces, *, keep: bool = True) -> None:
        """Start it; with `keep` it is started again when it ends by itself, as a DaemonSet's pod is."""
        if self.pid:
            raise NodeError("the daemon runs already")
        await self._unkeep()
        self.failures = 0
        await self._spawn(namespaces)
        if keep:
            self._keeper = asyncio.create_task(self._keep(namespaces))

    async def _spawn(self, namespaces: Namespaces) -> None:
        command = namespaces.command("setpriv", "--pdeathsig", "KILL", "--", *self.command)
        environment = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        with open(self.log_file, "ab") as output:  # noqa: ASYNC230 - only opened here, never written
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, env=environment
            )
        self.starts += 1
        self._since = time.monotonic()

    async def _keep(self, namespaces: Namespaces) -> None:
        while True:
            process = self._process
            assert process is not None
            code = await process.wait()
            lived = time.monotonic() - self._since
            self.failures = self.failures + 1 if lived < _SOON_SECONDS else 1
            log.warning("weftd (pid %d) ended with status %d: starting it again", process.pid, code)
            await asyncio.sleep(_RESTART_SECONDS)
            await self._spawn(namespaces)

    async def _unkeep(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None

    async def stop(self) -> int:
        """SIGTERM and wait; returns its exit status. Killed when it does not end in time."""
        await self._unkeep()
        process = self._process
        if process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                return await process.wait()
        except TimeoutError:
            log.warning("weftd (pid %d) did not end within %.0f s", process.pid, _STOP_SECONDS)
            return await self.kill()

    async def kill(self) -> int:
        """SIGKILL; it stays dead until it is started."""
        await self._unkeep()
        process = self._process
        if process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        return await process.wait()

    async def ended(self) -> int:
        """Wait until it ends by itself; only without `keep`."""
        assert self._process is not None
        return await self._process.wait()
