"""Databases of every earlier version are brought forward with all that is in them, or not touched at all."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipam import ports
from ipam.record import AttachmentKey, State
from ipam.schema import SCHEMA, STEPS, NewerSchemaError, upgrade, version
from ipam.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

# As Weft 0.1.0 made it. Not derived from the code: it is what lies on nodes, whatever the code says by now.
VERSION_1 = """
CREATE TABLE boot (id TEXT NOT NULL) STRICT;
CREATE TABLE attachments (
    network TEXT NOT NULL, container_id TEXT NOT NULL, ifname TEXT NOT NULL,
    netns TEXT NOT NULL, host_link TEXT NOT NULL UNIQUE,
    mac BLOB NOT NULL CHECK (length(mac) = 6), mtu INTEGER NOT NULL,
    address4 BLOB UNIQUE CHECK (length(address4) = 4), address6 BLOB UNIQUE CHECK (length(address6) = 16),
    pod_namespace TEXT NOT NULL, pod_name TEXT NOT NULL, pod_uid TEXT NOT NULL,
    state INTEGER NOT NULL, created REAL NOT NULL,
    PRIMARY KEY (network, container_id, ifname)) STRICT, WITHOUT ROWID;
CREATE TABLE released (
    position INTEGER PRIMARY KEY, address BLOB NOT NULL UNIQUE, at INTEGER NOT NULL) STRICT;
INSERT INTO boot VALUES ('boot-1');
INSERT INTO attachments VALUES ('weft', 'c1', 'eth0', '/run/netns/n1', 'weft00000000001',
    x'020000000001', 1450, x'0a000002', x'fd000000000000000000000000000002', 'default', 'web', 'uid-1',
    1, 12.5);
INSERT INTO released VALUES (1, x'0a000009', 7), (2, x'0a000003', 8);
PRAGMA user_version=1;
"""
# With host ports.
VERSION_2 = """
CREATE TABLE boot (id TEXT NOT NULL) STRICT;
CREATE TABLE attachments (
    network TEXT NOT NULL, container_id TEXT NOT NULL, ifname TEXT NOT NULL,
    netns TEXT NOT NULL, host_link TEXT NOT NULL UNIQUE,
    mac BLOB NOT NULL CHECK (length(mac) = 6), mtu INTEGER NOT NULL,
    address4 BLOB UNIQUE CHECK (length(address4) = 4), address6 BLOB UNIQUE CHECK (length(address6) = 16),
    pod_namespace TEXT NOT NULL, pod_name TEXT NOT NULL, pod_uid TEXT NOT NULL,
    state INTEGER NOT NULL, created REAL NOT NULL, ports TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (network, container_id, ifname)) STRICT, WITHOUT ROWID;
CREATE TABLE released (
    position INTEGER PRIMARY KEY, address BLOB NOT NULL UNIQUE, at INTEGER NOT NULL) STRICT;
INSERT INTO boot VALUES ('boot-1');
INSERT INTO attachments VALUES ('weft', 'c1', 'eth0', '/run/netns/n1', 'weft00000000001',
    x'020000000001', 1450, x'0a000002', x'fd000000000000000000000000000002', 'default', 'web', 'uid-1',
    1, 12.5, '8080->80/tcp');
