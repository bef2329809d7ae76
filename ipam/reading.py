"""Reads the database of another process, or of a daemon that does not run. Changes nothing, locks nobody out.

For weftctl. What is of another boot is void and not returned, as the daemon itself will treat it.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from ipam.errors import StoreError
from ipam.pool import Usage
from ipam.schema import SCHEMA, version
from ipam.store import RELEASED, boot_id, record_of, resting

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ipam.pool import Pool
    from ipam.record import Record

_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Reading:
    """What the database held.

    Attributes:
        records: all attachments, oldest first.
        released: released addresses and when (nanoseconds of CLOCK_BOOTTIME), released first comes first.
        age_seconds: since the database was written last.
    """

    records: tuple[Record, ...]
    released: Mapping[bytes, int]
    age_seconds: float

    def usage(self, pools: Iterable[Pool], *, now: int, cooldown: float = 30.0) -> tuple[Usage, ...]:
        """Return each pool's figures; `now` in nanoseconds of CLOCK_BOOTTIME."""
        held = [address for record in self.records for address in record.addresses]
        resting = [address for address, at in self.released.items() if now - at < cooldown * _SECOND]
        return tuple(
            Usage(pool, pool.size, sum(map(pool.hands_out, held)), sum(map(pool.hands_out, resting)))
            for pool in pools
        )


def read(path: str, *, boot: str | None = None) -> Reading:
    """Read the database at `path`; one of another boot holds nothing.

    Raises:
        StoreError: there is none, or it can't be read; the message says which.
    """
    if not os.path.exists(path):
        raise StoreError(
            f"there is no state database at {path}: Weft has not run on this node since it booted"
        )
    try:
        with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=1)) as database:
            return _read(database, path, boot_id() if boot is None else boot)
    except (sqlite3.Error, ValueError) as error:
        raise StoreError(f"{path} can't be read: {error}") from error


def _read(database: sqlite3.Connection, path: str, boot: str) -> Reading:
    database.execute("BEGIN")
    found = version(database)
    if found != SCHEMA:
        raise ValueError(
            f"its schema is version {found}, this weftctl knows {SCHEMA}: use that of the daemon"
        )
    age = _age(path)
    if database.execute("SELECT id FROM boot").fetchone() != (boot,):
        return Reading((), {}, age)
    rows = database.execute("SELECT * FROM attachments ORDER BY created").fetchall()
    records = tuple(map(record_of, rows))
    return Reading(records, resting(dict(database.execute(RELEASED)), records), age)


def _age(path: str) -> float:
    written = 0.0
    for suffix in ("", "-wal"):
        with suppress(FileNotFoundError):
            written = max(written, os.stat(path + suffix).st_mtime)
    return max(0.0, time.time() - written)
