from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench.tables import comparison, in_turn, median_interval, percentile

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("part", "value"), [(0.0, 1), (0.1, 1), (0.11, 2), (0.5, 5), (0.95, 10), (0.99, 10), (1.0, 10)]
)
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(part: float, value: float) -> None:
    assert percentile([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], part) == value


@pytest.mark.parametrize(
    ("count", "interval"),
    # Ranks from tables of the sign test at 95 %.
    [(5, (1, 5)), (6, (1, 6)), (9, (2, 8)), (10, (2, 9)), (20, (6, 15)), (60, (22, 39))],
)
def test_the_interval_of_a_median_has_the_ranks_of_the_sign_test(
    count: int, interval: tuple[float, float]
) -> None:
    assert median_interval(list(range(count, 0, -1))) == interval


def test_more_confidence_makes_a_wider_interval() -> None:
    values = list(range(20))
    assert median_interval(values, 0.99)[0] < median_interval(values, 0.5)[0]


def test_variants_are_measured_in_rotating_order() -> None:
    order: list[str] = []

    def variant(name: str) -> Callable[[int], float]:
        def measure(number: int) -> float:
            order.append(name)
            return float(number)

        return measure

    assert in_turn({name: variant(name) for name in "abc"}, 2) == {name: [0.0, 1.0] for name in "abc"}
    assert "".join(order) == "abcbca"


def test_a_comparison_pairs_what_was_measured_in_the_same_round() -> None:
    table = comparison("t", {"few": [0.001, 0.002, 0.004], "many": [0.002, 0.004, 0.008]}, "few")
    assert table.rows[1] == ("many", "2.00", "4.00", "8.00", "2.00")
