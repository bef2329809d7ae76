"""The desired state on disk: what is read back is what was desired."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from typing import TYPE_CHECKING

import pytest

from datapath import snapshot
from datapath.desired import (
    FdbEntry,
    Fragment,
    LinkAddress,
    Neighbour,
    Route,
    RouteKind,
    SetElements,
    Sysctl,
    VxlanLink,
)
from datapath.nft.tables import TableOptions, node_tables
from datapath.snapshot import Recorder, SnapshotError, decode, encode, read

if TYPE_CHECKING:
    from pathlib import Path

    from datapath.desired import FragmentKey

HERE, THERE, POD = bytes([172, 20, 0, 2]), bytes([172, 20, 0, 3]), bytes([10, 1, 2, 0])
MAC = bytes([2, 0, 0, 0, 0, 1])
LOCAL = Fragment(
    (
        VxlanLink("weft.vxlan", 4096, 4789, MAC, HERE, 1450),
        LinkAddress("weft.vxlan", bytes([10, 1, 1, 0]), 32),
        Sysctl("net/ipv4/ip_forward", "1"),
        Route(bytes([10, 1, 1, 0]), 24, None, kind=RouteKind.UNREACHABLE),
    ),
    (SetElements((2, "weft"), "nodes", {HERE: b"", THERE: b"\x00\xff"}),),
    node_tables(TableOptions()),
)
PEER = Fragment(
    (
        Neighbour("weft.vxlan", POD, MAC),
        FdbEntry("weft.vxlan", MAC, THERE),
        Route(POD, 24, "weft.vxlan", POD, HERE, onlink=True),
    )
)
ALL: dict[FragmentKey, Fragment | None] = {("local",): LOCAL, ("node", "n2"): PEER}


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "desired.db")


async def keep(recorder: Recorder) -> None:
    """Has everything written that was recorded."""
    task = asyncio.ensure_future(recorder.run())
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("fragment", [LOCAL, PEER, Fragment()])
def test_every_kind_of_value_comes_back_equal(fragment: Fragment) -> None:
    again = decode(encode(fragment))
    assert again == fragment
    assert [type(value) for value in again.objects] == [type(value) for value in fragment.objects]


def test_enumerations_come_back_as_such() -> None:
    (route,) = (value for value in decode(encode(LOCAL)).objects if isinstance(value, Route))
    assert route.kind is RouteKind.UNREACHABLE


async def test_what_was_recorded_is_read(path: str) -> None:
    recorder = Recorder(path)
    recorder.record(ALL, (HERE,))
    await keep(recorder)
    found = read(path)
    assert found.fragments == ALL
    assert found.sources == (HERE,)
    assert 0 <= found.age_seconds < 60
    assert os.stat(path).st_mode & 0o777 == 0o600


async def test_changes_touch_only_their_rows(path: str) -> None:
    recorder = Recorder(path)
    recorder.record(ALL, (HERE,))
    await keep(recorder)
    recorder.record({("node", "n2"): None, ("node", "n3"): PEER}, (THERE,))
    await keep(recorder)
    found = read(path)
    assert found.fragments == {("local",): LOCAL, ("node", "n3"): PEER}
    assert found.sources == (THERE,)


async def test_a_new_process_begins_anew(path: str) -> None:
    first = Recorder(path)
    first.record(ALL, (HERE,))
    await keep(first)
    second = Recorder(path)
    second.record({("local",): LOCAL}, (HERE,))
    await keep(second)
    assert read(path).fragments == {("local",): LOCAL}


async def test_many_are_written_in_pieces(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "WRITE_SECONDS", 0.01)
    monkeypatch.setattr(snapshot, "PIECE", 3)
    many: dict[FragmentKey, Fragment | None] = {("node", str(number)): PEER for number in range(10)}
    recorder = Recorder(path)
    async with asyncio.timeout(10):
        task = asyncio.ensure_future(recorder.run())
        recorder.record(many, (HERE,))
        kept = 0
        while kept < len(many):
            await asyncio.sleep(0.01)
            with contextlib.suppress(SnapshotError):
                kept = len(read(path).fragments)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_the_age_is_that_of_the_last_sign_of_life(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "WRITE_SECONDS", 0.01)
    recorder = Recorder(path)
    recorder.record(ALL, (HERE,))
    await keep(recorder)
    for suffix in ("",):
        with contextlib.suppress(FileNotFoundError):
            os.utime(path + suffix, (time.time() - 500,) * 2)
    assert read(path).age_seconds == pytest.approx(500, abs=5)
    task = asyncio.ensure_future(recorder.run())
    await asyncio.sleep(0.1)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert read(path).age_seconds < 5


def test_none_is_said(path: str) -> None:
    with pytest.raises(SnapshotError, match="Weft has not run since the boot"):
        read(path)


async def test_one_of_another_boot_or_schema_is_refused(path: str) -> None:
    recorder = Recorder(path)
    recorder.record(ALL, (HERE,))
    await keep(recorder)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE facts SET value='other' WHERE name='boot'")
    with pytest.raises(SnapshotError, match="another boot"):
        read(path)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA user_version=7")
    with pytest.raises(SnapshotError, match="version 7"):
        read(path)


@pytest.mark.parametrize("body", ['{"c":"Popen","f":[]}', '{"c":"Route","f":[]}', "[1]", "nonsense"])
async def test_a_row_that_is_no_fragment_is_refused(path: str, body: str) -> None:
    recorder = Recorder(path)
    recorder.record(ALL, (HERE,))
    await keep(recorder)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE fragments SET body=?", (body,))
    with pytest.raises(SnapshotError, match="can't be read"):
        read(path)


async def test_a_file_that_was_removed_is_written_anew(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "WRITE_SECONDS", 0.01)
    recorder = Recorder(path)
    recorder.record(ALL, (HERE,))
    await keep(recorder)
    os.unlink(path)
    recorder.record({("node", "n3"): PEER}, (HERE,))
    task = asyncio.ensure_future(recorder.run())
    async with asyncio.timeout(10):
        while not os.path.exists(path):  # noqa: ASYNC110 - there is nobody to set an event
            await asyncio.sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert read(path).fragments == {**ALL, ("node", "n3"): PEER}


async def test_one_who_is_killed_leaves_the_former_state(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    former = Recorder(path)
    former.record(ALL, (HERE,))
    await keep(former)

    def killed(_fragment: Fragment) -> str:
        raise sqlite3.OperationalError("killed")

    monkeypatch.setattr(snapshot, "encode", killed)
    latter = Recorder(path)
    latter.record({("local",): LOCAL}, (THERE,))
    await keep(latter)
    former.record({("node", "n2"): None, ("node", "n3"): PEER}, (THERE,))
    await keep(former)
    found = read(path)
    assert found.fragments == ALL
    assert found.sources == (HERE,)


async def test_a_directory_that_is_gone_stops_nothing(tmp_path: Path) -> None:
    recorder = Recorder(str(tmp_path / "gone" / "desired.db"))
    recorder.record(ALL, (HERE,))
    await keep(recorder)
    with pytest.raises(SnapshotError):
        read(recorder.path)
