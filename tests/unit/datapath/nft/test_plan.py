"""The planner against tables as the kernel would dump them: our own encoding plus what the kernel adds."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from datapath.netlink.attributes import attribute, be32, nest
from datapath.nft import encode
from datapath.nft.elements import key
from datapath.nft.frontends import Backend, Balance, Frontend, service_elements
from datapath.nft.observe import ObservedChain, ObservedRule, ObservedRuleset
from datapath.nft.plan import (
    TRANSACTION_ELEMENTS,
    SetChange,
    change_elements,
    covers,
    plan,
    restructure,
)
from datapath.nft.rules import Family, Ruleset
from datapath.nft.services import ServiceOptions
from datapath.nft.tables import NODES, TableOptions, node_tables
from tests.unit.datapath.nft.dumps import dumped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datapath.nft.plan import Transaction
    from datapath.nft.rules import Table

TABLE, TABLE6 = node_tables(TableOptions())
HOST = key(bytes([192, 0, 2, 1]))
ELEMENTS = {(2, "weft", NODES): {HOST: b""}}
RULESET = Ruleset((TABLE,), ELEMENTS)


def observed(*tables: Table, **changes: object) -> ObservedRuleset:
    found = {table.key: dumped(table, ELEMENTS) for table in tables}
    if changes:
        found[TABLE.key] = dataclasses.replace(found[TABLE.key], **changes)  # type: ignore[arg-type]
    return ObservedRuleset(7, found)


def test_the_same_needs_nothing() -> None:
    assert plan(RULESET, observed(TABLE)) == []


def test_nothing_becomes_everything_in_one_transaction() -> None:
    (transaction,) = plan(RULESET, ObservedRuleset(1, {}))
    kinds = [message.kind & 0xFF for message in transaction.messages]
    once = [kind for number, kind in enumerate(kinds) if kinds[number - 1 : number] != [kind]]
    assert once == [
        *(encode.NEWTABLE, encode.NEWSET, encode.NEWCHAIN),
        *(encode.NEWRULE, encode.NEWSETELEM, encode.NEWRULE),
    ]


def test_sets_are_filled_after_the_rules_that_use_them_and_before_those_that_packets_meet() -> None:
    (transaction,) = plan(RULESET, ObservedRuleset(1, {}))
    words = [encode.describe(message) for message in transaction.messages]
    filled = words.index(f"add elements of set ip weft {NODES}")
    for chain in TABLE.chains:
        added = [
            place for place, each in enumerate(words) if each == f"add rule of chain ip weft {chain.name}"
        ]
        assert len(added) == len(chain.rules)
        if chain.hook is None:
            assert max(added, default=0) < filled
        else:
            assert min(added, default=len(words)) > filled


def test_a_chain_that_is_back_has_its_rules_once() -> None:
    present = dumped(TABLE, ELEMENTS)
    leaf = next(chain for chain in TABLE.chains if chain.hook is None and chain.rules)
    chains = {name: chain for name, chain in present.chains.items() if name != leaf.name}
    (transaction,) = plan(RULESET, observed(TABLE, chains=chains))
    words = [encode.describe(message) for message in transaction.messages]
    assert words == [
        f"add chain ip weft {leaf.name}",
        *[f"add rule of chain ip weft {leaf.name}"] * len(leaf.rules),
    ]
    assert [change.subject for change in transaction.changes] == [
        f"chain ip weft {leaf.name}",
        f"rules of chain ip weft {leaf.name}",
    ]


def test_a_table_that_nobody_wants_is_deleted() -> None:
    (transaction,) = plan(RULESET, observed(TABLE, TABLE6))
    assert transaction.changes == (("delete", "table ip6 weft"),)


def test_another_layout_is_replaced() -> None:
    (transaction,) = plan(RULESET, observed(TABLE, user_data=encode.comment("layout 0")))
    assert transaction.changes == (("replace", "table ip weft"),)
    assert transaction.messages[0].kind & 0xFF == encode.DELTABLE


def test_elements_that_make_no_sense_are_all_replaced() -> None:
    table = dumped(TABLE, ELEMENTS)
    sets = {**table.sets, NODES: dataclasses.replace(table.sets[NODES], elements=None)}
    (transaction,) = plan(RULESET, observed(TABLE, sets=sets))
    assert [message.kind & 0xFF for message in transaction.messages] == [encode.DELSETELEM, encode.NEWSETELEM]


def test_the_rules_of_foreign_chains_go_before_the_chains() -> None:
    table = dumped(TABLE, ELEMENTS)
    foreign = ObservedChain(b"", (ObservedRule(b"", b""),))
    (transaction,) = plan(RULESET, observed(TABLE, chains={**table.chains, "mine": foreign}))
    assert [encode.describe(message) for message in transaction.messages] == [
        "delete rules of chain ip weft mine",
        "delete chain ip weft mine",
    ]


def test_changed_data_is_deleted_and_added_in_one_transaction() -> None:
    declared = dataclasses.replace(TABLE.set(NODES), data=(TABLE.set(NODES).key[0],))
    many = {key(number.to_bytes(4, "big")): b"\1\1\1\1" for number in range(3 * TRANSACTION_ELEMENTS)}
    transactions = change_elements([SetChange(TABLE, declared, many, dict.fromkeys(many, b"\2\2\2\2"))])
    assert len(transactions) >= 6
    for transaction in transactions:
        assert {message.kind & 0xFF for message in transaction.messages} == {
            encode.DELSETELEM,
            encode.NEWSETELEM,
        }


def serving(backends: int, affinity_seconds: int = 0) -> dict[str, Mapping[bytes, bytes]]:
    """The elements of a frontend with so many backends, by set."""
    many = tuple(Backend(number.to_bytes(4, "big"), 80) for number in range(backends))
    balance = Balance(many, affinity_seconds=affinity_seconds)
    frontend = Frontend(Family.IPV4, bytes([10, 96, 0, 1]), 6, 80)
    return {each.name: each.elements for each in service_elements({frontend: balance})}


def between(
    old: Mapping[str, Mapping[bytes, bytes]], new: Mapping[str, Mapping[bytes, bytes]]
) -> list[Transaction]:
    names = sorted(old.keys() | new.keys(), reverse=True)
    return change_elements(
        SetChange(TABLE, TABLE.set(name), old.get(name, {}), new.get(name, {})) for name in names
    )


def order(transactions: Sequence[Transaction]) -> list[tuple[str, str]]:
    """What is done to which sets, in order; what is done to one in a row is told once."""
    found: list[tuple[str, str]] = []
    for transaction in transactions:
        for change in transaction.changes:
            entry = (change.action, change.subject.partition(" of set ip weft ")[2].partition(":")[0])
            if entry not in found[-1:]:
                found.append(entry)
    return found


@pytest.mark.parametrize("more", [1, 3 * TRANSACTION_ELEMENTS])
def test_a_growing_service_has_its_slots_before_the_word_that_counts_them(more: int) -> None:
    transactions = between(serving(2), serving(2 + more))
    assert order(transactions) == [("add", "endpoints"), ("delete", "services"), ("add", "services")]
    assert len(transactions) == 1 + more // TRANSACTION_ELEMENTS
    # The word's old and new value are never apart.
    assert order(transactions[-1:])[-2:] == [("delete", "services"), ("add", "services")]


@pytest.mark.parametrize("fewer", [1, 3 * TRANSACTION_ELEMENTS])
def test_a_shrinking_service_has_its_word_before_the_slots_go(fewer: int) -> None:
    transactions = between(serving(2 + fewer), serving(2))
    assert order(transactions) == [("delete", "services"), ("add", "services"), ("delete", "endpoints")]
    assert order(transactions[:1])[:2] == [("delete", "services"), ("add", "services")]


def test_what_picks_a_backend_comes_after_it_and_goes_before_it() -> None:
    one = serving(2, affinity_seconds=60)
    coming = order(between({}, one))
    assert {name for _, name in coming[:2]} == {"endpoints", "sticky"}
    assert {name for _, name in coming[2:4]} == {"endpoint-ids", "timeouts"}
    assert coming[4:] == [("add", "services")]
    going = order(between(one, {}))
    assert going == [("delete", name) for _, name in reversed(coming)]


def test_a_service_that_loses_its_backends_is_never_unknown() -> None:
    """It is refused before it is no more translated, and translated before it is no more refused."""
    assert order(between(serving(1), serving(0))) == [
        ("add", "refused"),
        ("delete", "services"),
        ("delete", "endpoints"),
    ]
    assert order(between(serving(0), serving(1))) == [
        ("add", "endpoints"),
        ("add", "services"),
        ("delete", "refused"),
    ]


def test_the_first_plan_fills_sets_by_rank_too() -> None:
    elements = {(2, "weft", name): each for name, each in serving(3 * TRANSACTION_ELEMENTS).items()}
    transactions = plan(Ruleset((TABLE,), {**ELEMENTS, **elements}), observed(TABLE))
    assert order(transactions) == [("add", "endpoints"), ("add", "services")]
    assert len(transactions) == 4


def options(**services: object) -> TableOptions:
    return TableOptions(services=ServiceOptions(common=2, **services))  # type: ignore[arg-type]


def test_a_structure_that_is_right_needs_nothing() -> None:
    assert restructure(TABLE, TABLE) == []


def test_more_chains_come_without_a_reading() -> None:
    old, new = (node_tables(each)[0] for each in (options(), options(sizes=(9,), timeouts=(60,))))
    transactions = restructure(old, new)
    assert transactions
    kinds = {encode.describe(message).split()[0] for each in transactions for message in each.messages}
    assert kinds == {"add"}
    subjects = {change.subject for each in transactions for change in each.changes}
    assert "chain ip weft one-of-9" in subjects
    assert "element 0x00000009 : goto one-of-9 of set ip weft sizes" in subjects
    assert "rules of chain ip weft stick-60" in subjects


def test_fewer_chains_go_after_what_led_to_them() -> None:
    old, new = (node_tables(each)[0] for each in (options(sizes=(9,)), options()))
    transactions = restructure(old, new)
    assert transactions is not None
    said = [encode.describe(message) for each in transactions for message in each.messages]
    assert said.index("delete elements of set ip weft sizes") < said.index("delete chain ip weft one-of-9")


def test_elements_are_left_alone_by_a_new_structure() -> None:
    old, new = (node_tables(each)[0] for each in (options(), options(sizes=(9,))))
    transactions = restructure(old, new)
    assert transactions is not None
    touched = {
        change.subject.partition(" of set ip weft ")[2]
        for each in transactions
        for change in each.changes
        if change.subject.startswith("element")
    }
    assert touched == {"sizes", "node-port-sizes", "outside-sizes", "node-port-outside-sizes"}


@pytest.mark.parametrize(
    "change",
    [
        {"layout": 99},
        {
            "sets": tuple(
                dataclasses.replace(each, interval=True) if each.name == NODES else each
                for each in TABLE.sets
            )
        },
        {
            "chains": tuple(
                dataclasses.replace(each, hook=dataclasses.replace(each.hook, priority=9))
                if each.hook is not None
                else each
                for each in TABLE.chains
            )
        },
    ],
)
def test_what_can_not_be_changed_in_place_is_not_planned(change: dict[str, object]) -> None:
    assert restructure(TABLE, dataclasses.replace(TABLE, **change)) is None  # type: ignore[arg-type]


def test_differences_name_a_few_elements_and_count_many() -> None:
    declared = TABLE.set(NODES)
    few = {key(bytes([10, 0, 0, last])): b"" for last in range(3)}
    (transaction,) = change_elements([SetChange(TABLE, declared, {}, few)])
    assert transaction.changes[0] == ("add", "element 10.0.0.0 of set ip weft nodes")
    assert len(transaction.changes) == 3
    many = {key(bytes([10, 0, 0, last])): b"" for last in range(9)}
    (transaction,) = change_elements([SetChange(TABLE, declared, many, {})])
    expected = "9 elements of set ip weft nodes: 10.0.0.0, 10.0.0.1, 10.0.0.2, 10.0.0.3, ..."
    assert transaction.changes == (("delete", expected),)


@pytest.mark.parametrize(
    ("wanted", "found", "expected"),
    [
        (b"", be32(1, 1), True),
        (be32(1, 1), be32(2, 2) + be32(1, 1), True),
        (be32(1, 1), be32(1, 2), False),
        (be32(1, 1), b"", False),
        (nest(1, be32(1, 1)), attribute(1, be32(1, 1) + be32(2, 2)), True),
        (nest(1, be32(1, 1)), attribute(1, be32(1, 2)), False),
        (be32(1, 1) + be32(1, 2), be32(1, 1) + be32(1, 2), True),
        (be32(1, 1) + be32(1, 2), be32(1, 2) + be32(1, 1), False),
        (be32(1, 1) + be32(1, 2), be32(1, 1), False),
        (be32(1, 1), be32(1, 1) + be32(1, 2), False),
    ],
)
def test_what_is_sent_must_be_in_the_dump(wanted: bytes, found: bytes, expected: bool) -> None:
    assert covers(wanted, found) is expected
