"""Disjoint ranges: the same keys, no overlap, whatever goes in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from datapath.nft.elements import Range, disjoint, prefix

KEYS = 40
numbers = st.integers(0, KEYS - 1)
ranges = st.tuples(numbers, numbers).map(lambda pair: Range(bytes([min(pair)]), bytes([max(pair)])))
prefixes = st.tuples(st.binary(min_size=1, max_size=1), st.integers(0, 8)).map(lambda pair: prefix(*pair))


def keys(values: tuple[Range, ...] | list[Range]) -> list[int]:
    return sorted(number for each in values for number in range(each.first[0], each.last[0] + 1))


@given(st.lists(ranges))
def test_the_keys_are_the_same_and_each_is_there_once(values: list[Range]) -> None:
    found = disjoint(values)
    assert keys(found) == sorted(set(keys(values)))
    assert list(found) == sorted(found)


@given(st.lists(ranges))
def test_order_and_repetition_do_not_matter(values: list[Range]) -> None:
    assert disjoint([*reversed(values), *values]) == disjoint(values) == disjoint(disjoint(values))


@given(st.lists(prefixes))
def test_prefixes_are_kept_whole_or_swallowed(values: list[Range]) -> None:
    """One prefix more or less changes few elements: none is ever cut."""
    assert set(disjoint(values)) <= set(values)


@given(st.lists(prefixes), prefixes)
def test_one_prefix_more_adds_at_most_one_element(values: list[Range], more: Range) -> None:
    before, after = set(disjoint(values)), set(disjoint([*values, more]))
    assert len(after - before) <= 1
