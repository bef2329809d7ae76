"""The chains of Services: which there are for which options, and how they grow."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from datapath.nft.elements import parse_verdict
from datapath.nft.frontends import NODE_PORT_PREFIX, OUTSIDE_SLOT
from datapath.nft.plan import restructure
from datapath.nft.rules import (
    META_MARK,
    VERDICT,
    AnyOf,
    Family,
    MarkBits,
    RandomNumber,
    Remember,
    Translate,
)
from datapath.nft.services import (
    COMMON_SIZES,
    NAT_CHAIN,
    REFUSE_CHAIN,
    SNAT_CHAIN,
    SNAT_MARK,
    ServiceOptions,
    service_chains,
    service_sets,
    snat_rules,
)
from datapath.nft.tables import TableOptions, node_tables

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from datapath.nft.rules import Chain, Set, Statement, Table

FAMILIES = (Family.IPV4, Family.IPV6)
VARIANTS = ("", NODE_PORT_PREFIX, "outside-", NODE_PORT_PREFIX + "outside-")
FEW = ServiceOptions(common=3)


def chains(options: ServiceOptions, family: Family = Family.IPV4) -> dict[str, Chain]:
    return {each.name: each for each in service_chains(family, options)}


def sets(options: ServiceOptions, family: Family = Family.IPV4) -> dict[str, Set]:
    return {each.name: each for each in service_sets(family, options)}


def statements(chain: Chain) -> Iterator[Statement]:
    for rule in chain.rules:
        yield from rule.statements


def draws(chain: Chain) -> list[RandomNumber]:
    """The random numbers that a chain's rules draw, one a rule."""
    found = []
    for each in statements(chain):
        assert isinstance(each, Translate)
        found += [part for part in each.target.key if isinstance(part, RandomNumber)]
    return found


def verdicts(declared: Set) -> dict[int, str]:
    """What a constant verdict map leads to, by number."""
    assert declared.data == (VERDICT,)
    return {struct.unpack("=I", key)[0]: parse_verdict(data).chain for key, data in declared.constant}


def test_all_sizes_are_the_common_ones_and_those_that_occur() -> None:
    assert ServiceOptions().all_sizes == tuple(range(1, COMMON_SIZES + 1))
    assert ServiceOptions(sizes=(2, 40, 33), common=3).all_sizes == (1, 2, 3, 33, 40)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [1, 2, 3, 40])
def test_each_size_has_a_chain_that_falls_back_to_the_first_slot(
    family: Family, variant: str, size: int
) -> None:
    options = replace(FEW, sizes=(40,))
    offset = OUTSIDE_SLOT if "outside" in variant else 0
    drawn = draws(chains(options, family)[f"{variant}one-of-{size}"])
    expected = [RandomNumber(size, offset), RandomNumber(1, offset)]
    assert drawn == (expected[:1] if size == 1 else expected)
    assert verdicts(sets(options, family)[f"{variant}sizes"])[size] == f"{variant}one-of-{size}"


@pytest.mark.parametrize("family", FAMILIES)
def test_without_affinity_there_are_no_chains_for_it(family: Family) -> None:
    names = chains(FEW, family).keys()
    assert not [name for name in names if "stick-" in name or "draw-" in name or "known-" in name]
    for variant in VARIANTS:
        assert verdicts(sets(FEW, family)[f"{variant}draws"]) == {}
        assert verdicts(sets(FEW, family)[f"{variant}by-timeout"]) == {}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_timeout_has_chains_that_remember_for_so_long(family: Family, variant: str) -> None:
    options = replace(FEW, timeouts=(60, 10800))
    found, declared = chains(options, family), sets(options, family)
    assert verdicts(declared[f"{variant}by-timeout"]) == {
        60: f"{variant}stick-60",
        10800: f"{variant}stick-10800",
    }
    assert verdicts(declared[f"{variant}draws"]) == {size: f"{variant}draw-{size}" for size in (1, 2, 3)}
    for timeout in (60, 10800):
        for name in ("known", "pick"):
            chain = found[f"{variant}{name}-{timeout}"]
            kept = [each.timeout for each in statements(chain) if isinstance(each, Remember)]
            assert kept == [timeout]


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_of_frontends_are_shared_by_all_clients(family: Family) -> None:
    names = [each.name for each in service_sets(family, FEW)]
    assert len(names) == len(set(names))
    for name in ("services", "endpoints", "outside", "clients", "dropped", "refused"):
        assert name in names
        assert NODE_PORT_PREFIX + name in names
        assert f"outside-{name}" not in names


