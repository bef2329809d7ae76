"""The versions of the state database's schema, and the way from each to the next.

Every database is made by all steps in order, so a new one and one that was brought forward are alike. A step
that was released is never changed: its text is what is on nodes. A newer database than this code knows is
refused and left untouched. Knows no rows but by SQL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ipam.errors import UnreadableStoreError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    Step = tuple[str, ...]

STEPS: Final[Sequence[Step]] = (
    (
        "CREATE TABLE boot (id TEXT NOT NULL) STRICT",
        """CREATE TABLE attachments (
        network TEXT NOT NULL, container_id TEXT NOT NULL, ifname TEXT NOT NULL,
        netns TEXT NOT NULL, host_link TEXT NOT NULL UNIQUE,
        mac BLOB NOT NULL CHECK (length(mac) = 6), mtu INTEGER NOT NULL,
        address4 BLOB UNIQUE CHECK (length(address4) = 4), address6 BLOB UNIQUE CHECK (length(address6) = 16),
        pod_namespace TEXT NOT NULL, pod_name TEXT NOT NULL, pod_uid TEXT NOT NULL,
        state INTEGER NOT NULL, created REAL NOT NULL,
        PRIMARY KEY (network, container_id, ifname)) STRICT, WITHOUT ROWID""",
        """CREATE TABLE released (
        position INTEGER PRIMARY KEY, address BLOB NOT NULL UNIQUE, at INTEGER NOT NULL) STRICT""",
    ),
    ("ALTER TABLE attachments ADD COLUMN ports TEXT NOT NULL DEFAULT ''",),
)
"""Statements that bring a database from one version to the next; the first step makes version 1."""

SCHEMA: Final = len(STEPS)


class NewerSchemaError(UnreadableStoreError):
    """The database was written by a newer Weft; the message names both versions."""


def version(database: sqlite3.Connection) -> int:
    """Return the version of a database's schema; 0 for an empty one."""
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def upgrade(database: sqlite3.Connection, steps: Sequence[Step] = STEPS) -> int:
    """Bring a database to the newest version, in one transaction: whoever dies meanwhile changed nothing.

    Args:
        database: in autocommit mode.
        steps: all of them, the first one included.

    Returns:
        The version that was found.

    Raises:
        NewerSchemaError: it is newer than the steps lead to.
        sqlite3.Error: a step failed, and the database is as it was.
    """
    found = version(database)
    if found > len(steps):
        raise NewerSchemaError(
            f"its schema is version {found} and this Weft knows {len(steps)}: a newer Weft wrote it"
        )
    if found == len(steps):
        return found
    database.execute("BEGIN IMMEDIATE")
    try:
        for step in steps[found:]:
            for statement in step:
                database.execute(statement)
        database.execute(f"PRAGMA user_version={len(steps)}")
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
    return found
