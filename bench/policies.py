"""NetworkPolicies inside the daemon: a node's first policy, one created, labels changed, memory.

From the text that a watch brings to the kernel, each size of cluster in a process and a namespace of its own,
in turn. Policies are created while pods change elsewhere. The node has a hundred pods, each isolated by its
share of the policies. The sizes can be given otherwise: `POLICIES=1000x10 python -m bench policies`.

Targets at 10,000 pods and 1,000 policies: created to enforced within 50 ms (p99), the first policy of a node
within 3 s, 5 ms of processor time for one pod's change of labels.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.tables import Table, percentile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROUNDS = 3
CREATE_SECONDS, FIRST_SECONDS, LABEL_SECONDS = 0.050, 3.0, 0.005
REMARK = (
    "first: no policy before, all pods' JSON decoded, without the server's time and the jitter; "
    "load: all policies at once"
)

Figures = dict[str, Any]


class Size(NamedTuple):
    """Pods of the cluster and policies in force on the node."""

    pods: int
    policies: int

    def __str__(self) -> str:
        return f"{self.pods:,} pods, {self.policies:,} policies"


SIZES = tuple(Size(pods, policies) for pods in (1000, 10_000) for policies in (10, 1000))


def sizes_wanted() -> tuple[Size, ...]:
    """Return the sizes to measure at: those of the environment variable POLICIES, if given."""
    given = os.environ.get("POLICIES", "")
    pairs = [each.partition("x") for each in given.split(",") if each]
    return tuple(Size(int(pods), int(policies)) for pods, _, policies in pairs) or SIZES


def run() -> Iterator[Table]:
    """Measure each size in turn."""
    sizes = sizes_wanted()
    rounds: dict[Size, list[Figures]] = {size: [] for size in sizes}
    for _ in range(ROUNDS):
        for size in sizes:
            rounds[size].append(_measured(size))
    yield costs(rounds)
    yield bounds(rounds[max(sizes)])


def _measured(size: Size) -> Figures:
    command = (sys.executable, "-m", "bench.policy_node", *map(str, size))
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def costs(rounds: Mapping[Size, Sequence[Figures]]) -> Table:
    """Return what everything costs, by size."""
    rows = []
    for size, figures in rounds.items():
        times = {what: _all(figures, what) for what in ("create", "remote", "resident")}
        rows.append(
            (
                str(size),
                *(f"{_median(figures, what):.2f}" for what in ("first", "load")),
                *(f"{1e3 * percentile(each, part):.1f}" for each in times.values() for part in (0.5, 0.99)),
                *(f"{1e3 * _median(figures, f'{what}_processor'):.2f}" for what in times),
                *(f"{_median(figures, what):.0f}" for what in ("memory_pods", "memory")),
            )
        )
    columns = (
        "",
        *("first s", "load s"),
        *("create p50 ms", "p99"),
        *("label elsewhere p50 ms", "p99"),
        *("label here p50 ms", "p99"),
        *("CPU: create ms", "label elsewhere", "label here"),
        *("MiB: pods", "and policies"),
    )
    return Table(f"policies in a daemon, medians of {ROUNDS} rounds", columns, tuple(rows), REMARK)


def bounds(figures: Sequence[Figures]) -> Table:
    """Return which bounds are kept."""
    rows = (
        _row("created to enforced, p99", percentile(_all(figures, "create"), 0.99), CREATE_SECONDS),
        _row("the first policy of a node", _median(figures, "first"), FIRST_SECONDS),
        _row("processor for a label elsewhere", _median(figures, "remote_processor"), LABEL_SECONDS),
        _row("processor for a label here", _median(figures, "resident_processor"), LABEL_SECONDS),
    )
    return Table("bounds", ("", "Weft", "bound", ""), rows)


def _row(what: str, value: float, bound: float) -> tuple[str, ...]:
    return (
        what,
        f"{1e3 * value:.2f} ms",
        f"<= {1e3 * bound:g} ms",
        "kept" if value <= bound else "BROKEN",
    )


def _median(figures: Sequence[Figures], what: str) -> float:
    return statistics.median(float(each[what]) for each in figures)


def _all(figures: Sequence[Figures], what: str) -> list[float]:
    return [float(seconds) for each in figures for seconds in each[what]]
