"""A lab leaves nothing behind, whatever ends it at whatever moment."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.state import State, start_time

pytestmark = pytest.mark.root

WEFT_LAB = str(Path(sys.executable).with_name("weft-lab"))


class Lab:
    """A lab of the command line with a state directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.state = State(directory)
        self.environment = {**os.environ, "WEFT_LAB_STATE": str(directory)}

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        nowhere = subprocess.DEVNULL
        return subprocess.Popen(
            [WEFT_LAB, *arguments],
            stdout=nowhere,
            stderr=nowhere,
            env=self.environment,
            start_new_session=True,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [WEFT_LAB, *arguments],
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=60,
            check=False,
        )

    def daemons(self) -> list[int]:
        """The processes in namespaces of this lab's nodes, found by the log file they write to."""
        found = []
        for link in Path("/proc").glob("[0-9]*/fd/1"):
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if target.startswith(str(self.state.directory)):
                found.append(int(link.parts[2]))
        return found

    def left(self) -> list[object]:
        """What is still there of the lab."""
        files = [self.state.directory] if self.state.directory.exists() else []
        return [*files, *self.daemons(), *(["lock"] if self.state.running() else [])]

    def wait_gone(self) -> None:
        deadline = time.monotonic() + 10
        while self.left() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert self.left() == []


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path / "lab")
    yield lab
    lab.run("down")
    lab.wait_gone()


@pytest.mark.parametrize("delay", [0.1, 0.4, 0.55, 0.8])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_start_leaves_nothing(lab: Lab, delay: float, number: signal.Signals) -> None:
    process = lab.start("up", "--wait", "30")
    time.sleep(delay)
    assert process.poll() is None, "ended before it was interrupted"
    process.send_signal(number)
    process.wait(20)
    assert process.returncode != 0
    lab.wait_gone()


@pytest.mark.parametrize("delay", [1.3, 2.0])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_demo_leaves_nothing(lab: Lab, delay: float, number: signal.Signals) -> None:
    process = lab.start("demo")
    time.sleep(delay)
    assert process.poll() is None, "ended before it was interrupted"
    process.send_signal(number)
    process.wait(30)
    assert process.returncode != 0
    lab.wait_gone()


def test_a_demo_that_fails_says_why(lab: Lab, tmp_path: Path) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text("overlayy: vxlan\n")
    failed = lab.run("demo", "--nodes", "1", "--config", str(config))
    assert failed.returncode == 1
    assert "unknown key 'overlayy'" in failed.stderr
    assert lab.left() == []


def test_impatient_interruption(lab: Lab) -> None:
    process = lab.start("up", "--wait", "30")
    time.sleep(0.7)
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    process.wait(20)
    lab.wait_gone()


def test_a_second_lab_is_refused_with_clear_words(lab: Lab) -> None:
    assert lab.run("up", "--wait", "0", "--nodes", "1").returncode == 0
    refused = lab.run("up", "--wait", "0")
    assert refused.returncode == 1
    assert "a lab is running already" in refused.stderr
    assert "weft-lab down" in refused.stderr
    assert len(lab.daemons()) == 1
    assert lab.run("down").returncode == 0
    assert lab.left() == []


def test_a_killed_lab_takes_its_daemons_along_and_the_next_one_starts(lab: Lab) -> None:
    assert lab.run("up", "--wait", "0").returncode == 0
    pid = json.loads(lab.run("status", "-o", "json").stdout)["pid"]
    assert len(lab.daemons()) == 3
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while (lab.daemons() or start_time(pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert lab.daemons() == []
    assert "no lab is running" in lab.run("status").stderr
    assert lab.run("up", "--wait", "0", "--nodes", "1").returncode == 0
    os.kill(json.loads(lab.run("status", "-o", "json").stdout)["pid"], signal.SIGKILL)
    time.sleep(0.1)
    assert "removed what a killed one had left" in lab.run("down").stdout
    assert lab.left() == []
