import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.errors import LabError
from lab.state import State, start_time


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def record(state: State, processes: list[list[object]]) -> None:
    state.directory.mkdir(exist_ok=True)
    state.record_file.write_text(json.dumps({"pid": 1, "processes": processes}))


def test_one_lab_at_a_time(tmp_path: Path) -> None:
    first, second = State(tmp_path / "lab"), State(tmp_path / "lab")
    first.acquire()
    first.write([])
    with pytest.raises(LabError, match=rf"a lab is running already \(pid {os.getpid()}\).*weft-lab down"):
        second.acquire()
    assert second.running()
    first.release()
    assert not second.running()
    assert not first.directory.exists()
    second.acquire()
    second.release()


def test_what_a_killed_lab_left_is_removed(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    state = State(tmp_path / "lab")
    record(state, [[sleeper.pid, start_time(sleeper.pid)]])
    (state.directory / "nodes" / "node-1").mkdir(parents=True)
    state.acquire()
    assert sleeper.wait(5) == -9
    assert list(state.directory.iterdir()) == []
    state.release()


def test_a_process_that_only_has_the_same_id_is_left_alone(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    state = State(tmp_path / "lab")
    record(state, [[sleeper.pid, "12345"], [2**22 + 1, ""]])
    assert state.clear() == 0
    assert sleeper.poll() is None


def test_start_time_of_nothing() -> None:
    assert start_time(2**22 + 1) == ""
    assert start_time(os.getpid()).isdigit()
