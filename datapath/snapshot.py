"""The desired state on disk, so that kernel and desired state can be compared while the daemon is down.

Nothing in the daemon reads it back: at its start it compiles everything anew. Attachments are not in it,
IPAM's database has them. Written some seconds late, as nobody waits for it; each fragment is a row, so a
change costs what it touches. The file's time is renewed while the daemon lives: its age is that of the
desired state.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import json
import operator
import os
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from datapath import desired
from datapath.desired import Fragment
from datapath.errors import DatapathError
from datapath.nft import rules

if TYPE_CHECKING:
    from collections.abc import Callable

    from datapath.desired import Address, FragmentKey

SCHEMA = 1
FIRST_SECONDS = 0.1
"""How soon after the start something is written: what is there by then is of an earlier process."""
WRITE_SECONDS = 2.0
PIECE = 20
"""Fragments that are encoded in one go: half a millisecond in which the other threads wait."""
_BREATH_SECONDS = 0.0002
_FACT = "INSERT OR REPLACE INTO facts VALUES (?,?)"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_CLASSES = {
    name: value
    for module in (desired, rules)
    for name, value in vars(module).items()
    if isinstance(value, type) and (dataclasses.is_dataclass(value) or issubclass(value, enum.Enum))
}
"""What may stand in a snapshot, by name."""
_GETTERS: dict[type[Any], Callable[[Any], tuple[Any, ...]]] = {}


class SnapshotError(DatapathError):
    """There is no snapshot, or it can't be used; the message says which."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was desired.

    Attributes:
        fragments: of all but attachments.
        sources: the node's address per family, preferred source towards pods.
        age_seconds: since the daemon that wrote it was last alive.
    """

    fragments: Mapping[FragmentKey, Fragment]
    sources: tuple[Address, ...]
    age_seconds: float


class Recorder:
    """Keeps the file; `run` is a task that never ends."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._all: dict[FragmentKey, Fragment] = {}
        self._changes: dict[FragmentKey, Fragment | None] = {}
        self._sources: tuple[Address, ...] = ()
        self._begun = False

    def record(self, changes: Mapping[FragmentKey, Fragment | None], sources: tuple[Address, ...]) -> None:
        """Take in what was applied; the first call must bring everything that is desired."""
        for key, fragment in changes.items():
            if fragment is None:
                self._all.pop(key, None)
            else:
                self._all[key] = fragment
        self._changes.update(changes)
        self._sources = sources

    async def run(self) -> None:
        """Write what was recorded, now and then, until cancelled; and a last time then."""
        try:
            while True:
                await asyncio.sleep(WRITE_SECONDS if self._begun else FIRST_SECONDS)
                await self._write()
        finally:
            # Losing it costs an accurate answer of weftctl, nothing else.
            with suppress(SnapshotError):
                self._keep(self._changes, self._sources)

    async def _write(self) -> None:
        if self._begun:
            try:
                os.utime(self.path)
            except OSError:
                # Somebody removed it: begin anew.
                self._begun = False
                self._changes = dict(self._all)
        changes, self._changes = self._changes, {}
        try:
            await asyncio.to_thread(self._keep, changes, self._sources)
        except SnapshotError:
            self._changes = {**changes, **self._changes}

    def _keep(self, changes: Mapping[FragmentKey, Fragment | None], sources: tuple[Address, ...]) -> None:
        """Write changes in one transaction: who is killed meanwhile leaves what was there before.

        Raises:
            SnapshotError: they can't be written.
        """
        if not changes:
            return
        # The first ones are all there are: a file of their own takes the place of an earlier process's.
        path = self.path if self._begun else f"{self.path}.new"
        try:
            if not self._begun:
                _make(path)
            with closing(sqlite3.connect(path, isolation_level=None, timeout=1)) as database:
                database.execute("PRAGMA synchronous=OFF")
                database.execute("BEGIN")
                database.execute(_FACT, ("sources", json.dumps(_plain(sources))))
                for number, (key, fragment) in enumerate(changes.items()):
                    if fragment is None:
                        database.execute("DELETE FROM fragments WHERE key=?", (json.dumps(key),))
                    else:
                        database.execute(
                            "INSERT OR REPLACE INTO fragments VALUES (?,?)",
                            (json.dumps(key), encode(fragment)),
                        )
                    if number % PIECE == PIECE - 1:
                        time.sleep(_BREATH_SECONDS)
                database.execute("COMMIT")
            if not self._begun:
                os.replace(path, self.path)
                self._begun = True
        except (OSError, sqlite3.Error) as error:
            raise SnapshotError(f"{path} can't be written: {error}") from error


