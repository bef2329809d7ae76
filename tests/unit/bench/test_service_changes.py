from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench import service_changes

if TYPE_CHECKING:
    import pytest


def _figures(change: float, repair: float) -> dict[str, Any]:
    return {
        "decode": 0.1,
        "compile": 0.2,
        "load": 0.3,
        "memory": 4.0,
        "repair": repair,
        "change": [change] * 100,
        "add": [change],
        "resync": [0.001],
        "load_processor": 0.25,
        "change_processor": 0.0005,
    }


def test_the_bounds_tell_what_grew_too_much_and_what_came_back_too_late() -> None:
    rounds = {
        100: [_figures(0.001, 0.5)],
        1000: [_figures(0.0015, 1.5)],
        30_000: [_figures(0.0025, 4.0)],
    }
    verdicts = {row[0]: row[-1] for row in service_changes.bounds(rounds).rows}
    assert verdicts == {
        "repair at 100": "kept",
        "a change at 1000 to one at 100": "kept",
        "repair at 1000": "BROKEN",
        "a change at 30000 to one at 100": "BROKEN",
        "repair at 30000": "kept",
    }


def test_costs_has_a_line_for_each_number_of_services() -> None:
    table = service_changes.costs({100: [_figures(0.001, 0.5)], 1000: [_figures(0.002, 0.6)]})
    assert [row[0] for row in table.rows] == ["100", "1000"]
    assert table.rows[1] == (
        *("1000", "0.10", "0.20", "0.30", "0.60"),
        *("2.00", "2.00", "2.00", "2.00", "1.0", "0.25", "0.50", "4"),
    )


def test_the_counts_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERVICES", raising=False)
    assert service_changes.counts_wanted((1, 2)) == (1, 2)
    monkeypatch.setenv("SERVICES", "100,30000")
    assert service_changes.counts_wanted((1, 2)) == (100, 30_000)
