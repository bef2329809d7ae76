"""The planner against tables as the kernel would dump them: our own encoding plus what the kernel adds."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from datapath.netlink.attributes import attribute, be32, be64, nest, parse, string
from datapath.nft import encode
from datapath.nft.elements import key
from datapath.nft.observe import ObservedChain, ObservedRule, ObservedRuleset, ObservedSet, ObservedTable
from datapath.nft.plan import TRANSACTION_ELEMENTS, SetChange, change_elements, covers, plan
from datapath.nft.rules import Ruleset
from datapath.nft.tables import NODES, TableOptions, node_tables

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datapath.nft.rules import Table

TABLE, TABLE6 = node_tables(TableOptions())
HOST = key(bytes([192, 0, 2, 1]))
ELEMENTS = {(2, "weft", NODES): {HOST: b""}}
RULESET = Ruleset((TABLE,), ELEMENTS)


def dumped(table: Table, elements: Mapping[tuple[int, str, str], Mapping[bytes, bytes]]) -> ObservedTable:
    encoded = encode.encode_table(table)
    sets = {}
    for each in table.sets:
        declaration = string(1, table.name) + encoded.sets[each.name].declaration + be64(16, 5)
        content = {**elements.get((*table.key, each.name), {}), **dict(each.constant)}
        sets[each.name] = ObservedSet(declaration, content)
    chains = {}
    for name, chain in encoded.chains.items():
        rules = []
        for rule in chain.rules:
            found = parse(rule)
            rules.append(ObservedRule(found[encode.RULE_EXPRESSIONS], found.get(encode.RULE_USERDATA, b"")))
        chains[name] = ObservedChain(chain.declaration + be32(6, 1), tuple(rules))
    return ObservedTable(0, encoded.user_data, sets, chains)


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
    assert kinds == sorted(kinds, key=[0, 9, 3, 12, 6].index)


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