def _make(path: str) -> None:
    """Make an empty file at `path`, for the owner alone. Raises OSError or sqlite3.Error."""
    for suffix in ("", "-journal"):
        with suppress(FileNotFoundError):
            os.unlink(path + suffix)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT")
        database.execute("CREATE TABLE fragments (key TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT")
        database.execute(_FACT, ("boot", _boot_id()))
        database.execute(f"PRAGMA user_version={SCHEMA}")


def read(path: str) -> Snapshot:
    """Read a snapshot of this boot.

    Raises:
        SnapshotError: there is none, it is of another boot, or it can't be read.
    """
    if not os.path.exists(path):
        raise SnapshotError(
            f"there is no record of the desired state at {path}: Weft has not run since the boot"
        )
    try:
        with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=1)) as database:
            return _read(database, max(0.0, time.time() - os.stat(path).st_mtime))
    except (sqlite3.Error, ValueError, LookupError, TypeError) as error:
        raise SnapshotError(f"{path} can't be read: {error}") from error


def _read(database: sqlite3.Connection, age: float) -> Snapshot:
    database.execute("BEGIN")
    version = int(database.execute("PRAGMA user_version").fetchone()[0])
    if version == 0:
        raise ValueError("the daemon is just beginning it; try again")
    if version != SCHEMA:
        raise ValueError(f"its schema is version {version}, this program knows {SCHEMA}")
    facts = dict(database.execute("SELECT name, value FROM facts"))
    if facts["boot"] != _boot_id():
        raise ValueError("it is of another boot, and nothing of it is left in the kernel")
    fragments = {
        tuple(json.loads(key)): decode(body)
        for key, body in database.execute("SELECT key, body FROM fragments")
    }
    return Snapshot(fragments, _value(json.loads(facts["sources"])), age)


def _boot_id() -> str:
    with open(_BOOT_ID, encoding="ascii") as file:
        return file.read().strip()


def encode(fragment: Fragment) -> str:
    """Return a fragment as text."""
    return json.dumps(_plain(fragment), separators=(",", ":"))


def decode(body: str) -> Fragment:
    """Return the fragment of a text. Raises ValueError, LookupError or TypeError when it is none."""
    value = _value(json.loads(body))
    if not isinstance(value, Fragment):
        raise TypeError("a row holds no fragment")
    return value


def _plain(value: Any) -> Any:
    """Turn values into what JSON knows: lists are tuples, objects say what else they are."""
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, bytes):
        return {"b": value.hex()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return {"m": [[_plain(key), _plain(each)] for key, each in value.items()]}
    if isinstance(value, enum.Enum):
        return {"c": type(value).__name__, "v": value.value}
    return {"c": type(value).__name__, "f": [_plain(each) for each in _getter(type(value))(value)]}


def _value(plain: Any) -> Any:
    if isinstance(plain, list):
        return tuple(_value(each) for each in plain)
    if not isinstance(plain, dict):
        return plain
    if "b" in plain:
        return bytes.fromhex(plain["b"])
    if "m" in plain:
        return {_value(key): _value(each) for key, each in plain["m"]}
    kind: Any = _CLASSES[plain["c"]]
    return kind(plain["v"]) if "v" in plain else kind(*map(_value, plain["f"]))


def _getter(kind: type[Any]) -> Callable[[Any], tuple[Any, ...]]:
    """Return what gets the fields of a class in their order, as a tuple."""
    getter = _GETTERS.get(kind)
    if getter is None:
        names = [each.name for each in dataclasses.fields(kind)]
        several = len(names) > 1
        getter = (
            operator.attrgetter(*names)
            if several
            else lambda value: tuple(getattr(value, each) for each in names)
        )
        _GETTERS[kind] = getter
    return getter
