"""What benches have in common: pairs measured in turn, medians, tables of text."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Table:
    """A title, column heads, rows of text and an optional remark."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    remark: str = ""


def in_turn(variants: Mapping[str, Callable[[int], float]], rounds: int) -> dict[str, list[float]]:
    """Call each variant once a round, in an order that rotates, and return what they return (seconds).

    What else happens on the machine then meets all variants alike, and their ratio in one round means
    something. Garbage is collected meanwhile, as it is in the daemon.
    """
    names = list(variants)
    measured: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            measured[name].append(variants[name](number))
    return measured


def ratio(measured: Mapping[str, Sequence[float]], name: str, base: str) -> float:
    """Return the median over all rounds of `name` divided by `base` in the same round."""
    pairs = zip(measured[name], measured[base], strict=True)
    return statistics.median(one / other for one, other in pairs)


def percentile(values: Sequence[float], part: float) -> float:
    """Return the smallest value that at least this part (0 to 1) of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return an interval that holds the median with at least this confidence, whatever the distribution.

    By order statistics: how many of n values lie below the median is binomial. With too few values it is the
    whole range.
    """
    ordered, count = sorted(values), len(values)
    outside, place = 0.0, 0
    while place < count // 2:
        outside += 2 * math.comb(count, place) / 2**count
        if outside > 1 - confidence:
            break
        place += 1
    low = max(0, place - 1)
    return ordered[low], ordered[count - 1 - low]


def comparison(
    title: str,
    measured: Mapping[str, Sequence[float]],
    base: str,
    *,
    unit: float = 1e-3,
    unit_name: str = "ms",
    remark: str = "",
) -> Table:
    """Return a table with minimum, median and 95th percentile of each variant and its ratio to `base`."""
    rows = []
    for name, values in measured.items():
        ordered = sorted(values)
        late = percentile(ordered, 0.95)
        figures = (ordered[0], statistics.median(ordered), late)
        rows.append(
            (name, *(f"{value / unit:.2f}" for value in figures), f"{ratio(measured, name, base):.2f}")
        )
    columns = ("", f"min {unit_name}", f"median {unit_name}", f"p95 {unit_name}", f"to {base}")
    return Table(title, columns, tuple(rows), remark)


def render(table: Table) -> str:
    """Return the table as aligned text: the first column to the left, figures to the right."""
    lines = (table.columns, *table.rows)
    widths = [max(len(line[place]) for line in lines) for place in range(len(table.columns))]
    text = [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    rule = "-" * max(map(len, text))
    return "\n".join(("", table.title, rule, text[0], rule, *text[1:], rule, *filter(None, (table.remark,))))
