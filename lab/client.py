"""How the commands of `weft-lab` reach the lab's process: starting it, asking it, ending it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Self

import aiohttp

from lab.errors import LabError
from lab.state import start_time
from lab.supervisor import encode_options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from lab.options import Options
    from lab.state import State

_END_SECONDS = 20.0


class Launch:
    """The lab's process as its starter sees it; ends with it unless it was detached.

    Use as a context manager: leaving it, by whatever exception or signal, ends a lab that is not detached.
    """

    def __init__(self, options: Options) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lab.supervisor", encode_options(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        self.detached = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.stdout.close()
        if not self.detached:
            # An impatient second Ctrl-C ends this waiting, not the lab's tidy end.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)

    def wait_up(self, progress: Callable[[str], None]) -> None:
        """Return when the cluster stands; LabError says why it does not."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "progress" in message:
                progress(message["progress"])
            elif "error" in message:
                raise LabError(message["error"])
            elif message.get("up"):
                return
        raise LabError(f"the lab's process ended with status {self._process.wait()} before the lab was up")

    def detach(self) -> None:
        """Let the lab live on without us."""
        assert self._process.stdin is not None
        self._process.stdin.write("detach\n")
        self._process.stdin.flush()
        self.detached = True


class Client:
    """Requests to the running lab; raises LabError when there is none or it refuses."""

    def __init__(self, state: State) -> None:
        self.state = state

    @contextlib.asynccontextmanager
    async def _request(
        self, path: Path, method: str, url: str, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if not self.state.running():
            raise LabError("no lab is running: start one with `weft-lab up`")
        connector = aiohttp.UnixConnector(str(path))
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            try:
                async with session.request(method, f"http://lab{url}", **options) as response:
                    if response.status >= 400:
                        raise LabError(_refusal(await response.text()))
                    yield response
            except aiohttp.ClientError as error:
                raise LabError(
                    f"the lab does not answer ({error}): is it still starting, or ending?"
                ) from error

    def order(self, method: str, url: str) -> Any:
        """A request to the lab itself."""
        return asyncio.run(self._json(self.state.control_socket, method, url))

    def api(self, method: str, url: str, **options: Any) -> Any:
        """A request to the lab's Kubernetes API."""
        return asyncio.run(self._json(self.state.api_socket, method, url, **options))

    async def _json(self, path: Path, method: str, url: str, **options: Any) -> Any:
        async with self._request(path, method, url, **options) as response:
            return await response.json(content_type=None)

    def test(self, begin: Callable[[int], None], outcome: Callable[[dict[str, Any]], None]) -> None:
        """Run the matrix; `begin` gets the number of probes, `outcome` each result as it comes."""

        async def follow() -> None:
            async with self._request(self.state.control_socket, "POST", "/test") as response:
                async for line in response.content:
                    row = json.loads(line)
                    if "probes" in row:
                        begin(row["probes"])
                    else:
                        outcome(row)

        asyncio.run(follow())

    def down(self) -> str:
        """End the lab, by force if need be, and remove what a killed one left; says what was done."""
        record = self.state.read()
        pid = int(record.get("pid", 0))
        if not self.state.running():
            if not self.state.directory.exists():
                return "no lab is running"
            self.state.acquire()
            self.state.release()
            return "no lab is running; removed what a killed one had left"
        started = start_time(pid) if pid else ""
        with contextlib.suppress(LabError):
            self.order("POST", "/down")
        if not _gone(self.state, _END_SECONDS):
            if not pid or start_time(pid) != started:
                where = self.state.directory
                raise LabError(f"{where} is in use, but not by a lab on record: look for lab.supervisor")
            os.kill(pid, 9)
            if not _gone(self.state, _END_SECONDS):
                raise LabError(f"the lab's process {pid} does not even end by SIGKILL")
            self.state.acquire()
            self.state.release()
            return "the lab did not end by itself and was killed"
        return "the lab is down"


def _gone(state: State, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while state.running():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _refusal(text: str) -> str:
    """The words of an answer that is an error: a Status object or plain text."""
    with contextlib.suppress(ValueError):
        answer = json.loads(text)
        if isinstance(answer, dict):
            return str(answer.get("message", text))
    return text
