from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench import policies
from bench.policies import Size

if TYPE_CHECKING:
    import pytest


def _figures(create: float, label: float) -> dict[str, Any]:
    return {
        "first": 0.4,
        "load": 1.0,
        "create": [0.01] * 99 + [create, create],
        "remote": [0.001],
        "resident": [0.002],
        "create_processor": 0.02,
        "remote_processor": label,
        "resident_processor": 0.003,
        "memory_pods": 9.0,
        "memory": 40.0,
    }


def test_the_bounds_tell_what_was_too_late_or_took_too_much() -> None:
    verdicts = {row[0]: row[-1] for row in policies.bounds([_figures(0.06, 0.001)]).rows}
    assert verdicts == {
        "created to enforced, p99": "BROKEN",
        "the first policy of a node": "kept",
        "processor for a label elsewhere": "kept",
        "processor for a label here": "kept",
    }
    verdicts = {row[0]: row[-1] for row in policies.bounds([_figures(0.04, 0.006)]).rows}
    assert verdicts["created to enforced, p99"] == "kept"
    assert verdicts["processor for a label elsewhere"] == "BROKEN"


def test_costs_has_a_line_for_each_size() -> None:
    table = policies.costs({Size(1000, 10): [_figures(0.04, 0.001)]})
    assert table.rows == (
        (
            *("1,000 pods, 10 policies", "0.40", "1.00", "10.0", "40.0", "1.0", "1.0", "2.0", "2.0"),
            *("20.00", "1.00", "3.00", "9", "40"),
        ),
    )
    assert len(table.columns) == len(table.rows[0])


def test_the_sizes_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POLICIES", raising=False)
    assert policies.sizes_wanted() == policies.SIZES
    monkeypatch.setenv("POLICIES", "1000x10,2000x5")
    assert policies.sizes_wanted() == (Size(1000, 10), Size(2000, 5))
