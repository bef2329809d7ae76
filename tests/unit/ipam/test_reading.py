"""Reading the database beside or without the process that owns it."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ipam.allocator import Allocator
from ipam.errors import StoreError
from ipam.pool import Pool
from ipam.reading import read
from ipam.record import AttachmentKey, State
from ipam.store import Store

if TYPE_CHECKING:
    from pathlib import Path

POOL = Pool(bytes([10, 1, 1, 0]), 24)
KEY = AttachmentKey("weft", "c1", "eth0")
OTHER = AttachmentKey("weft", "c2", "eth0")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state.db")


def fill(store: Store) -> Allocator:
    allocator = Allocator(store)
    for key, link in ((KEY, "weft0000000000a"), (OTHER, "weft0000000000b")):
        allocator.reserve(key, [POOL], netns="/run/netns/a", host_link=link, mac=bytes(6), mtu=1450)
        allocator.confirm(key)
    allocator.settle()
    allocator.release(OTHER)
    return allocator


def test_it_reads_beside_the_owner(path: str) -> None:
    store = Store(path, boot="b")
    allocator = fill(store)
    reading = read(path, boot="b")
    assert reading.records == allocator.records()
    assert reading.records[0].state is State.ATTACHED
    assert dict(reading.released) == store.released
    assert 0 <= reading.age_seconds < 60
    allocator.release(KEY)
    assert read(path, boot="b").records == ()
    store.close()


def test_an_address_that_a_record_holds_does_not_rest(path: str) -> None:
    store = Store(path, boot="b")
    allocator = fill(store)
    store.insert(
        replace(allocator.records()[0], key=OTHER, host_link="weft0000000000c", addresses=(*store.released,))
    )
    store.settle()
    assert not read(path, boot="b").released
    store.close()


def test_it_reads_what_a_dead_owner_left(path: str, tmp_path: Path) -> None:
    store = Store(path, boot="b")
    records = fill(store).records()
    left = tmp_path / "left.db"
    for suffix in ("", "-wal"):
        left.with_name(left.name + suffix).write_bytes((tmp_path / f"state.db{suffix}").read_bytes())
    assert read(str(left), boot="b").records == records
    store.close()


def test_figures_are_those_of_the_daemon(path: str) -> None:
    store = Store(path, boot="b")
    allocator = fill(store)
    reading = read(path, boot="b")
    assert reading.usage([POOL], now=store.clock()) == allocator.usage([POOL])
    (later,) = reading.usage([POOL], now=store.clock() + 31 * 10**9)
    assert (later.used, later.cooling, later.free) == (1, 0, 252)
    store.close()


def test_another_boot_means_nothing_is_held(path: str) -> None:
    store = Store(path, boot="b")
    fill(store)
    reading = read(path, boot="after")
    assert (reading.records, dict(reading.released)) == ((), {})
    store.close()


def test_it_never_writes(path: str) -> None:
    store = Store(path, boot="b")
    fill(store)
    store.close()
    before = os.stat(path)
    read(path, boot="b")
    after = os.stat(path)
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no state database at"),
        (b"no database, but long enough to be read as one" * 9, "can't be read"),
    ],
)
def test_what_cannot_be_read_is_said(path: str, content: bytes | None, message: str) -> None:
    if content is not None:
        with open(path, "wb") as file:
            file.write(content)
    with pytest.raises(StoreError, match=message):
        read(path)


def test_another_schema_is_named(path: str) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version=99")
    with pytest.raises(StoreError, match="version 99"):
        read(path)
