"""How answers look: tables for people, JSON and YAML for programs. Knows messages, not what they mean.

JSON and YAML use the field names of proto/admin.proto in lowerCamelCase with every field present, numbers as
numbers and enumerations as lower-case words without their prefix; `source` says where the answer comes from.
rich and yaml are imported only by the format that needs them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from google.protobuf.message import Message

Format: TypeAlias = Literal["table", "wide", "json", "yaml"]
FORMATS: tuple[Format, ...] = ("table", "wide", "json", "yaml")
_UNLIMITED = 100_000
"""Columns of an output that is no terminal: nothing may be cut or wrapped there."""
_UNCOUNTED = 10**9
_CONTROL = {code: " " if code == 0x0A else None for code in (*range(0x20), *range(0x7F, 0xA0))}
"""Control characters are left out: names and messages from the cluster must not drive the terminal."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where an answer comes from.

    Attributes:
        kind: `daemon` when it answered, `node` when its files and the kernel were read instead.
        reason: why the daemon was not asked, empty when it was.
        age_seconds: how old the state is that was read; None when it is current.
    """

    kind: Literal["daemon", "node"] = "daemon"
    reason: str = ""
    age_seconds: float | None = None

    def plain(self) -> dict[str, Any]:
        """Gives the value of `source` in JSON."""
        if self.kind == "daemon":
            return {"kind": "daemon"}
        return {"kind": self.kind, "ageSeconds": self.age_seconds, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: its heading and how a row's cell reads.

    Attributes:
        title: heading in capitals.
        cell: renders a row.
        style: rich style of a row's cell, empty for none.
        wide: shown with `-o wide` only.
        right: aligned to the right (numbers).
    """

    title: str
    cell: Callable[[Any], str]
    style: Callable[[Any], str] = lambda _row: ""
    wide: bool = False
    right: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with their columns, and what to say when there are none."""

    columns: Sequence[Column]
    rows: Iterable[Any]
    empty: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What a command has to show.

    Attributes:
        message: the answer, for JSON and YAML.
        tables: the same for people, printed one below the other.
        source: where it comes from.
        failed: whether the answer holds something that must be looked at (exit code 1).
    """

    message: Message
    tables: Sequence[Table]
    source: Source = field(default_factory=Source)
    failed: bool = False


def plain(message: Message) -> dict[str, Any]:
    """Turns a message into plain values: every field present, numbers as numbers, enumerations as words."""
    return {item.json_name: _plain_field(message, item) for item in message.DESCRIPTOR.fields}


def _plain_field(message: Message, item: Any) -> Any:
    value = getattr(message, item.name)
    if item.message_type is not None:
        return [plain(each) for each in value] if item.is_repeated else plain(value)
    if item.enum_type is not None:
        return [_word(item, each) for each in value] if item.is_repeated else _word(item, value)
    return list(value) if item.is_repeated else value


def _word(item: Any, number: int) -> str:
    """Names an enumeration's value without the prefix: LEVEL_WARNING of Level is `warning`."""
    kind = item.enum_type
    value = kind.values_by_number.get(number)
    return value.name.removeprefix(f"{kind.name.upper()}_").lower() if value else str(number)


def age(seconds: float) -> str:
    """Renders a duration as people say it: `4s`, `3m10s`, `5h02m`, `12d`."""
    total = max(0, int(seconds))
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m{total % 60:02}s"
    if total < 48 * 3600:
        return f"{total // 3600}h{total % 3600 // 60:02}m"
    return f"{total // 86400}d"


def count(value: int) -> str:
    """Renders a number of addresses; that of an IPv6 pool, which nobody counts, to two digits: `1.8e19`."""
    return str(value) if value < _UNCOUNTED else f"{value:.1e}".replace("e+", "e")


def write(report: Report, form: Format, stream: IO[str] | None = None, *, compact: bool = False) -> None:
    """Prints a report.

    Args:
        report: what to print.
        form: how.
        stream: where to; standard output by default.
        compact: JSON on one line and YAML as separate documents, for `--watch`.
    """
    target = stream or sys.stdout
    if form == "json":
        data = {"source": report.source.plain(), **plain(report.message)}
        target.write(json.dumps(data, indent=None if compact else 2, ensure_ascii=False) + "\n")
    elif form == "yaml":
        import yaml

        data = {"source": report.source.plain(), **plain(report.message)}
        target.write(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, explicit_start=compact))
    else:
        _write_tables(report, target, wide=form == "wide")
    target.flush()


def write_line(message: Message, form: Format, stream: IO[str] | None = None) -> None:
    """Prints one of many messages at once: a line of JSON, or a document of YAML."""
    target = stream or sys.stdout
    if form == "yaml":
        import yaml

        target.write(yaml.safe_dump(plain(message), sort_keys=False, allow_unicode=True, explicit_start=True))
    else:
        target.write(json.dumps(plain(message), ensure_ascii=False) + "\n")
    target.flush()


def printable(words: str) -> str:
    """Leaves out what could drive the terminal."""
    return words.translate(_CONTROL)


def _write_tables(report: Report, target: IO[str], *, wide: bool) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(file=target, highlight=False, soft_wrap=False, emoji=False, markup=False)
    if not console.is_terminal:
        console = Console(
            file=target, width=_UNLIMITED, color_system=None, highlight=False, emoji=False, markup=False
        )
    for number, table in enumerate(report.tables):
        rows = list(table.rows)
        if not rows and not table.empty:
            continue
        if number:
            console.print()
        if not rows:
            console.print(Text(table.empty))
            continue
        columns = [column for column in table.columns if wide or not column.wide]
        shown = RichTable(
            box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False
        )
        shown.show_header = any(column.title for column in columns)
        for column in columns:
            shown.add_column(Text(column.title), justify="right" if column.right else "left", overflow="fold")
        for row in rows:
            shown.add_row(*(_cell(column, row) for column in columns))
        _print_trimmed(console, shown)


def _cell(column: Column, row: Any) -> Any:
    from rich.text import Text

    return Text(column.cell(row).translate(_CONTROL) or "-", style=column.style(row))


def _print_trimmed(console: Any, shown: Any) -> None:
    """Prints a table; without the blanks that pad the last column when the output is a file or a pipe."""
    if console.is_terminal:
        console.print(shown)
        return
    with console.capture() as captured:
        console.print(shown)
    console.file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
