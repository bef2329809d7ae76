from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from datapath.nft.elements import key, parse_verdict
from datapath.nft.render import render
from datapath.nft.rules import (
    VERDICT,
    Code,
    Family,
    Forget,
    InSet,
    Lookup,
    Remember,
    SetPriority,
    Translate,
    Verdict,
    VerdictMap,
)
from datapath.nft.services import ServiceOptions
from datapath.nft.tables import SOURCES, TableOptions, node_tables, pod_sources

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from datapath.nft.rules import Selector, Statement, Table

GOLDEN = Path(__file__).with_name("skeleton.nft")
FEW = TableOptions(services=ServiceOptions(common=2, timeouts=(10800,)))
ALL = [
    table
    for options in (TableOptions(), TableOptions(vxlan_port=8472, masquerade=False), FEW)
    for table in node_tables(options)
]


def test_the_skeleton_is_the_one_that_was_reviewed() -> None:
    """A change of it shows in the golden file, which a reviewer reads as nft text."""
    assert "".join(render(table, {}) for table in node_tables(FEW)) == GOLDEN.read_text()


def asked(statement: Statement) -> Iterator[tuple[str, Sequence[Selector]]]:
    """The sets that a statement asks or fills, each with its key."""
    match statement:
        case InSet(key, name) | VerdictMap(key, name) | Remember(name, key) | Forget(name, key):
            yield name, key
        case Translate(Lookup(key, name)) | SetPriority(Lookup(key, name)):
            yield name, key


@pytest.mark.parametrize("table", ALL)
def test_each_set_that_rules_ask_is_declared_with_that_key(table: Table) -> None:
    used = set()
    for chain in table.chains:
        for rule in chain.rules:
            for name, selectors in (each for statement in rule.statements for each in asked(statement)):
                assert table.set(name).key == tuple(each.type for each in selectors)
                used.add(name)
    waiting = {"clients", "endpoint-ids", "sticky", "draws", "outside-draws"}
    waiting = waiting | {f"node-port-{each}" for each in waiting} if table not in node_tables(FEW) else set()
    assert used >= {each.name for each in table.sets} - {"unmasqueraded", "direct"} - waiting


@pytest.mark.parametrize("table", ALL)
def test_each_chain_is_a_base_chain_or_called(table: Table) -> None:
    called = {
        statement.chain
        for chain in table.chains
        for rule in chain.rules
        for statement in rule.statements
        if isinstance(statement, Verdict) and statement.code in (Code.JUMP, Code.GOTO)
    }
    verdicts = (data for each in table.sets if each.data == (VERDICT,) for _, data in each.constant)
    called |= {parse_verdict(data).chain for data in verdicts}
    assert called == {chain.name for chain in table.chains if chain.hook is None}


def test_without_masquerading_pods_keep_their_address_on_the_way_out() -> None:
    for table in node_tables(TableOptions(masquerade=False)):
        assert "egress" not in {chain.name for chain in table.chains}


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
