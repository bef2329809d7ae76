from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from bench import service_probe

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def port() -> Iterator[int]:
    """A port of the loopback addresses where `serve` answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = int(free.getsockname()[1])
    command = [sys.executable, service_probe.__file__, "serve", str(number)]
    with subprocess.Popen(command) as server:
        for _ in range(500):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", number)) == 0:
                    break
            time.sleep(0.01)
        yield number
        server.kill()


def test_the_first_connection_with_the_right_answer_is_told(port: int) -> None:
    before = time.monotonic()
    seen = service_probe.first_answered(("127.0.0.2", port), "127.0.0.2")
    assert seen is not None
    assert before <= seen <= time.monotonic()


def test_a_wrong_answer_or_none_is_not_enough(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_probe, "PATIENCE", 0.1)
    assert service_probe.first_answered(("127.0.0.2", port), "127.0.0.3") is None
    assert service_probe.first_answered(("127.0.0.2", 1), "127.0.0.2") is None


def test_who_comes_late_is_found_at_the_time_of_the_connection() -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))

    def begin() -> None:
        time.sleep(0.1)
        listener.listen()
        while True:
            try:
                client = listener.accept()[0]
                client.sendall(b"here")
                client.close()
            except OSError:
                return

    before = time.monotonic()
    thread = threading.Thread(target=begin, daemon=True)
    thread.start()
    seen = service_probe.first_answered(listener.getsockname(), "here")
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)
    assert seen is not None
    assert seen - before >= 0.1


def test_the_program_answers_line_by_line(port: int) -> None:
    command = [sys.executable, service_probe.__file__, "watch"]
    asked = f"127.0.0.1 {port} 127.0.0.1\n127.0.0.4 {port} 127.0.0.4\n"
    done = subprocess.run(command, input=asked, stdout=subprocess.PIPE, text=True, check=True, timeout=30)
    first, second = map(float, done.stdout.split())
    assert first < second
