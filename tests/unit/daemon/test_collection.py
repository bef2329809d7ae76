from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import pytest

from daemon import collection

if TYPE_CHECKING:
    from collections.abc import Iterator


class Thing:
    """Something that can be in a cycle."""


@pytest.fixture(autouse=True)
def _leave_the_collector_alone() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def test_thousands_of_values_bring_no_full_collection() -> None:
    collection.slow_down()
    gc.collect()
    before = gc.get_stats()[2]["collections"]
    kept = [(number,) for number in range(200_000)] + [[number] for number in range(200_000)]
    assert gc.get_stats()[2]["collections"] == before
    assert kept


def test_cycles_that_die_young_are_collected_without_being_asked() -> None:
    collection.slow_down()
    thing = Thing()
    thing.itself = thing  # type: ignore[attr-defined]
    gone = weakref.ref(thing)
    del thing
    kept = [[number] for number in range(2 * collection.THRESHOLDS[0])]
    assert gone() is None
    assert kept


def test_what_is_settled_is_walked_no_more() -> None:
    kept = [[number] for number in range(1000)]
    collection.settle()
    assert gc.get_freeze_count() >= len(kept)
