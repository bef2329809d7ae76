"""Services inside the daemon: the first load, one change, a resync that finds nothing, repair after a flush.

From decoded objects to the kernel, each number of Services in a process and a namespace of its own, in turn.
The counts can be given otherwise: `SERVICES=100,30000 python -m bench service-changes`.

Targets: a change costs at 10,000 Services at most twice what it costs at 100; everything is repaired within
1 s up to 1,000 Services and within 5 s at 30,000.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from bench.service_objects import ENDPOINTS
from bench.tables import Table, percentile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

COUNTS, ROUNDS = (100, 1000, 10_000, 30_000), 3
REPAIR_BOUNDS = ((1000, 1.0), (30_000, 5.0))
"""Up to so many Services, within so many seconds."""
CHANGE_BOUND = 2.0

Figures = dict[str, Any]


def counts_wanted(default: Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of Services to measure at: those of the environment variable SERVICES, if given."""
    given = os.environ.get("SERVICES", "")
    return tuple(int(each) for each in given.split(",")) if given else tuple(default)


def run() -> Iterator[Table]:
    """Measure each number of Services in turn."""
    counts = counts_wanted(COUNTS)
    rounds: dict[int, list[Figures]] = {count: [] for count in counts}
    for _ in range(ROUNDS):
        for count in counts:
            rounds[count].append(_measured(count))
    yield costs(rounds)
    yield bounds(rounds)


def _measured(count: int) -> Figures:
    command = (sys.executable, "-m", "bench.service_node", str(count))
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def costs(rounds: Mapping[int, Sequence[Figures]]) -> Table:
    """Return what everything costs, by number of Services."""
    rows = []
    for count, figures in rounds.items():
        changes, additions, resyncs = (
            [seconds for each in figures for seconds in each[what]] for what in ("change", "add", "resync")
        )
        rows.append(
            (
                str(count),
                *(f"{_median(figures, what):.2f}" for what in ("decode", "compile", "load", "repair")),
                *(f"{1e3 * percentile(changes, part):.2f}" for part in (0.5, 0.99)),
                *(f"{1e3 * percentile(additions, part):.2f}" for part in (0.5, 0.99)),
                f"{1e3 * statistics.median(resyncs):.1f}",
                f"{_median(figures, 'load_processor'):.2f}",
                f"{1e3 * _median(figures, 'change_processor'):.2f}",
                f"{_median(figures, 'memory'):.0f}",
            )
        )
    return Table(
        f"Services with {ENDPOINTS} endpoints each, medians of {ROUNDS} rounds",
        (
            "Services",
            "decode s",
            "compile s",
            "load s",
            "repair s",
            "change p50 ms",
            "p99",
            "add p50 ms",
            "p99",
            "resync ms",
            "CPU: load s",
            "change ms",
            "memory MiB",
        ),
        tuple(rows),
        "load: compile included; repair: from the flush until all is back, unnoticed time included",
    )


def bounds(rounds: Mapping[int, Sequence[Figures]]) -> Table:
    """Return which bounds are kept."""
    rows = []
    first = min(rounds)
    base = _median_change(rounds[first])
    for count, figures in rounds.items():
        if count != first:
            ratio = _median_change(figures) / base
            rows.append(_row(f"a change at {count} to one at {first}", ratio, CHANGE_BOUND, ""))
        bound = next((seconds for most, seconds in REPAIR_BOUNDS if count <= most), None)
        if bound is not None:
            rows.append(_row(f"repair at {count}", _median(figures, "repair"), bound, " s"))
    return Table("bounds", ("", "Weft", "bound", ""), tuple(rows))


def _row(what: str, value: float, bound: float, unit: str) -> tuple[str, ...]:
    return what, f"{value:.2f}{unit}", f"<= {bound:g}{unit}", "kept" if value <= bound else "BROKEN"


def _median(figures: Sequence[Figures], what: str) -> float:
    return statistics.median(float(each[what]) for each in figures)


def _median_change(figures: Sequence[Figures]) -> float:
    return statistics.median(float(seconds) for each in figures for seconds in each["change"])
