"""Shared sets: kept while used, elements counted, changes told once."""

from __future__ import annotations

import pytest

from daemon.compile.policy_sets import SharedSets


@pytest.fixture
def sets() -> SharedSets[str, int]:
    return SharedSets()


def test_a_set_is_new_once_and_gone_with_its_last_user(sets: SharedSets[str, int]) -> None:
    first = sets.acquire("a", "scope")
    assert first is not None
    assert sets.acquire("a", "scope") is None
    assert sets.release("a") is None
    assert "a" in sets
    assert sets.release("a") is first
    assert dict(sets) == {}


def test_an_element_stays_until_the_last_one_that_put_it_in_is_gone(sets: SharedSets[str, int]) -> None:
    one = sets.acquire("a", "")
    assert one is not None
    sets.add(one, [1, 2])
    sets.add(one, [1])
    assert sets["a"] == {1: 2, 2: 1}
    sets.remove(one, [1, 2])
    assert sets["a"] == {1: 1}
    with pytest.raises(KeyError):
        sets.remove(one, [2])


def test_what_was_touched_is_told_once(sets: SharedSets[str, int]) -> None:
    one = sets.acquire("a", "")
    assert one is not None
    assert sets.take() == {"a": set()}
    sets.add(one, [1, 2])
    assert sets.take() == {"a": {1, 2}}
    assert sets.take() == {}
    sets.add(one, [1])
    sets.remove(one, [1])
    assert sets.take() == {}
    sets.release("a")
    assert sets.take() == {"a": {1, 2}}
