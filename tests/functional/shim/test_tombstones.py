"""DEL while no daemon answers: what is written, under which lock, how many, and what a new daemon sees."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import re
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.functional.shim import http2
from tests.functional.shim.program import ENVIRONMENT, ROOT, build, make_network_namespace
from weft_rpc import cni_pb2

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

    from tests.functional.shim.program import Shim

NAME = re.compile(r"\d{10}\.\d{9}-\d+-[0-9a-f]{16}")
CONFIG = b'{"cniVersion":"1.0.0","name":"weft"}'


@contextlib.contextmanager
def locked(path: Path, kind: int) -> Iterator[None]:
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, kind)
        yield


def test_a_deletion_without_a_daemon_is_the_serialized_request(shim: Shim) -> None:
    done = shim.run("DEL", CONFIG)
    assert (done.exit_code, done.output, done.messages) == (0, b"", "")
    (tombstone,) = shim.tombstones
    assert NAME.fullmatch(tombstone.name)
    assert cni_pb2.ExecuteRequest.FromString(tombstone.read_bytes()) == cni_pb2.ExecuteRequest(
        command="DEL",
        container_id=ENVIRONMENT["CNI_CONTAINERID"],
        netns=ENVIRONMENT["CNI_NETNS"],
        ifname=ENVIRONMENT["CNI_IFNAME"],
        args=ENVIRONMENT["CNI_ARGS"],
        path=ENVIRONMENT["CNI_PATH"],
        config=CONFIG,
    )
    assert [path.stat().st_mode & 0o777 for path in (tombstone, shim.state, tombstone.parent)] == [
        0o600,
        0o700,
        0o700,
    ]
    assert [path.name for path in tombstone.parent.iterdir()] == [tombstone.name]


def test_an_empty_namespace_is_recorded_too(shim: Shim) -> None:
    assert shim.run("DEL", CNI_NETNS="").exit_code == 0
    assert len(shim.tombstones) == 1


def test_tombstones_sort_in_the_order_of_time(shim: Shim) -> None:
    for number in range(20):
        shim.run("DEL", CNI_CONTAINERID=f"id{number}")
    recorded = [cni_pb2.ExecuteRequest.FromString(path.read_bytes()).container_id for path in shim.tombstones]
    assert recorded == [f"id{number}" for number in range(20)]


def test_beyond_the_limit_the_deletion_fails_clearly(shim: Shim) -> None:
    deletions = shim.state / "deletions"
    deletions.mkdir(parents=True)
    for number in range(4095):
        (deletions / str(number)).touch()
    (deletions / ".unfinished").touch()
    assert shim.run("DEL").exit_code == 0
    error = shim.run("DEL").error
    assert error["code"] == 11
    assert "too many deletions" in error["msg"]
    assert "deletions" in error["details"]
    assert len(shim.tombstones) == 4096


def block_directory(shim: Shim) -> None:
    shim.state.write_text("a file where the directory should be")


def block_deletions(shim: Shim) -> None:
    shim.state.mkdir()
    (shim.state / "deletions").write_text("a file where the directory should be")


@pytest.mark.parametrize("block", [block_directory, block_deletions])
def test_a_directory_that_cannot_be_made_does_not_hold_up_the_pod(shim: Shim, block: object) -> None:
    assert callable(block)
    block(shim)
    done = shim.run("DEL")
    assert (done.exit_code, done.output) == (0, b"")
    assert "could not be recorded" in done.messages


@pytest.mark.root
@pytest.mark.parametrize("mount", ["size=4k", "ro"], ids=["full", "read-only"])
def test_a_directory_that_cannot_be_written_does_not_hold_up_the_pod(shim: Shim, mount: str) -> None:
    """The file system is full or read-only: the pod's deletion goes on, no half tombstone stays."""
    shim.state.mkdir()
    script = (
        f"mount -t tmpfs -o size=64k none state && mkdir state/deletions && : > state/deletions.lock"
        f" && mount -o remount,{mount} none state"
        f" && {{ [ {mount} = ro ] || head -c 4096 /dev/zero > state/filler; }}"
        f' && "{shim.binary}" && ls -A state/deletions'
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], input=CONFIG, capture_output=True, check=False,
        **{**shim.arguments("DEL", {}), "env": {**os.environ, **shim.arguments("DEL", {})["env"]}},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b""), done
    assert b"could not be recorded" in done.stderr


