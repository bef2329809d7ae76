"""Selectors: what each operator selects, equal meanings are equal values, groups, and finding by label."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from daemon.cluster.selectors import (
    EVERYTHING,
    Groups,
    Operator,
    Requirement,
    Selector,
    Selectors,
    labels,
    selector,
)

if TYPE_CHECKING:
    from daemon.cluster.selectors import LabelSet


def requirement(text: str) -> Requirement:
    """From `KEY OPERATOR[ VALUE...]`."""
    key, operator, *values = text.split()
    return Requirement(key, Operator(operator), tuple(values))


def select(*texts: str) -> Selector:
    return selector(*map(requirement, texts))


@pytest.mark.parametrize(
    ("text", "pairs", "selected"),
    [
        ("app In web db", {"app": "db"}, True),
        ("app In web db", {"app": "other"}, False),
        ("app In web", {}, False),
        ("app NotIn web", {"app": "db"}, True),
        ("app NotIn web", {"app": "web"}, False),
        ("app NotIn web", {"tier": "web"}, True),
        ("app Exists", {"app": ""}, True),
        ("app Exists", {"tier": "x"}, False),
        ("app DoesNotExist", {"tier": "x"}, True),
        ("app DoesNotExist", {"app": ""}, False),
    ],
)
def test_operators(text: str, pairs: dict[str, str], selected: bool) -> None:
    assert select(text).matches(labels(pairs)) is selected


def test_not_in_selects_where_the_label_is_absent() -> None:
    assert select("app NotIn web").matches(labels({}))


def test_all_requirements_must_hold() -> None:
    both = select("app In web", "tier Exists")
    assert both.matches(labels({"app": "web", "tier": "x"}))
    assert not both.matches(labels({"app": "web"}))
    assert not both.matches(labels({"tier": "x"}))


def test_no_requirement_selects_everything() -> None:
    assert EVERYTHING.matches(labels({}))
    assert EVERYTHING.matches(labels({"app": "web"}))
    assert selector() is EVERYTHING


def test_equal_conditions_are_equal_selectors() -> None:
    assert select("b Exists", "a In x", "a In x") == select("a In x", "b Exists")
    assert hash(select("b Exists", "a In x")) == hash(select("a In x", "b Exists"))


def test_a_selector_is_told_as_kubectl_takes_it() -> None:
    assert select("b Exists", "a In x", "c NotIn y z", "d DoesNotExist", "e In p q").text == (
        "a=x,b,c notin (y,z),!d,e in (p,q)"
    )
    assert EVERYTHING.text == ""


def test_equal_label_sets_are_one_object() -> None:
    assert labels({"a": "1", "b": "2"}) is labels({"b": "2", "a": "1"})
    assert labels({"a": "1"}) is not labels({"a": "2"})
    # Where one text ends and the next begins matters.
    assert labels({"a": "b", "c": "d"}) is not labels({"a": "c", "b": "d"})


def test_a_label_set_that_nobody_has_is_forgotten() -> None:
    from daemon.cluster import selectors

    pairs = {"only": "here"}
    held = labels(pairs)
    assert ("only", "here") in selectors._interned
    assert dict(held.items()) == pairs
    del held
    gc.collect()
    assert ("only", "here") not in selectors._interned


def test_items_are_found_by_the_labels_that_they_select() -> None:
    found: Selectors[str] = Selectors()
    items = {
        "web": select("app In web"),
        "web-x": select("app In web", "tier In x"),
        "either": select("app In web db"),
        "no-tier": select("tier DoesNotExist"),
        "all": EVERYTHING,
    }
    for item, each in items.items():
        found.add(item, each)
    assert found
    for pairs in ({}, {"app": "web"}, {"app": "db", "tier": "x"}, {"app": "web", "tier": "x"}):
        own = labels(pairs)
        assert sorted(found.matching(own)) == sorted(k for k, v in items.items() if v.matches(own)), pairs
    for item, each in items.items():
        found.discard(item, each)
        found.discard(item, each)
    assert not found
    assert not list(found.matching(labels({"app": "web"})))


def test_an_items_selector_is_asked_for_no_more_than_it_has_to_be() -> None:
    """Of a thousand items filed under other labels none is looked at."""

    class Counted(Selector):
        asked = 0

        def matches(self, labels: LabelSet) -> bool:
            type(self).asked += 1
            return super().matches(labels)

    found: Selectors[int] = Selectors()
    for number in range(1000):
        found.add(number, Counted((Requirement("app", Operator.IN, (f"a{number}",)),)))
    assert list(found.matching(labels({"app": "a7", "tier": "x"}))) == [7]
    assert Counted.asked == 1


def test_groups_hold_who_has_the_same_labels_in_the_same_namespace() -> None:
    groups: Groups[int] = Groups()
    web, db = labels({"app": "web"}), labels({"app": "db"})
    first = groups.add("shop", web, "shop/a", 1)
    assert groups.add("shop", web, "shop/b", 2) is first
    assert groups.add("shop", db, "shop/c", 3) is not first
    assert groups.add("bank", web, "bank/a", 4) is not first
    assert first.members == {"shop/a": 1, "shop/b": 2}
    assert len(groups) == 3
    assert {group.labels for group in groups.of("shop")} == {web, db}
    assert not list(groups.of("nowhere"))
    assert sorted(groups.namespaces()) == ["bank", "shop"]


def test_a_group_goes_with_its_last_member() -> None:
    groups: Groups[int] = Groups()
    web = labels({"app": "web"})
    groups.add("shop", web, "shop/a", 1)
    groups.add("shop", web, "shop/b", 2)
    groups.remove("shop", web, "shop/a")
    assert groups.get("shop", web) is not None
    groups.remove("shop", web, "shop/b")
    assert groups.get("shop", web) is None
    assert not list(groups.namespaces())
    assert len(groups) == 0
