"""The running lab on disk: its lock, its record of processes, and the removal of what a killed lab left.

Only one lab of `weft-lab up` runs on a machine at a time; labs inside tests have directories of their own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import LabError

DIRECTORY = Path(os.environ.get("WEFT_LAB_STATE") or "/run/weft-lab")
"""Where `weft-lab` keeps its lab; the environment variable allows a second one beside it."""


def start_time(pid: int) -> str:
    """When the process started, in clock ticks since boot; empty when there is none. See proc_pid_stat(5)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(")")[2].split()[19]


@dataclass(slots=True)
class State:
    """The directory of one lab; locked by the process that runs it."""

    directory: Path = DIRECTORY
    _lock: int = -1

    @property
    def control_socket(self) -> Path:
        """Where the lab's process takes orders."""
        return self.directory / "control.sock"

    @property
    def api_socket(self) -> Path:
        """Where the lab's API answers to the lab's own commands."""
        return self.directory / "api.sock"

    @property
    def record_file(self) -> Path:
        """Processes of the lab, with their start times."""
        return self.directory / "state.json"

    def acquire(self) -> None:
        """Take the lock, or LabError that names the lab which holds it; removes what a killed lab left."""
        while True:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                raise LabError(self.who_runs()) from None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), os.stat(self.directory)):
                    self._lock = lock
                    break
            os.close(lock)  # the lab that had it has just removed it
        self.clear()

    def running(self) -> bool:
        """Whether some process holds the lock."""
        try:
            probe = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(probe)
        return False

    def who_runs(self) -> str:
        """The lab that is running, in words."""
        record = self.read()
        pid = record.get("pid", "unknown")
        return f"a lab is running already (pid {pid}): see `weft-lab status`, end it with `weft-lab down`"

    def read(self) -> dict[str, Any]:
        """The record; empty when there is none."""
        try:
            record = json.loads(self.record_file.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def write(self, processes: list[int]) -> None:
        """Record the lab's own process and those it started."""
        record = {
            "pid": os.getpid(),
            "processes": [[pid, start_time(pid)] for pid in (os.getpid(), *processes)],
        }
        temporary = self.record_file.with_suffix(".new")
        temporary.write_text(json.dumps(record))
        temporary.replace(self.record_file)

    def clear(self) -> int:
        """End recorded processes that still run and remove the files; returns how many processes that were.

        A process counts as the recorded one only if its start time is the same: process ids are used again.
        """
        ended = 0
        for pid, started in self.read().get("processes", []):
            if pid != os.getpid() and started and start_time(pid) == started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    ended += 1
        if self.directory.exists():
            for entry in self.directory.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)
        return ended

    def release(self) -> None:
        """Remove the directory and give up the lock."""
        self.clear()
        shutil.rmtree(self.directory, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
