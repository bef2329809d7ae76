"""The database of attachments and released addresses: what survives a crash of the daemon and not a reboot.

SQLite in WAL mode without synchronous writes: a commit costs microseconds, and the page cache outlives the
process. After a reboot the content is void, as the pods are: the boot id inside decides that, not the file
system. Memory holds the same rows, so reading costs nothing and a removed or damaged file is written anew
from there. No address and no link is held twice because both refuse it, whatever the code above does.

Memory is ahead of the file by what nobody has to wait for, until `settle`: new attachments, that one is
complete, and that an address rests no more which a record holds. What dies with a process before that is in
the kernel, where the attachment's link bears its record (ipam.alias). An address that the file names twice is
held: whoever reads it believes the record.

One process opens the file (the daemon's lock sees to that), one thread at a time changes it. Who opens it
looks into the kernel for attachments that are not in it before it hands out an address. Chooses no addresses.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from ipam import ports
from ipam.errors import DuplicateError, StoreError, UnknownAttachmentError, UnreadableStoreError
from ipam.record import AttachmentKey, Record, State
from ipam.schema import NewerSchemaError, upgrade

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Statement = tuple[str, tuple[Any, ...]]

BOOT_ID = "/proc/sys/kernel/random/boot_id"
_TRANSIENT = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_FULL}
)
"""Failures that say nothing against the file."""

_INSERT = "INSERT INTO attachments VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
_PUT = f"{_INSERT} ON CONFLICT (network, container_id, ifname) DO UPDATE SET state=excluded.state"
_DELETE = "DELETE FROM attachments WHERE network=? AND container_id=? AND ifname=?"
_REST = "INSERT INTO released (address, at) VALUES (?,?)"
_TAKE = "DELETE FROM released WHERE address=?"
RELEASED = "SELECT address, at FROM released ORDER BY position"
"""Those that a record holds are among them; see `resting`."""


def boot_id() -> str:
    """Return the kernel's id of this boot."""
    with open(BOOT_ID, encoding="ascii") as file:
        return file.read().strip()


boottime = partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)
"""Returns nanoseconds of CLOCK_BOOTTIME: goes on during suspend, and nobody can set it."""


