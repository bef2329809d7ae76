"""Starts the cluster's programs so that none outlives the tests, and waits for what they bring about.

The kernel is told to end every program with the process that started it: a killed run leaves none behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Value = TypeVar("Value")
DIES_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")


class ClusterError(Exception):
    """Something of the cluster did not come about; the text tells what is known about why."""


@dataclass(slots=True)
class Program:
    """One program, started and stopped any number of times, with one log file.

    `nested`: the arguments begin with a command that forks to enter a PID namespace; signals go to its child.
    """

    name: str
    arguments: Sequence[str | Path]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    nested: bool = False
    _process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the program itself, as the tests see it.

        Raises:
            ClusterError: it does not run.
        """
        if self._process is None or self._process.poll() is not None:
            raise ClusterError(f"{self.name} is not running; the end of its log:\n{self.tail()}")
        return only_child(self._process.pid) if self.nested else self._process.pid

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*DIES_WITH_PARENT, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
            )

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 20) -> None:
        """Sends a signal and waits for the end; kills what ignores it."""
        process = self._process
        if process is None:
            return
        try:
            if self.running:
                os.kill(self.pid, number)
                process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.kill(self.pid, signal.SIGKILL)
            process.wait(10)
        except (ClusterError, ProcessLookupError):  # it ended by itself
            process.kill()
            process.wait(10)
        self._process = None

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def tail(self, lines: int = 30) -> str:
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def says(self, text: str) -> bool:
        """Whether it has printed this of late."""
        return text in self.tail()


def only_child(pid: int) -> int:
    """The process that the given one forked; waits for the fork.

    Raises:
        ClusterError: there is none within five seconds.
    """

    def children() -> list[str]:
        with open(f"/proc/{pid}/task/{pid}/children") as listing:
            return listing.read().split()

    return int(wait_for(f"a child of process {pid}", children, timeout=5, pause=0.01)[0])


def remove_empty_cgroups() -> None:
    """Removes what containers of killed nodes leave: a kubelet that starts spends seconds on each."""
    for pattern in ("k8s.io/*", "*/k8s.io/*"):  # version 1 has one per controller
        for path in Path("/sys/fs/cgroup").glob(pattern):
            with contextlib.suppress(OSError):
                path.rmdir()


def run(*arguments: str | Path, check: bool = True, timeout: float = 60) -> str:
    """Runs a command to its end and returns its standard output.

    Raises:
        ClusterError: it failed; with what it printed.
    """
    done = subprocess.run(
        arguments, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
    )
    output = done.stdout.decode(errors="replace")
    if check and done.returncode:
        command = " ".join(str(argument) for argument in arguments)
        raise ClusterError(
            f"`{command}` ended with {done.returncode}:\n{output}{done.stderr.decode(errors='replace')}"
        )
    return output


def wait_for(
    what: str,
    condition: Callable[[], Value],
    *,
    timeout: float = 60,
    pause: float = 0.2,
    state: Callable[[], object] | None = None,
    needs: Program | None = None,
) -> Value:
    """Waits until a condition returns something true, and returns that; its errors of I/O count as not yet.

    Raises:
        ClusterError: the time is over, or the program that it needs has ended; with the last error and with
            what `state` says.
    """
    deadline = time.monotonic() + timeout
    error: Exception | None = None
    while True:
        try:
            value = condition()
            error = None
            if value:
                return value
        except (OSError, ClusterError, subprocess.TimeoutExpired) as failure:
            error = failure
        if needs and not needs.running:
            raise ClusterError(f"{needs.name} ended instead of {what}; the end of its log:\n{needs.tail()}")
        if time.monotonic() > deadline:
            known = f"; known is:\n{state()}" if state else ""
            raise ClusterError(f"waited {timeout:.0f} s in vain for {what}{known}") from error
        time.sleep(pause)
