"""What an operator must know: named conditions that hold now, each with its remedy.

A finding is reported while it holds and cleared when it is over; reporting it again unchanged does nothing.
Each change becomes a log line and goes to the listeners (events, metrics); `rows` is what `weftctl status`
shows. Owns no checks: those who notice something report it. For use on the event loop's thread only.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

Level: TypeAlias = Literal["ok", "warning", "error"]
LEVELS: tuple[Level, ...] = ("error", "warning", "ok")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Finding:
    """One row.

    Attributes:
        name: stable identifier in CamelCase, e.g. "RivalConflist"; also the reason of its event.
        level: "error" when something does not work, "warning" when it may soon not or only in part.
        message: what happened and what to do.
        key: tells findings of one name apart, e.g. a node's name; empty when there can be only one.
    """

    name: str
    level: Level
    message: str
    key: str = ""


class Findings:
    """All findings that hold now."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], Finding] = {}
        self._counts: Counter[tuple[str, Level]] = Counter()
        self._listeners: list[Callable[[Finding, bool], None]] = []

    def listen(self, listener: Callable[[Finding, bool], None]) -> None:
        """Have `listener(finding, holds)` called at each change; told at once of what holds already."""
        self._listeners.append(listener)
        for finding in self._rows.values():
            listener(finding, True)

    def report(self, name: str, level: Level, message: str, *, key: str = "") -> None:
        """Say that a finding holds; nothing happens when it is known with this level and message."""
        finding = Finding(name, level, message, key)
        known = self._rows.get((name, key))
        if known == finding:
            return
        if known is not None:
            self._counts[name, known.level] -= 1
        self._counts[name, level] += 1
        self._rows[name, key] = finding
        (log.error if level == "error" else log.warning if level == "warning" else log.info)(
            message, finding=name, **({"key": key} if key else {})
        )
        for listener in self._listeners:
            listener(finding, True)

    def clear(self, name: str, *, key: str = "") -> None:
        """Say that a finding holds no more; nothing happens when it did not."""
        finding = self._rows.pop((name, key), None)
        if finding is None:
            return
        self._counts[name, finding.level] -= 1
        log.info("resolved", was=finding.message, finding=name, **({"key": key} if key else {}))
        for listener in self._listeners:
            listener(finding, False)

    def replace(self, names: Collection[str], findings: Iterable[Finding]) -> None:
        """Make `findings` all that holds under these names: report them, clear the others."""
        wanted = {(finding.name, finding.key): finding for finding in findings}
        for name, key in [known for known in self._rows if known[0] in names and known not in wanted]:
            self.clear(name, key=key)
        for finding in wanted.values():
            self.report(finding.name, finding.level, finding.message, key=finding.key)

    def count(self, name: str, level: Level) -> int:
        """How many findings hold under a name at a level."""
        return self._counts[name, level]

    def rows(self) -> tuple[Finding, ...]:
        """What holds now, errors first, then by name and key."""
        return tuple(
            sorted(self._rows.values(), key=lambda row: (LEVELS.index(row.level), row.name, row.key))
        )