class Store:
    """The open database.

    Attributes:
        path: of the file.
        fresh: nothing was known when it was opened: it is new, of another boot, or was damaged.
        aside: where an unreadable file was moved; "" when there was none.
        reason: why it could not be read, in words.
        voided: how many attachments of an earlier boot were dropped when it was opened.
        records: all attachments; read only.
        released: released addresses and when (nanoseconds of `clock`), released first comes first; read only.
    """

    def __init__(self, path: str, *, boot: str | None = None, clock: Callable[[], int] = boottime) -> None:
        """Open or create the database.

        Raises:
            StoreError: the file can't be opened or written.
        """
        self.path = path
        self.clock = clock
        self.aside = self.reason = ""
        self.voided = 0
        self._closed = False
        self._boot = boot_id() if boot is None else boot
        self._lock = threading.Lock()
        self.records: dict[AttachmentKey, Record] = {}
        self.released: dict[bytes, int] = {}
        self._holders: dict[bytes | str, AttachmentKey] = {}
        # What `settle` is to write: attachments, and held addresses that rest by the file as well.
        self._unwritten: dict[AttachmentKey, None] = {}
        self._taken: dict[bytes, None] = {}
        try:
            self._database = self._open()
            self.fresh = not self._load()
        except UnreadableStoreError as error:
            self.reason = str(error)
            self._set_aside()
            self._database = self._open()
            self.fresh = not self._load()
        self._identity = self._file_identity()

    def insert(self, *records: Record) -> None:
        """Add attachments, all or none; their addresses rest no more. `settle` writes it.

        Raises:
            DuplicateError: a key, link or address is recorded already, or occurs twice among them.
            StoreError: what was added before can't be written, so nothing more is taken in.
        """
        if self._unwritten:
            # They were to be written when they were answered: then the file can't be relied on.
            self.settle()
        if self._closed:
            raise StoreError(f"{self.path} is closed")
        added: dict[AttachmentKey, Record] = {}
        holders: dict[bytes | str, AttachmentKey] = {}
        held, released = self._holders, self.released
        for record in records:
            key = record.key
            if key in self.records or key in added:
                raise DuplicateError(f"attachment {key} is recorded already")
            added[key] = record
            if len(record.addresses) > 1 and len({*map(len, record.addresses)}) < len(record.addresses):
                raise ValueError(f"attachment {key} would hold two addresses of one family")
            for thing in _things(record):
                holder = held.get(thing) or holders.get(thing)
                if holder is not None:
                    raise DuplicateError(f"{_named(thing)} is held by {holder}, so {key} can't have it")
                holders[thing] = key
        self.records |= added
        self._unwritten |= dict.fromkeys(added)
        self._holders |= holders
        for record in records:
            for address in record.addresses:
                if address in released:
                    del released[address]
                    self._taken[address] = None

    def set_state(self, key: AttachmentKey, state: State) -> Record:
        """Change an attachment's state and return it.

        Raises:
            UnknownAttachmentError: there is none.
            StoreError: it can't be written.
        """
        record = self._known(key).in_state(state)
        self._write([(_PUT, _row(record))])
        self.records[key] = record
        self._unwritten.pop(key, None)
        return record

    def confirm(self, key: AttachmentKey) -> Record:
        """Call an attachment complete and return it; `settle` writes that.

        Raises:
            UnknownAttachmentError: there is none.
        """
        record = self.records[key] = self._known(key).in_state(State.ATTACHED)
        self._unwritten[key] = None
        return record

    def settle(self) -> None:
        """Write what is in memory only, all in one transaction; cheap when all is written.

        Raises:
            StoreError: it can't be written; the next call tries again.
        """
        unwritten, taken = tuple(self._unwritten), tuple(self._taken)
        self._write(self._due(unwritten, taken))
        self._written(unwritten, taken)

    def remove(self, key: AttachmentKey) -> Record:
        """Forget an attachment, let its addresses rest from now on, and return it.

        Raises:
            UnknownAttachmentError: there is none.
            StoreError: it can't be written.
        """
        record = self._known(key)
        now = self.clock()
        taken = [address for address in record.addresses if address in self._taken]
        rest: list[Statement] = [(_REST, (address, now)) for address in record.addresses]
        self._write([(_DELETE, tuple(key)), *self._due((), taken), *rest])
        del self.records[key]
        self._written((key,), taken)
        for thing in _things(record):
            del self._holders[thing]
        self.released.update((address, now) for address in record.addresses)
        return record

    def rest(self, addresses: Iterable[bytes]) -> None:
        """Let addresses rest from now on that nobody is known to hold.

        Raises:
            StoreError: it can't be written.
        """
        now = self.clock()
        new = [address for address in addresses if address not in self.released]
        if new:
            self._write([(_REST, (address, now)) for address in new])
            self.released.update((address, now) for address in new)

    def ensure_present(self) -> bool:
        """Write the file anew if somebody removed or replaced it; return whether that was so.

        Raises:
            StoreError: it can't be written.
        """
        with self._lock:
            if self._file_identity() == self._identity:
                return False
            self._rewrite()
            return True

    def close(self) -> None:
        """Close the file, complete if it can be written; the store can't be used afterwards."""
        with self._lock:
            due = self._due(self._unwritten, self._taken)
            if due and not self._closed:
                with suppress(sqlite3.Error):
                    self._transaction(due)
            self._closed = True
            self._database.close()

    def _known(self, key: AttachmentKey) -> Record:
        try:
            return self.records[key]
        except KeyError:
            raise UnknownAttachmentError(f"no attachment {key} is recorded") from None

    def _due(self, keys: Iterable[AttachmentKey], taken: Iterable[bytes]) -> list[Statement]:
        statements: list[Statement] = [(_TAKE, (address,)) for address in taken]
        return [(_PUT, _row(self.records[key])) for key in keys] + statements

    def _written(self, keys: Iterable[AttachmentKey], taken: Iterable[bytes]) -> None:
        for key in keys:
            self._unwritten.pop(key, None)
        for address in taken:
            self._taken.pop(address, None)

    def _write(self, statements: Sequence[Statement]) -> None:
        if not statements:
            return
        with self._lock:
            if self._closed:
                raise StoreError(f"{self.path} is closed")
            try:
                self._transaction(statements)
            except sqlite3.DatabaseError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in _TRANSIENT:
                    raise StoreError(f"{self.path} can't be written: {error}; is its disk full?") from error
                # Memory holds every row: a file that is damaged, removed or at odds with it costs but this.
                self._rewrite()
                self._again(statements)

    def _again(self, statements: Sequence[Statement]) -> None:
        try:
            self._transaction(statements)
        except sqlite3.Error as error:
            raise StoreError(f"{self.path} can't be written: {error}") from error

    def _transaction(self, statements: Sequence[Statement]) -> None:
        database = self._database
        if len(statements) == 1:
            database.execute(*statements[0])
            return
        database.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                database.execute(*statement)
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise

    def _open(self) -> sqlite3.Connection:
        try:
            # Before SQLite would create it, so that nobody else may ever read it.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=1)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"{self.path} can't be opened: {error}; the state directory must exist and be writable"
            ) from error
        try:
            # Each commit writes whole pages with their checksums, and a row touches four of them.
            database.execute("PRAGMA page_size=1024")
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=OFF")
            upgrade(database)
        except (sqlite3.DatabaseError, NewerSchemaError) as error:
            database.close()
            raise UnreadableStoreError(str(error)) from error
        except BaseException:
            database.close()
            raise
        return database

    def _load(self) -> bool:
        """Read all rows into memory; return whether they are of this boot."""
        try:
            return self._read()
        except (sqlite3.DatabaseError, ValueError) as error:
            self._database.close()
            raise UnreadableStoreError(str(error)) from error

    def _read(self) -> bool:
        database = self._database
        problem = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise ValueError(problem)
        boot = database.execute("SELECT id FROM boot").fetchone()
        if boot != (self._boot,):
            if boot is not None:
                self.voided = database.execute("SELECT count(*) FROM attachments").fetchone()[0]
            self._void()
            return False
        rows = database.execute("SELECT * FROM attachments ORDER BY created").fetchall()
        self.records = {record.key: record for record in map(record_of, rows)}
        for record in self.records.values():
            self._holders |= dict.fromkeys(_things(record), record.key)
        released = dict(database.execute(RELEASED))
        self.released = resting(released, self.records.values())
        self._taken = dict.fromkeys(released.keys() - self.released.keys())
        return True

    def _void(self) -> None:
        self._transaction(
            [
                ("DELETE FROM attachments", ()),
                ("DELETE FROM released", ()),
                ("DELETE FROM boot", ()),
                ("INSERT INTO boot VALUES (?)", (self._boot,)),
            ]
        )

    def _set_aside(self) -> None:
        self.aside = f"{self.path}.unreadable"
        try:
            os.replace(self.path, self.aside)
            self._remove_companions()
        except OSError as error:
            raise StoreError(f"{self.path} is unreadable and can't be moved away: {error}") from error

    def _remove_companions(self) -> None:
        for suffix in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.unlink(self.path + suffix)

    def _rewrite(self) -> None:
        with suppress(sqlite3.Error):
            self._database.close()
        try:
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            with suppress(FileNotFoundError):
                os.unlink(self.path)
            self._remove_companions()
            self._database = self._open()
            self._void()
            # Before the records are looked at: the writer's thread may change one meanwhile.
            unwritten, taken = tuple(self._unwritten), tuple(self._taken)
            self._transaction(
                [(_INSERT, _row(record)) for record in tuple(self.records.values())]
                + [(_REST, released) for released in tuple(self.released.items())]
                + [("SELECT 1", ())]
            )
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{self.path} was lost and can't be written anew: {error}") from error
        self._written(unwritten, taken)
        self._identity = self._file_identity()

    def _file_identity(self) -> tuple[int, ...]:
        found: list[int] = []
        for suffix in ("", "-wal"):
            try:
                status = os.stat(self.path + suffix)
            except OSError:
                return ()
            found += (status.st_dev, status.st_ino)
        return tuple(found)


