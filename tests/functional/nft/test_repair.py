"""Whatever others do to our tables is found, and undone without touching theirs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from datapath.errors import NetlinkError, TransactionOutdatedError
from datapath.nft import encode
from datapath.nft.connection import Nft
from datapath.nft.elements import Range, intervals, key, prefix
from datapath.nft.plan import TRANSACTION_ELEMENTS, SetChange, change_elements, plan
from datapath.nft.rules import Chain, Ruleset, goto, rule
from datapath.nft.tables import NODES, UNMASQUERADED, TableOptions, node_tables, pod_sources

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.functional.nft.spaces import Space

pytestmark = pytest.mark.root

FOREIGN = """table ip docker {
    set s { type ipv4_addr; elements = { 10.9.9.9 }; }
    chain forward { type filter hook forward priority 0; policy drop; ip saddr @s accept; }
}
"""
TABLES = node_tables(TableOptions())
RULESET = Ruleset(
    TABLES,
    {
        (2, "weft", NODES): {key(bytes([192, 0, 2, last])): b"" for last in range(1, 9)},
        (2, "weft", UNMASQUERADED): intervals(
            [
                prefix(bytes([10, 244, 0, 0]), 24),
                prefix(bytes([10, 244, 1, 0]), 24),
                prefix(bytes([240, 0, 0, 0]), 4),
            ]
        ),
        (10, "weft", UNMASQUERADED): intervals([prefix(bytes.fromhex("fd00") + bytes(14), 16)]),
        **{each.key: each.elements for each in pod_sources("weft00000000001", [bytes([10, 244, 0, 2])])},
    },
)


@pytest.fixture
def nft(space: Space) -> Iterator[Nft]:
    space.nft(FOREIGN)
    with Nft(namespace=space.descriptor) as opened:
        opened.apply(plan(RULESET, opened.read()))
        yield opened


def foreign(space: Space) -> str:
    return space.run("nft", "list", "table", "ip", "docker")


def assert_right(nft: Nft, space: Space, ruleset: Ruleset = RULESET) -> None:
    assert plan(ruleset, nft.read()) == []
    assert "table ip weft" in space.run("nft", "list", "ruleset")


def test_what_was_committed_is_found_unchanged(nft: Nft, space: Space) -> None:
    assert_right(nft, space)
    # Also by a process that has not written it.
    with Nft(namespace=space.descriptor) as another:
        assert_right(another, space)


CHANGES = {
    "flush ruleset": "flush ruleset",
    "table deleted": "delete table ip weft",
    "table put to sleep": "add table ip weft { flags dormant; }",
    "table flushed": "flush table ip6 weft",
    "chain flushed": "flush chain ip weft overlay",
    "rule added at the end": "add rule ip weft forward accept",
    "rule added in front": "insert rule ip weft overlay ip saddr 1.2.3.4 accept",
    "rule with a set of its own": "insert rule ip weft overlay ip saddr { 1.2.3.4, 5.6.7.8 } accept",
    "rule like ours but for a value": (
        "flush chain ip weft input; add rule ip weft input udp dport 4790 goto overlay"
    ),
    "rule like ours but for a comparison": (
        "flush chain ip weft postrouting;"
        ' add rule ip weft postrouting iifname "weft*" iifname "weft.*" goto egress'
    ),
    "rule like ours but for a verdict": (
        "flush chain ip weft input; add rule ip weft input udp dport 4789 jump overlay"
    ),
    "rule like ours but for a comment": (
        "flush chain ip weft input; add rule ip weft input udp dport 4789 goto overlay comment mine"
    ),
    "chain added": "add chain ip weft mine; add rule ip weft input jump mine",
    "base chain added": "add chain ip weft mine { type filter hook input priority 9; policy drop; }",
    "chains that call each other": (
        "add chain ip weft mine; add chain ip weft yours;"
        " add rule ip weft mine jump yours; add rule ip weft input jump mine"
    ),
    "set added": "add set ip weft mine { type ipv4_addr; }; add rule ip weft input ip saddr @mine accept",
    "policy of a chain": "add chain ip weft forward { policy drop; }",
    "element deleted": "delete element ip weft nodes { 192.0.2.3 }",
    "element added": "add element ip weft nodes { 203.0.113.1 }",
    "set flushed": "flush set ip weft unmasqueraded",
    "range deleted": "delete element ip weft unmasqueraded { 10.244.0.0/24 }",
    "range added": "add element ip weft unmasqueraded { 10.0.0.0-10.0.0.9 }",
    "range added at the start": "add element ip weft unmasqueraded { 0.0.0.0/8 }",
    "range replaced by a wider one": (
        "delete element ip weft unmasqueraded { 10.244.0.0/24, 10.244.1.0/24 };"
        " add element ip weft unmasqueraded { 10.244.0.0/16 }"
    ),
    "constant element deleted": "delete element ip6 weft neighbour-discovery { 135 }",
    "pod's source deleted": "flush set ip weft sources",
    "a table of our name in another family": (
        "add table inet weft; add chain inet weft c { type filter hook input priority 0; policy drop; }"
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_foreign_changes_are_found_and_undone(nft: Nft, space: Space, change: str) -> None:
    before = foreign(space)
    generation = nft.generation()
    space.nft(CHANGES[change])
    assert nft.generation() != generation
    found = plan(RULESET, nft.read())
    assert found, "the change was not found"
    assert all(transaction.changes for transaction in found)
    nft.apply(found)
    assert_right(nft, space)
    if change != "flush ruleset":
        assert foreign(space) == before


def test_only_what_differs_is_written(nft: Nft, space: Space) -> None:
    space.nft("delete element ip weft nodes { 192.0.2.3 }; add rule ip6 weft forward accept")
    changes = [change for transaction in plan(RULESET, nft.read()) for change in transaction.changes]
    assert changes == [
        ("add", "element 192.0.2.3 of set ip weft nodes"),
        ("replace", "rules of chain ip6 weft forward"),
    ]


def test_a_chain_of_another_kind_makes_the_table_anew_at_once(nft: Nft, space: Space) -> None:
    # nft can't change a hook, so the chain is made anew with the name of ours.
    space.nft(
        "flush chain ip weft input; delete chain ip weft input;"
        " add chain ip weft input { type filter hook input priority 7; }"
    )
    found = plan(RULESET, nft.read())
    assert [transaction.changes for transaction in found] == [(("replace", "table ip weft"),)]
    nft.apply(found)
    assert_right(nft, space)


def test_another_layout_is_replaced_in_one_transaction(nft: Nft, space: Space) -> None:
    other = dataclasses.replace(TABLES[0], layout=99, chains=TABLES[0].chains[:-1])
    ruleset = Ruleset((other, TABLES[1]), RULESET.elements)
    found = plan(ruleset, nft.read())
    assert len(found) == 1
    generation = nft.generation()
    nft.apply(found)
    assert nft.generation() == generation + 1
    assert_right(nft, space, ruleset)
    nft.apply(plan(RULESET, nft.read()))
    assert_right(nft, space)


def test_a_table_that_is_no_more_desired_goes(nft: Nft, space: Space) -> None:
    only = Ruleset(TABLES[:1], RULESET.elements)
    nft.apply(plan(only, nft.read()))
    assert plan(only, nft.read()) == []
    assert "ip6 weft" not in space.run("nft", "list", "ruleset")


def test_other_options_change_rules_only(nft: Nft, space: Space) -> None:
    ruleset = Ruleset(node_tables(TableOptions(vxlan_port=8472)), RULESET.elements)
    found = plan(ruleset, nft.read())
    assert {change.action for transaction in found for change in transaction.changes} == {"replace"}
    assert all("rules of chain" in change.subject for transaction in found for change in transaction.changes)
    nft.apply(found)
    assert_right(nft, space, ruleset)


def test_masquerading_can_be_switched_off(nft: Nft, space: Space) -> None:
    ruleset = Ruleset(node_tables(TableOptions(masquerade=False)), RULESET.elements)
    nft.apply(plan(ruleset, nft.read()))
    assert_right(nft, space, ruleset)
    assert "goto egress" not in space.run("nft", "list", "ruleset")


def test_a_refused_transaction_names_the_object_and_changes_nothing(nft: Nft, space: Space) -> None:
    table = dataclasses.replace(TABLES[0], chains=(Chain("bad", (rule(goto("nowhere")),)),))
    messages = [
        *encode.delete_elements(TABLES[0], TABLES[0].set(NODES), [key(bytes([192, 0, 2, 1]))]),
        encode.new_chain(table, "bad"),
        *encode.new_rules(table, "bad"),
    ]
    with pytest.raises(
        NetlinkError, match=r"the test: add rule of chain ip weft bad: No such file"
    ) as caught:
        nft.commit(messages, "the test")
    assert caught.value.index == 2
    assert_right(nft, space)
    missing = encode.delete_elements(TABLES[0], TABLES[0].set(NODES), [key(bytes([9, 9, 9, 9]))])
    with pytest.raises(NetlinkError, match="delete elements of set ip weft nodes"):
        nft.commit(list(missing), "the test")


def test_a_commit_for_another_generation_is_refused(nft: Nft, space: Space) -> None:
    generation = nft.generation()
    add = list(encode.add_elements(TABLES[0], TABLES[0].set(NODES), {key(bytes([9, 9, 9, 9])): b""}))
    space.nft("add table ip another")
    with pytest.raises(TransactionOutdatedError):
        nft.commit(add, "the test", generation=generation)
    assert_right(nft, space)
    nft.commit(add, "the test", generation=nft.generation())
    assert plan(RULESET, nft.read()) != []


def test_big_sets_are_loaded_in_bounded_transactions(nft: Nft, space: Space) -> None:
    many = {key((0x0B000000 + index).to_bytes(4, "big")): b"" for index in range(20_000)}
    ranges = intervals(prefix((0x20000000 + 256 * index).to_bytes(4, "big"), 24) for index in range(20_000))
    ruleset = Ruleset(
        TABLES, {**RULESET.elements, (2, "weft", NODES): many, (2, "weft", UNMASQUERADED): ranges}
    )
    space.nft("flush ruleset")
    found = plan(ruleset, nft.read())
    assert len(found) >= 40_000 // TRANSACTION_ELEMENTS
    # The rules of hooked chains come last, so none is in force before its sets are filled.
    words = [encode.describe(message) for transaction in found for message in transaction.messages]
    filled = [place for place, each in enumerate(words) if each.startswith("add elements of set ip weft ")]
    hooked = [
        f"add rule of chain ip weft {chain.name}" for chain in TABLES[0].chains if chain.hook is not None
    ]
    assert max(filled) < min(place for place, each in enumerate(words) if each in hooked)
    nft.apply(found)
    assert_right(nft, space, ruleset)
    nft.apply(plan(RULESET, nft.read()))
    assert_right(nft, space)


def test_ranges_change_in_place(nft: Nft, space: Space) -> None:
    """Splitting, joining and moving ranges, also touching and open ones, is one consistent change each."""
    table = TABLES[0]
    declared = table.set(UNMASQUERADED)
    current = RULESET.elements[2, "weft", UNMASQUERADED]
    low, high = bytes(4), b"\xff" * 4
    for ranges in (
        [Range(low, high)],
        [Range(low, bytes([127, 255, 255, 255])), Range(bytes([128, 0, 0, 0]), high)],
        [Range(bytes([10, 0, 0, 0]), bytes([10, 0, 0, 0]))],
        [prefix(bytes([10, 0, last, 0]), 24) for last in range(9)],
        [prefix(bytes([10, 0, 0, 0]), 20), prefix(bytes([10, 0, 16, 0]), 24)],
        [],
    ):
        wanted = intervals(ranges)
        nft.apply(change_elements([SetChange(table, declared, current, wanted)]))
        current = wanted
        assert_right(nft, space, Ruleset(TABLES, {**RULESET.elements, (2, "weft", UNMASQUERADED): wanted}))