@pytest.mark.parametrize("family", FAMILIES)
def test_what_refers_to_another_sets_elements_comes_after_them(family: Family) -> None:
    """Slots before the word that counts them, names before what picks one by name, ranges before the wall."""
    rank = {name: each.rank for name, each in sets(FEW, family).items()}
    for prefix in ("", NODE_PORT_PREFIX):
        assert rank[prefix + "endpoints"] < rank[prefix + "outside"] < rank[prefix + "services"]
        assert rank[prefix + "sticky"] < rank[prefix + "endpoint-ids"] < rank[prefix + "services"]
        assert rank[prefix + "timeouts"] < rank[prefix + "services"]
        assert rank[prefix + "sizes"] > rank[prefix + "services"]
    assert rank["allowed"] < rank["firewalled"]


def test_marks_are_one_bit_that_the_operator_chooses() -> None:
    for family in FAMILIES:
        bits = {
            each.bits
            for chain in service_chains(family, replace(FEW, mark=0x100, timeouts=(60,)))
            for each in statements(chain)
            if isinstance(each, MarkBits)
        }
        assert bits == {0x100}
        leaving = [each for rule in snat_rules(family, "sources", 0x100) for each in rule.statements]
        assert AnyOf(META_MARK, 0x100) in leaving
        assert MarkBits(0x100, clear=True) in leaving
    assert ServiceOptions().mark == SNAT_MARK == 0x4000


def test_the_ways_in_are_there_whatever_the_options() -> None:
    for family in FAMILIES:
        assert {NAT_CHAIN, REFUSE_CHAIN, SNAT_CHAIN} <= chains(ServiceOptions(common=0), family).keys()


def hooks(found: Iterable[Chain]) -> dict[str, tuple[str, str, int]]:
    return {
        each.name: (each.hook.type, each.hook.point.name, each.hook.priority)
        for each in found
        if each.hook is not None
    }


def test_ranges_are_judged_before_translation() -> None:
    for family in FAMILIES:
        assert hooks(service_chains(family, FEW)) == {
            "prerouting-ranges": ("filter", "PREROUTING", -110),
            "prerouting-nat": ("nat", "PREROUTING", -100),
            "output-ranges": ("filter", "OUTPUT", -110),
            "output-nat": ("nat", "OUTPUT", -100),
        }


def table(**options: object) -> Table:
    return node_tables(TableOptions(services=replace(FEW, **options)))[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {"sizes": (40,)}),
        ({"sizes": (40,)}, {"sizes": (40, 70)}),
        ({}, {"timeouts": (60,)}),
        ({"timeouts": (60,), "sizes": (40,)}, {"timeouts": (60, 90), "sizes": (40, 41)}),
    ],
)
def test_growth_adds_chains_and_leads_to_them_last(old: dict[str, object], new: dict[str, object]) -> None:
    before, after = table(**old), table(**new)
    transactions = restructure(before, after)
    assert transactions is not None
    changes = [change for transaction in transactions for change in transaction.changes]
    assert changes
    assert {change.action for change in changes} == {"add"}
    known = {each.name for each in before.chains}
    came = [each.name for each in after.chains if each.name not in known]
    assert [each.subject for each in changes if each.subject.startswith("chain ")] == [
        f"chain ip weft {name}" for name in came
    ]
    # No rule that was there is touched: the new chains are reached by elements of constant maps.
    for name in known:
        assert f"rules of chain ip weft {name}" not in {each.subject for each in changes}