def _things(record: Record) -> tuple[bytes | str, ...]:
    """Return what only one attachment can have."""
    return (record.host_link, *record.addresses)


def _named(thing: bytes | str) -> str:
    return f"link {thing}" if isinstance(thing, str) else f"address {ip_address(thing)}"


def _row(record: Record) -> tuple[Any, ...]:
    by_size = {len(address): address for address in record.addresses}
    address4, address6 = by_size.get(4), by_size.get(16)
    return (
        *record.key,
        record.netns,
        record.host_link,
        record.mac,
        record.mtu,
        address4,
        address6,
        record.pod_namespace,
        record.pod_name,
        record.pod_uid,
        int(record.state),
        record.created,
        ports.write(record.ports) if record.ports else "",
    )


def resting(released: Mapping[bytes, int], records: Iterable[Record]) -> dict[bytes, int]:
    """Return those of the released addresses that no record holds."""
    held = {address for record in records for address in record.addresses}
    return {address: at for address, at in released.items() if address not in held}


def record_of(row: tuple[Any, ...]) -> Record:
    """Return the attachment that a row of the table stands for; ValueError when it stands for none."""
    return Record(
        key=AttachmentKey(*row[:3]),
        netns=row[3],
        host_link=row[4],
        mac=row[5],
        mtu=row[6],
        addresses=tuple(address for address in row[7:9] if address is not None),
        pod_namespace=row[9],
        pod_name=row[10],
        pod_uid=row[11],
        state=State(row[12]),
        created=row[13],
        ports=ports.read(row[14]),
    )
