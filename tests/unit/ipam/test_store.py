"""The database: what it keeps, what voids it, and what happens when it is lost or damaged."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from ipam.errors import DuplicateError, StoreError, UnknownAttachmentError
from ipam.record import AttachmentKey, Record, State
from ipam.schema import SCHEMA
from ipam.store import Store, boot_id, boottime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Opener = Callable[..., Store]

KEY = AttachmentKey("weft", "c1", "eth0")
V4, V6 = b"\x0a\x00\x00\x02", b"\xfd" + bytes(14) + b"\x02"


def record(number: int = 1, *addresses: bytes) -> Record:
    return Record(
        key=AttachmentKey("weft", f"c{number}", "eth0"),
        netns=f"/run/netns/n{number}",
        host_link=f"weft{number:011x}",
        mac=bytes((2, 0, 0, 0, 0, number)),
        mtu=1450,
        addresses=addresses or (V4, V6),
        pod_namespace="default",
        pod_name=f"pod-{number}",
        pod_uid=f"uid-{number}",
        created=12.5,
    )


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state.db")


@pytest.fixture
def opener(path: str) -> Iterator[Opener]:
    opened: list[Store] = []

    def open_store(boot: str = "boot-1", clock: Callable[[], int] = lambda: 7) -> Store:
        opened.append(Store(path, boot=boot, clock=clock))
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()


def test_a_new_database_knows_nothing_and_says_so(opener: Opener, path: str) -> None:
    store = opener()
    assert store.fresh
    assert not store.records
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_everything_survives_the_process(opener: Opener) -> None:
    first = opener()
    first.insert(record())
    first.set_state(KEY, State.ATTACHED)
    first.insert(record(2, b"\x0a\x00\x00\x03"))
    first.remove(record(2).key)
    # No close: a killed process does not close anything.
    second = opener()
    assert not second.fresh
    assert second.records == {KEY: replace(record(), state=State.ATTACHED)}
    assert second.released == {b"\x0a\x00\x00\x03": 7}


def states(store: Store) -> list[State]:
    return [each.state for each in store.records.values()]


def full(self: Store, statements: Any) -> None:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error


def test_what_is_new_is_known_at_once_and_written_when_it_is_settled(opener: Opener) -> None:
    store = opener()
    store.insert(record(), record(2, b"\x0a\x00\x00\x03"))
    assert store.confirm(KEY) == store.records[KEY] == replace(record(), state=State.ATTACHED)
    assert states(store) == [State.ATTACHED, State.PENDING]
    assert states(opener()) == []
    store.settle()
    assert states(opener()) == [State.ATTACHED, State.PENDING]
    assert store.confirm(record(2).key).state is State.ATTACHED
    assert states(opener()) == [State.ATTACHED, State.PENDING]
    store.settle()
    assert states(opener()) == [State.ATTACHED, State.ATTACHED]
    with pytest.raises(UnknownAttachmentError):
        store.confirm(record(3).key)


def test_what_cannot_be_settled_is_tried_again(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opener()
    store.insert(record())
    store.confirm(KEY)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_transaction", full)
        with pytest.raises(StoreError, match="full"):
            store.settle()
    assert states(store) == [State.ATTACHED]
    store.settle()
    assert states(opener()) == [State.ATTACHED]


def test_later_changes_overtake_a_confirmation_that_is_not_written(opener: Opener) -> None:
    store = opener()
    store.insert(record(), record(2, b"\x0a\x00\x00\x03"))
    store.confirm(KEY)
    store.confirm(record(2).key)
    with pytest.raises(DuplicateError):
        store.insert(record())
    store.set_state(KEY, State.RELEASING)
    store.remove(record(2).key)
    store.insert(record(2, b"\x0a\x00\x00\x03"))
    store.settle()
    assert states(store) == states(opener()) == [State.RELEASING, State.PENDING]


def test_closing_writes_what_was_confirmed(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opener()
    store.insert(record())
    store.confirm(KEY)
    store.close()
    store.close()
    assert states(opener()) == [State.ATTACHED]
    store = opener()
    store.insert(record(2, b"\x0a\x00\x00\x03"))
    store.confirm(record(2).key)
    monkeypatch.setattr(Store, "_transaction", full)
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.settle()


def test_another_boot_voids_everything(opener: Opener) -> None:
    first = opener()
    first.insert(record())
    first.remove(KEY)
    first.insert(record())
    first.settle()
    second = opener(boot="boot-2")
    assert second.voided == 1
    assert second.fresh
    assert not second.records
    assert not second.released
    third = opener(boot="boot-2")
    assert not third.fresh
    assert third.voided == 0


@pytest.mark.parametrize(
    "other",
    [
        replace(record(2), key=KEY, addresses=(b"\x0a\x00\x00\x09",)),
        record(2, V4),
        record(2, V6),
        replace(record(2, b"\x0a\x00\x00\x09"), host_link=record().host_link),
    ],
    ids=["key", "IPv4", "IPv6", "link"],
)
def test_a_second_holder_is_refused(opener: Opener, other: Record) -> None:
    store = opener()
    third = record(3, b"\x0a\x00\x00\x04")
    with pytest.raises(DuplicateError):
        store.insert(third, record(), other)
    assert not store.records
    store.insert(record())
    with pytest.raises(DuplicateError):
        store.insert(third, other)
    assert list(store.records) == [KEY]
    store.insert(third)
    store.settle()
    again = opener()
    assert list(again.records) == [KEY, third.key]
    with pytest.raises(DuplicateError):
        again.insert(other)
    again.remove(KEY)
    again.insert(other)


@pytest.mark.parametrize("column", ["address4", "address6", "host_link"])
def test_the_database_itself_refuses_a_second_holder(opener: Opener, path: str, column: str) -> None:
    store = opener()
    store.insert(record(), record(2, b"\x0a\x00\x00\x03", bytes(16)))
    store.settle()
    with closing(sqlite3.connect(path)) as database, pytest.raises(sqlite3.IntegrityError):
        database.execute(f"UPDATE attachments SET {column}=(SELECT {column} FROM attachments)")


def test_a_file_that_somebody_else_wrote_to_is_written_anew(opener: Opener, path: str) -> None:
    store = opener()
    store.insert(record())
    store.settle()
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE attachments SET container_id='other'")
        database.commit()
    store.confirm(KEY)
    store.settle()
    assert opener().records == store.records == {KEY: replace(record(), state=State.ATTACHED)}


def count(path: str) -> int:
    with closing(sqlite3.connect(path)) as database:
        (found,) = database.execute("SELECT count(*) FROM released").fetchone()
    return int(found)


def test_that_an_address_rests_no_more_is_written_later_and_read_at_once(opener: Opener, path: str) -> None:
    store = opener()
    store.insert(record())
    store.remove(KEY)
    store.insert(record(2, V4))
    assert (count(path), store.released) == (2, {V6: 7})
    store.settle()
    assert (count(path), store.released) == (1, {V6: 7})
    assert opener().released == {V6: 7}


def test_a_file_that_calls_a_held_address_resting_is_put_right(opener: Opener, path: str) -> None:
    store = opener()
    store.insert(record())
    store.settle()
    with closing(sqlite3.connect(path)) as database:
        database.execute("INSERT INTO released (address, at) VALUES (?, 7)", (V4,))
        database.commit()
    second = opener()
    assert second.released == {}
    second.settle()
    assert count(path) == 0


def test_an_address_is_given_back_before_it_is_written_that_it_was_taken(opener: Opener, path: str) -> None:
    store = opener()
    store.insert(record())
    store.remove(KEY)
    store.insert(record(2))
    store.remove(record(2).key)
    store.settle()
    assert count(path) == 2
    assert store.released == opener().released == {V4: 7, V6: 7}


def test_a_lost_file_is_written_without_the_rest_of_held_addresses(opener: Opener, path: str) -> None:
    store = opener()
    store.insert(record())
    store.remove(KEY)
    store.insert(record(2))
    os.unlink(path)
    assert store.ensure_present()
    assert count(path) == 0
    store.settle()
    assert opener().records == store.records


def test_a_record_takes_its_addresses_out_of_rest(opener: Opener) -> None:
    store = opener()
    store.insert(record())
    store.remove(KEY)
    assert store.released == {V4: 7, V6: 7}
    store.insert(record(2, V4))
    with pytest.raises(DuplicateError):
        store.insert(record(3, V4))
    assert store.released == {V6: 7}
    store.settle()
    assert opener().released == {V6: 7}


def test_released_addresses_keep_their_order(opener: Opener) -> None:
    store = opener()
    addresses = [bytes((10, 0, 0, last)) for last in (9, 3, 200, 5)]
    for number, address in enumerate(addresses, 1):
        store.insert(record(number, address))
        store.remove(record(number).key)
    assert list(opener().released) == addresses


def test_rest_takes_what_nobody_is_known_to_hold(opener: Opener) -> None:
    store = opener()
    store.rest([V4, V6])
    store.rest([V4])
    assert opener().released == {V4: 7, V6: 7}


def test_unknown_attachments_are_named(opener: Opener) -> None:
    store = opener()
    with pytest.raises(UnknownAttachmentError, match="weft/c1/eth0"):
        store.remove(KEY)
    with pytest.raises(UnknownAttachmentError, match="weft/c1/eth0"):
        store.set_state(KEY, State.ATTACHED)


@pytest.mark.parametrize(
    "content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000], ids=["text", "noise"]
)
def test_a_damaged_file_is_set_aside(opener: Opener, path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
    store = opener()
    assert store.fresh
    assert store.aside == f"{path}.unreadable"
    with open(store.aside, "rb") as file:
        assert file.read() == content
    store.insert(record())
    store.settle()
    assert list(opener().records) == [KEY]


def test_damage_inside_is_noticed_at_the_start(opener: Opener, path: str) -> None:
    store = opener()
    for number in range(1, 200):
        store.insert(record(number, bytes((10, 0, 1, number))))
    store.close()
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * 8192)
    assert opener().aside


def test_a_file_of_a_newer_version_is_set_aside_as_it_is(opener: Opener, path: str) -> None:
    """A rollback must start pods: what was attached is in the kernel, too."""
    opener().close()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE later (a TEXT)")
        database.execute(f"PRAGMA user_version={SCHEMA + 1}")
    database.close()
    store = opener()
    assert store.fresh
    assert store.reason == (
        f"its schema is version {SCHEMA + 1} and this Weft knows {SCHEMA}: a newer Weft wrote it"
    )
    database = sqlite3.connect(store.aside)
    assert database.execute("PRAGMA user_version").fetchone() == (SCHEMA + 1,)
    assert database.execute("SELECT count(*) FROM later").fetchone() == (0,)
    database.close()


def test_a_file_with_a_state_of_the_future_is_set_aside(opener: Opener, path: str) -> None:
    store = opener()
    store.insert(record())
    store.close()
    database = sqlite3.connect(path)
    database.execute("UPDATE attachments SET state=9")
    database.commit()
    database.close()
    assert opener().aside


def test_a_removed_file_is_written_anew(opener: Opener, path: str) -> None:
    store = opener()
    store.insert(record())
    store.insert(record(2, b"\x0a\x00\x00\x03"))
    store.remove(record(2).key)
    assert not store.ensure_present()
    store.confirm(KEY)
    for suffix in ("", "-wal", "-shm"):
        os.unlink(path + suffix)
    assert store.ensure_present()
    assert not store.ensure_present()
    again = opener()
    assert again.records == {KEY: replace(record(), state=State.ATTACHED)}
    assert again.released == {b"\x0a\x00\x00\x03": 7}


def test_a_removed_directory_is_made_anew(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    store = Store(str(directory / "state.db"), boot="b")
    store.insert(record())
    for name in os.listdir(directory):
        os.unlink(directory / name)
    directory.rmdir()
    assert store.ensure_present()
    assert os.stat(directory).st_mode & 0o777 == 0o700
    store.close()


def test_a_file_found_damaged_while_open_is_written_anew(
    opener: Opener, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener()
    store.insert(record())
    whole = Store._transaction
    failures = iter([sqlite3.DatabaseError("database disk image is malformed")])

    def failing(self: Store, statements: Any) -> None:
        for failure in failures:
            raise failure
        whole(self, statements)

    monkeypatch.setattr(Store, "_transaction", failing)
    store.insert(record(2, b"\x0a\x00\x00\x03"))
    store.settle()
    again = opener()
    assert set(again.records) == {KEY, record(2).key}
    assert not again.aside


def test_with_a_full_disk_nothing_more_is_taken_in(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opener()
    store.insert(record())
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_transaction", full)
        with pytest.raises(StoreError, match="full"):
            store.insert(record(2, b"\x0a\x00\x00\x03"))
        with pytest.raises(StoreError, match="full"):
            store.set_state(KEY, State.RELEASING)
    assert states(store) == [State.PENDING]
    store.insert(record(2, b"\x0a\x00\x00\x03"))
    assert list(opener().records) == [KEY]


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="state directory"):
        Store(str(tmp_path / "absent" / "state.db"), boot="b")


def test_a_closed_database_refuses(opener: Opener) -> None:
    store = opener()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.insert(record())
    assert not store.records


def test_two_addresses_of_one_family_are_a_defect(opener: Opener) -> None:
    with pytest.raises(ValueError, match="two addresses"):
        opener().insert(record(1, V4, b"\x0a\x00\x00\x03"))


def test_boot_id_and_boottime_come_from_the_kernel() -> None:
    assert boot_id() == boot_id() != ""
    assert 0 < boottime() <= boottime()
