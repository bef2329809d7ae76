from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from datapath.nft.elements import key
from datapath.nft.render import render
from datapath.nft.rules import Code, Family, InSet, Verdict, VerdictMap
from datapath.nft.tables import SOURCES, TableOptions, node_tables, pod_sources

if TYPE_CHECKING:
    from datapath.nft.rules import Table

GOLDEN = Path(__file__).with_name("skeleton.nft")
ALL = [
    table
    for options in (TableOptions(), TableOptions(vxlan_port=8472, masquerade=False))
    for table in node_tables(options)
]


def test_the_skeleton_is_the_one_that_was_reviewed() -> None:
    """A change of it shows in the golden file, which a reviewer reads as nft text."""
    assert "".join(render(table, {}) for table in node_tables(TableOptions())) == GOLDEN.read_text()


@pytest.mark.parametrize("table", ALL)
def test_each_set_that_rules_ask_is_declared_with_that_key(table: Table) -> None:
    used = set()
    for chain in table.chains:
        for rule in chain.rules:
            for statement in rule.statements:
                if isinstance(statement, InSet | VerdictMap):
                    name = statement.set if isinstance(statement, InSet) else statement.map
                    assert table.set(name).key == tuple(each.type for each in statement.key)
                    used.add(name)
    assert used >= {each.name for each in table.sets} - {"unmasqueraded", "direct"}


@pytest.mark.parametrize("table", ALL)
def test_each_chain_is_a_base_chain_or_called(table: Table) -> None:
    called = {
        statement.chain
        for chain in table.chains
        for rule in chain.rules
        for statement in rule.statements
        if isinstance(statement, Verdict) and statement.code in (Code.JUMP, Code.GOTO)
    }
    assert called == {chain.name for chain in table.chains if chain.hook is None}


def test_without_masquerading_nothing_hooks_into_nat() -> None:
    kinds = {
        chain.hook.type
        for table in node_tables(TableOptions(masquerade=False))
        for chain in table.chains
        if chain.hook is not None
    }
    assert kinds == {"filter"}


def test_a_pods_sources_are_its_addresses_behind_its_veth() -> None:
    four, six = bytes([10, 0, 0, 2]), bytes.fromhex("fd00") + bytes(13) + b"\x02"
    found = pod_sources("weft0123456789a", [four, six])
    assert [each.key for each in found] == [
        (Family.IPV4, "weft", SOURCES),
        (Family.IPV6, "weft", SOURCES),
    ]
    assert [dict(each.elements) for each in found] == [
        {key(b"weft0123456789a\0", four): b""},
        {key(b"weft0123456789a\0", six): b""},
    ]
