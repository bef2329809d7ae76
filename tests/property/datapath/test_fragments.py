"""What is desired depends on the fragments that are there, not on how they came."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from datapath.desired import Fragment, Neighbour, SetElements
from datapath.fragments import Fragments

NAMES = [("attachment", "x"), ("local",), ("node", "a"), ("node", "b")]
TABLE = (2, "weft")


def fragments() -> st.SearchStrategy[Fragment | None]:
    neighbours = st.builds(
        Neighbour, st.just("weft.vxlan"), st.sampled_from([b"a", b"b", b"c"]), st.sampled_from([b"1", b"2"])
    )
    elements = st.dictionaries(
        st.sampled_from([b"k", b"l", b"m"]), st.sampled_from([b"", b"1", b"2"]), max_size=3
    )
    sets = st.builds(SetElements, st.just(TABLE), st.sampled_from(["s", "t"]), elements)
    return st.none() | st.builds(
        Fragment,
        objects=st.lists(neighbours, max_size=3, unique_by=lambda value: value.key).map(tuple),
        elements=st.lists(sets, max_size=2, unique_by=lambda value: value.key).map(tuple),
    )


Changes = st.lists(st.tuples(st.sampled_from(NAMES), fragments()), max_size=12)


def state(union: Fragments) -> tuple[object, ...]:
    sets = {key: dict(elements) for key, elements in union.sets().items() if elements}
    return dict(union.objects), sets, dict(union.items())


@settings(max_examples=150)
@given(changes=Changes)
def test_the_way_does_not_matter(changes: list[tuple[tuple[str, ...], Fragment | None]]) -> None:
    walked = Fragments()
    for key, fragment in changes:
        walked.replace(key, fragment)
    final = dict(changes)
    direct = Fragments()
    for key in sorted(final):
        direct.replace(key, final[key])
    assert state(walked) == state(direct)


@settings(max_examples=150)
@given(changes=Changes)
def test_what_changed_is_among_what_was_touched(
    changes: list[tuple[tuple[str, ...], Fragment | None]],
) -> None:
    union = Fragments()
    for key, fragment in changes:
        before, sets = dict(union.objects), {name: dict(found) for name, found in union.sets().items()}
        touched = union.replace(key, fragment)
        changed = {
            name
            for name in before.keys() | union.objects.keys()
            if before.get(name) != union.objects.get(name)
        }
        assert changed <= touched.objects
        for name, found in union.sets().items():
            old = sets.get(name, {})
            different = {each for each in old.keys() | found.keys() if old.get(each) != found.get(each)}
            assert different <= touched.elements.get(name, set())


@given(changes=Changes)
def test_nothing_is_left_when_all_have_gone(changes: list[tuple[tuple[str, ...], Fragment | None]]) -> None:
    union = Fragments()
    for key, fragment in changes:
        union.replace(key, fragment)
    for key in NAMES:
        union.replace(key, None)
    assert state(union) == ({}, {}, {})
    assert union.contested() == ()
