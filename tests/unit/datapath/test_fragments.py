"""The union of fragments, where the property test does not go."""

from __future__ import annotations

import pytest

from datapath.desired import Fragment, SetElements
from datapath.fragments import Fragments

TABLE, SET = (2, "weft"), (2, "weft", "s")


@pytest.mark.parametrize("before", [None, Fragment(elements=(SetElements(TABLE, "other", {b"x": b""}),))])
def test_of_a_set_that_a_fragment_names_twice_the_last_counts(before: Fragment | None) -> None:
    fragments = Fragments()
    if before is not None:
        fragments.replace(("k",), before)
    twice = (SetElements(TABLE, "s", {b"a": b""}), SetElements(TABLE, "s", {b"b": b""}))
    fragments.replace(("k",), Fragment(elements=twice))
    assert fragments.elements(SET) == {b"b": b""}
    fragments.replace(("k",), None)
    assert fragments.elements(SET) == {}
