"""Values of policies: what ranges of addresses and ports hold, joined, cut and searched."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from datapath.nft.elements import Range, disjoint, prefix
from datapath.policy import (
    Direction,
    PortRange,
    Rule,
    Rules,
    Subject,
    contains,
    covers_everything,
    merged,
    port_ranges,
    without,
)
from datapath.text import parse_address, parse_prefix

small = st.integers(0, 255)
ranges = st.lists(
    st.tuples(small, small).map(lambda pair: Range(bytes([min(pair)]), bytes([max(pair)]))), max_size=8
)


def cidr(text: str) -> Range:
    return prefix(*parse_prefix(text))


def keys(values: tuple[Range, ...]) -> set[int]:
    return {number for each in values for number in range(each.first[0], each.last[0] + 1)}


def test_what_is_without_a_hole() -> None:
    assert without(cidr("10.0.0.0/8"), []) == (cidr("10.0.0.0/8"),)
    assert without(cidr("10.0.0.0/24"), [cidr("10.0.0.0/25")]) == (cidr("10.0.0.128/25"),)
    assert without(cidr("10.0.0.0/24"), [cidr("10.0.0.64/26")]) == (
        cidr("10.0.0.0/26"),
        cidr("10.0.0.128/25"),
    )
    assert without(cidr("10.0.0.0/24"), [cidr("10.0.0.0/8")]) == ()
    assert without(cidr("10.0.0.0/24"), [cidr("192.168.0.0/16")]) == (cidr("10.0.0.0/24"),)
    assert without(cidr("::/0"), [cidr("::/1"), cidr("8000::/1")]) == ()


@given(ranges.filter(bool), ranges)
def test_a_range_without_others_has_exactly_the_rest(wholes: list[Range], holes: list[Range]) -> None:
    found = without(wholes[0], holes)
    assert keys(found) == keys((wholes[0],)) - keys(tuple(holes))
    assert found == disjoint(found)


@given(ranges)
def test_merged_ranges_hold_the_same_and_never_touch(values: list[Range]) -> None:
    found = merged(values)
    assert keys(found) == keys(tuple(values))
    assert all(one.last[0] + 1 < other.first[0] for one, other in itertools.pairwise(found))


@given(ranges, small)
def test_an_address_is_found(values: list[Range], number: int) -> None:
    assert contains(disjoint(values), bytes([number])) is (number in keys(tuple(values)))


def test_everything_is_covered_by_parts_too() -> None:
    assert covers_everything((cidr("0.0.0.0/0"),))
    assert covers_everything((cidr("::/1"), cidr("8000::/1")))
    assert not covers_everything((cidr("0.0.0.0/1"),))
    assert not covers_everything(without(cidr("0.0.0.0/0"), [cidr("10.0.0.1/32")]))
    assert not covers_everything(())


ports = st.lists(
    st.tuples(st.sampled_from([6, 17]), small, small).map(
        lambda each: PortRange(each[0], min(each[1:]), max(each[1:]))
    ),
    max_size=8,
)


@given(ports)
def test_joined_ports_are_the_same_ports(values: list[PortRange]) -> None:
    found = port_ranges(values)
    assert _ports(found) == _ports(tuple(values))
    assert list(found) == sorted(found)
    for one, other in itertools.pairwise(found):
        assert one.protocol < other.protocol or one.last + 1 < other.first


def _ports(values: tuple[PortRange, ...]) -> set[tuple[int, int]]:
    return {(kind, number) for kind, first, last in values for number in range(first, last + 1)}


def test_rules_and_isolation_are_found_by_family_and_direction() -> None:
    one, other = Rule(), Rule(ports=None, peer=None)
    rules = Rules((one,), (other, one))
    assert rules.of(parse_address("10.0.0.1")) == (one,)
    assert rules.of(parse_address("fd00::1")) == (other, one)
    subject = Subject("weft0", "shop/web", (), ingress=("shop/p",))
    assert subject.isolation(Direction.INGRESS) == ("shop/p",)
    assert subject.isolation(Direction.EGRESS) is None
