"""Nodes by their tunnel addresses: whom a block of addresses means."""

from __future__ import annotations

from daemon.cluster import decode
from daemon.compile.policy_rules import BlockScope
from daemon.compile.policy_tunnels import TunnelSets
from datapath.nft.elements import prefix
from datapath.text import parse_address, parse_prefix
from tests.unit.daemon.compile.town import HERE, THERE, raw_node

SOME = BlockScope((prefix(*parse_prefix("192.168.7.2/32")), prefix(*parse_prefix("192.168.8.0/24"))))
SIXES = BlockScope((prefix(*parse_prefix("fd07::/16")),))


def tunnels() -> TunnelSets:
    found = TunnelSets()
    found.put_node("here", decode.node(HERE))
    found.put_node("there", decode.node(THERE))
    found.acquire("some", SOME)
    found.acquire("sixes", SIXES)
    return found


def texts(text: str) -> set[bytes]:
    return set(map(parse_address, text.split()))


def test_a_blocks_nodes_are_those_with_their_own_address_in_it() -> None:
    found = tunnels()
    assert set(found.sets["some"]) == texts("10.244.2.0")
    assert set(found.sets["sixes"]) == texts("fd00:0:0:1:: fd00:0:0:2::")
    assert found.nodes[parse_address("10.244.1.0")] == parse_address("192.168.7.1")


def test_nodes_come_change_and_go() -> None:
    found = tunnels()
    found.touched.clear()
    found.put_node("far", decode.node(raw_node("far", "192.168.8.1", "10.244.9.0/24 fd00:0:0:9::/64")))
    assert set(found.sets["some"]) == texts("10.244.2.0 10.244.9.0")
    assert found.touched == texts("10.244.9.0")
    found.put_node("there", decode.node(raw_node("there", "192.168.9.2", "10.244.2.0/24")))
    assert set(found.sets["some"]) == texts("10.244.9.0")
    found.put_node("far", None)
    found.put_node("far", None)
    assert set(found.sets["some"]) == set()
    assert parse_address("10.244.9.0") not in found.nodes


def test_a_node_without_an_address_of_the_family_is_known_by_its_tunnel_only() -> None:
    found = TunnelSets()
    found.put_node("six", decode.node(raw_node("six", "fd07::6", "10.244.6.0/24 fd00:0:0:6::/64")))
    assert set(found.nodes) == texts("fd00:0:0:6::")


def test_of_two_nodes_with_one_pod_cidr_it_does_not_matter_who_came_first() -> None:
    one = decode.node(raw_node("one", "192.168.7.2", "10.244.5.0/24"))
    two = decode.node(raw_node("two", "192.168.7.9", "10.244.5.0/24"))
    for order in ((("one", one), ("two", two)), (("two", two), ("one", one))):
        found = TunnelSets()
        found.acquire("some", SOME)
        for name, node in order:
            found.put_node(name, node)
        assert set(found.sets["some"]) == texts("10.244.5.0")
        found.put_node("one", None)
        assert set(found.sets["some"]) == set()
        assert found.nodes == {parse_address("10.244.5.0"): parse_address("192.168.7.9")}


def test_a_block_that_is_not_used_any_more_is_gone() -> None:
    found = tunnels()
    found.release("some")
    assert set(found.sets) == {"sixes"}
