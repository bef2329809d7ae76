"""The directory of deletions and its lock."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from daemon.cni import deletions as module
from daemon.cni.deletions import CorruptTombstoneError, Deletions
from weft_rpc.cni_pb2 import ExecuteRequest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def deletions(tmp_path: Path) -> Iterator[Deletions]:
    found = Deletions(str(tmp_path / "deletions"))
    found.prepare()
    yield found
    found.close()


@pytest.fixture(params=["/dev/shm", ""], ids=["tmpfs", "disk"])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, as /run is, and one on whatever the tests run on."""
    if not request.param:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=request.param) as found:
        yield Path(found)


def bury(deletions: Deletions, name: str, content: bytes | None = None) -> None:
    request = ExecuteRequest(command="DEL", container_id=name)
    with open(f"{deletions.directory}/{name}", "wb") as file:
        file.write(request.SerializeToString() if content is None else content)


def test_the_directory_is_roots_alone(deletions: Deletions) -> None:
    assert os.stat(deletions.directory).st_mode & 0o777 == 0o700


def test_tombstones_are_worked_off_in_order(deletions: Deletions) -> None:
    for name in ("2", "10", "1"):
        bury(deletions, name)
    bury(deletions, ".3")
    done: list[str] = []
    drained = deletions.drain(lambda request: done.append(request.container_id))
    assert done == ["1", "10", "2"]
    assert (drained.done, drained.corrupt, drained.problems) == (3, [], [])
    assert deletions.names() == []
    assert os.listdir(deletions.directory) == [".3"]


def test_one_that_fails_stays_and_keeps_no_other_waiting(deletions: Deletions) -> None:
    for name in ("1", "2"):
        bury(deletions, name)

    def apply(request: ExecuteRequest) -> None:
        if request.container_id == "1":
            raise OSError("busy")

    drained = deletions.drain(apply)
    assert drained.done == 1
    assert drained.problems == ["1: busy"]
    assert deletions.names() == ["1"]


def test_what_is_no_deletion_is_set_aside_and_counted(
    deletions: Deletions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SIZE_LIMIT", 100)
    bury(deletions, "1", b"\xff\xff\xff")
    bury(deletions, "2", b"x" * 101)
    bury(deletions, "3")
    os.mkdir(f"{deletions.directory}/4")

    def apply(request: ExecuteRequest) -> None:
        raise CorruptTombstoneError("no DEL")

    drained = deletions.drain(apply)
    assert len(drained.corrupt) == 4
    assert deletions.names() == []
    assert sorted(os.listdir(f"{deletions.directory}.corrupt")) == ["1", "2", "3", "4"]


def test_what_is_set_aside_is_bounded(deletions: Deletions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CORRUPT_LIMIT", 2)
    for name in "12345":
        bury(deletions, name, b"\xff")
    assert len(deletions.drain(lambda _: None).corrupt) == 5
    assert len(os.listdir(f"{deletions.directory}.corrupt")) == 2


def test_one_drain_is_bounded(deletions: Deletions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 2)
    for name in "12345":
        bury(deletions, name)
    assert deletions.drain(lambda _: None).done == 2
    assert deletions.names() == ["3", "4", "5"]


def test_a_missing_directory_has_nothing_waiting(tmp_path: Path) -> None:
    found = Deletions(str(tmp_path / "absent"))
    assert found.names() == []
    assert found.drain(lambda _: None).done == 0


def shared_lock(deletions: Deletions) -> int:
    """Takes the lock as the shim does; raises BlockingIOError while the daemon has it."""
    descriptor = os.open(f"{deletions.directory}.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    return descriptor


async def test_shims_wait_while_the_lock_is_held(deletions: Deletions) -> None:
    bury(deletions, ".unfinished")
    async with deletions.hold() as held:
        assert held
        assert os.listdir(deletions.directory) == []
        with pytest.raises(BlockingIOError):
            shared_lock(deletions)
    os.close(shared_lock(deletions))


async def test_the_daemon_waits_for_shims_that_write(deletions: Deletions) -> None:
    descriptor = shared_lock(deletions)
    asyncio.get_running_loop().call_later(0.05, os.close, descriptor)
    async with deletions.hold() as held:
        assert held


async def test_a_shim_that_hangs_does_not_keep_the_daemon_from_serving(deletions: Deletions) -> None:
    bury(deletions, ".being-written")
    descriptor = shared_lock(deletions)
    async with deletions.hold(patience=0.05) as held:
        assert not held
        assert os.listdir(deletions.directory) == [".being-written"]
    os.close(descriptor)


def test_a_tombstone_is_seen_however_soon_it_comes_after_a_look(tmp_path: Path) -> None:
    deletions = Deletions(str(tmp_path / "deletions"))
    assert not deletions.waiting()
    deletions.prepare()
    for number in range(200):
        assert not deletions.waiting()
        path = tmp_path / "deletions" / str(number)
        path.write_bytes(b"")
        assert deletions.waiting()
        path.unlink()


def test_looks_at_a_directory_that_rests_list_it_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deletions = Deletions(str(tmp_path / "deletions"))
    deletions.prepare()
    os.utime(deletions.directory, ns=(0, 0))
    assert not deletions.waiting()
    monkeypatch.setattr(deletions, "names", lambda: pytest.fail("listed again"))
    assert not deletions.waiting()


def test_a_directory_that_was_removed_is_looked_for_again(elsewhere: Path) -> None:
    deletions = Deletions(str(elsewhere / "deletions"))
    for _ in range(3):
        deletions.prepare()
        assert not deletions.waiting()
        bury(deletions, "1")
        assert deletions.waiting()
        os.unlink(f"{deletions.directory}/1")
        assert not deletions.waiting()
        os.rmdir(deletions.directory)
        assert os.fstat(deletions._descriptor).st_nlink == 0
        assert not deletions.waiting()
        deletions.prepare()
        bury(deletions, "2")
        assert deletions.waiting()
        os.unlink(f"{deletions.directory}/2")
        os.rmdir(deletions.directory)
    deletions.close()


def test_a_directory_that_cannot_be_kept_open_is_looked_at_by_its_path(
    deletions: Deletions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    os.utime(deletions.directory, ns=(0, 0))
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        assert not deletions.waiting()
        assert not deletions.waiting()
    assert deletions._descriptor == -1
    bury(deletions, "1")
    assert deletions.waiting()


def test_the_directory_is_closed_once_and_opened_again_where_that_is_needed(deletions: Deletions) -> None:
    assert not deletions.waiting()
    descriptor = deletions._descriptor
    deletions.close()
    deletions.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    bury(deletions, "1")
    assert deletions.waiting()