INSERT INTO released VALUES (1, x'0a000009', 7), (2, x'0a000003', 8);
PRAGMA user_version=2;
"""
OLD = {1: VERSION_1, 2: VERSION_2}

Steps = tuple[tuple[str, ...], ...]


@pytest.fixture
def database() -> Iterator[sqlite3.Connection]:
    opened = sqlite3.connect(":memory:", isolation_level=None)
    yield opened
    opened.close()


def test_there_is_a_database_of_every_version() -> None:
    assert list(OLD) == list(range(1, SCHEMA + 1))


@pytest.mark.parametrize("number", OLD)
def test_a_database_of_an_earlier_version_keeps_all_that_is_in_it(number: int, tmp_path: Path) -> None:
    path = str(tmp_path / "state.db")
    old = sqlite3.connect(path)
    old.executescript(OLD[number])
    old.close()
    store = Store(path, boot="boot-1")
    try:
        assert not store.fresh
        assert not store.aside
        (record,) = store.records.values()
        assert record.key == AttachmentKey("weft", "c1", "eth0")
        assert record.state is State.ATTACHED
        assert record.addresses == (bytes((10, 0, 0, 2)), b"\xfd" + bytes(14) + b"\x02")
        assert (record.pod_namespace, record.pod_name, record.created) == ("default", "web", 12.5)
        assert ports.write(record.ports) == ("" if number == 1 else "8080->80/tcp")
        assert list(store.released.items()) == [(bytes((10, 0, 0, 9)), 7), (bytes((10, 0, 0, 3)), 8)]
    finally:
        store.close()


def structure(database: sqlite3.Connection) -> list[tuple[str, str]]:
    """Tables and their columns, however their text is set."""
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type='table'")]
    return [
        (name, str(row[1:6]))
        for name in sorted(tables)
        for row in database.execute(f"PRAGMA table_info({name})")
    ]


@pytest.mark.parametrize("number", OLD)
def test_what_was_brought_forward_is_like_what_is_new(number: int, database: sqlite3.Connection) -> None:
    new = sqlite3.connect(":memory:", isolation_level=None)
    upgrade(new)
    database.executescript(OLD[number])
    assert upgrade(database) == number
    assert version(database) == version(new) == SCHEMA
    assert structure(database) == structure(new)
    new.close()


def test_a_newer_database_is_refused_and_untouched(database: sqlite3.Connection) -> None:
    database.execute(f"PRAGMA user_version={SCHEMA + 1}")
    with pytest.raises(NewerSchemaError, match=f"version {SCHEMA + 1} and this Weft knows {SCHEMA}"):
        upgrade(database)
    assert version(database) == SCHEMA + 1
    assert structure(database) == []


def steps_of(count: int) -> Steps:
    """Versions after the real ones: each adds a table and a column to it, and keeps rows."""
    return tuple(
        (
            f"CREATE TABLE later_{number} (a INTEGER)",
            f"INSERT INTO later_{number} VALUES ({number})",
            f"ALTER TABLE later_{number} ADD COLUMN b TEXT DEFAULT 'x'",
        )
        for number in range(count)
    )


def content(database: sqlite3.Connection) -> Sequence[object]:
    names = sorted({name for name, _ in structure(database)})
    rows = [(name, database.execute(f"SELECT * FROM {name}").fetchall()) for name in names]
    return [version(database), structure(database), rows]


@given(total=st.integers(0, 6), stops=st.lists(st.integers(0, 6), max_size=4))
def test_it_does_not_matter_by_which_versions_one_comes(total: int, stops: list[int]) -> None:
    """All at once, or by any of the versions between."""
    steps = (*STEPS, *steps_of(total))
    straight, staged = (sqlite3.connect(":memory:", isolation_level=None) for _ in range(2))
    upgrade(straight, steps)
    for stop in sorted(stops):
        upgrade(staged, steps[: min(len(STEPS) + stop, len(steps))])
    upgrade(staged, steps)
    assert content(staged) == content(straight)
    for each in (straight, staged):
        each.close()


@given(total=st.integers(1, 5), data=st.data())
def test_a_step_that_fails_leaves_what_was_there(total: int, data: st.DataObject) -> None:
    """Wherever it fails: the whole way is one transaction."""
    steps = [*STEPS, *steps_of(total)]
    begun = data.draw(st.integers(0, len(steps) - 1))
    broken = data.draw(st.integers(begun, len(steps) - 1))
    place = data.draw(st.integers(0, len(steps[broken])))
    bad = (*steps[broken][:place], "INSERT INTO nowhere VALUES (1)", *steps[broken][place:])
    database = sqlite3.connect(":memory:", isolation_level=None)
    upgrade(database, steps[:begun])
    before = content(database)
    with pytest.raises(sqlite3.OperationalError, match="nowhere"):
        upgrade(database, [*steps[:broken], bad, *steps[broken + 1 :]])
    assert content(database) == before
    upgrade(database, steps)
    assert version(database) == len(steps)
    database.close()