@pytest.mark.root
def test_a_sandbox_that_was_never_wired_leaves_no_tombstone(shim: Shim) -> None:
    name = f"weft-t-shim-{os.getpid()}"
    path = make_network_namespace(name)
    try:
        for number in range(3):
            assert shim.run("DEL", CNI_NETNS=path, CNI_CONTAINERID=f"retry{number}").exit_code == 0
        assert shim.tombstones == []
        subprocess.run(
            ["ip", "-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "peer"], check=True
        )
        assert shim.run("DEL", CNI_NETNS=path).exit_code == 0
        assert len(shim.tombstones) == 1
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def test_a_daemon_that_begins_to_serve_gets_the_deletion_itself(shim: Shim) -> None:
    """The daemon drains and opens its socket under the lock; a shim that waited asks it once more."""
    process = None
    with locked(shim.state / "deletions.lock", fcntl.LOCK_EX):
        process = subprocess.Popen(
            [shim.binary], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            **shim.arguments("DEL", {}),
        )  # fmt: skip
        time.sleep(0.3)
        assert process.poll() is None
        assert shim.tombstones == []
        serving = http2.answering(shim.socket, http2.saying(http2.reply(b"")))
        serving.__enter__()
    try:
        assert process.communicate(timeout=5) == (b"", b"")
        assert process.returncode == 0
        assert shim.tombstones == []
    finally:
        serving.__exit__(None, None, None)


def test_shims_do_not_wait_for_one_another(shim: Shim) -> None:
    with locked(shim.state / "deletions.lock", fcntl.LOCK_SH):
        done = shim.run("DEL")
    assert done.exit_code == 0
    assert done.seconds < 1
    assert len(shim.tombstones) == 1


class Daemon:
    """Starts as the protocol says: exclusive lock, drain, serve, unlock. Remembers what reached it how."""

    def __init__(self, shim: Shim) -> None:
        self.shim = shim
        self.drained: list[str] = []
        self.served: list[str] = []
        self.serving = contextlib.ExitStack()

    def start(self, pause: float) -> None:
        with locked(self.shim.state / "deletions.lock", fcntl.LOCK_EX):
            time.sleep(pause)
            for path in self.shim.tombstones:
                self.drained.append(cni_pb2.ExecuteRequest.FromString(path.read_bytes()).container_id)
                path.unlink()
            time.sleep(pause)
            self.serving.enter_context(http2.answering(self.shim.socket, self.talk))

    def talk(self, connection: socket.socket) -> None:
        received = b""
        while not (found := re.search(rb"container-\d+-end", received)):
            received += connection.recv(65536)
        self.served.append(found[0].decode())
        http2.saying(http2.reply(b""))(connection)


def test_nothing_is_lost_between_shims_and_a_starting_daemon(shim: Shim) -> None:
    generator = random.Random(20)
    total = 0
    for _ in range(12):
        daemon = Daemon(shim)
        shim.socket.unlink(missing_ok=True)
        start = threading.Thread(target=daemon.start, args=(generator.uniform(0, 0.02),))
        processes = []
        expected = [f"container-{number}-end" for number in range(total, total + 12)]
        total += 12
        for number, container in enumerate(expected):
            if number == generator.randrange(1, 9) or number == 9:
                with contextlib.suppress(RuntimeError):  # started already
                    start.start()
            processes.append(
                subprocess.Popen(
                    [shim.binary],
                    stdin=subprocess.DEVNULL,
                    **shim.arguments("DEL", {"CNI_CONTAINERID": container}),
                )
            )
        start.join()
        assert [process.wait(15) for process in processes] == [0] * len(processes)
        daemon.serving.close()
        assert shim.tombstones == []
        assert sorted(daemon.drained + daemon.served) == sorted(expected)


@pytest.mark.root
def test_the_paths_of_a_release_are_those_of_the_contract(tmp_path: Path) -> None:
    binary = build(tmp_path / "release", state="/run/weft") / "weft"
    script = (
        f'mount -t tmpfs none /run && "{binary}" && stat -c "%a %n" /run/weft /run/weft/deletions.lock'
        f" && ls /run/weft/deletions"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], env={**os.environ, **ENVIRONMENT, "CNI_COMMAND": "DEL"},
        input=CONFIG, capture_output=True, check=True,
    )  # fmt: skip
    lines = done.stdout.decode().splitlines()
    assert lines[:2] == ["700 /run/weft", "600 /run/weft/deletions.lock"]
    assert NAME.fullmatch(lines[2])
    makefile = (ROOT / "shim" / "Makefile").read_text(encoding="utf-8")
    assert "STATE_DIRECTORY ?= /run/weft\n" in makefile
