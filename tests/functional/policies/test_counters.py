"""What the kernel counts for policies, by rule and by pod."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from datapath.desired import Fragment, SetElements
from datapath.netlink.transport import NETLINK_NETFILTER, Socket
from datapath.nft.counters import element_counts, rule_counts
from datapath.nft.elements import interface, key
from datapath.nft.policy import (
    DENIED,
    DENY,
    FAMILIES,
    TABLE,
    DenialLog,
    closed_fragment,
    dispatch_chain,
    policy_chains,
    policy_table,
    subject_elements,
)
from datapath.nft.render import render
from datapath.nft.rules import Family
from datapath.policy import Direction, PortRange, Ports, Rule, Rules
from tests.functional.policies.site import LINKS

if TYPE_CHECKING:
    from tests.functional.policies.site import Site

pytestmark = pytest.mark.root

RULE = Rule(ports=Ports((PortRange(17, 53, 53),)))
DATAGRAM4, DATAGRAM6 = 20 + 8 + 10, 40 + 8 + 10


def fragments(log: DenialLog | None = None) -> list[Fragment]:
    """A policy that lets the server be asked for port 53."""
    found = []
    names = {}
    for family in FAMILIES:
        part = policy_chains("shop/p", Direction.INGRESS, family, Rules((RULE,), (RULE,)))
        dispatch = dispatch_chain(Direction.INGRESS, [part])
        names[family, Direction.INGRESS] = dispatch.name
        static = tuple(SetElements((int(family), TABLE), *each) for each in part.static)
        table = policy_table(family, part.sets, (part.chain, dispatch), log=log)
        found.append(Fragment(tables=(table,), elements=static))
    return [*found, Fragment(elements=subject_elements(LINKS["server"], names))]


def test_what_policies_accept_is_counted_by_rule_and_what_is_denied_by_pod(node: Site) -> None:
    node.program(fragments())
    for family, size in ((0, DATAGRAM4), (1, DATAGRAM6)):
        node.send(3, family=family, port=53)
        node.send(5, family=family, port=54)
        number = FAMILIES[family]
        with Socket(NETLINK_NETFILTER, namespace=node.router.descriptor) as socket:
            counts = {each.chain: each.counted for each in rule_counts(socket, number, TABLE)}
            denied = element_counts(socket, (number, TABLE, DENIED[Direction.INGRESS]))
        (accepted,) = [count for chain, count in counts.items() if chain.startswith("policy-ingress-")]
        assert accepted == (3, 3 * size)
        assert counts[DENY[Direction.INGRESS]].packets == 0, "all of them had a pod"
        assert denied == {key(interface(LINKS["server"])): (5, 5 * size)}


def test_a_pod_that_is_closed_at_its_birth_is_counted_for(node: Site) -> None:
    node.program([closed_fragment(LINKS["client"], (Direction.EGRESS,))])
    node.send(4)
    with Socket(NETLINK_NETFILTER, namespace=node.router.descriptor) as socket:
        denied = element_counts(socket, (Family.IPV4, TABLE, DENIED[Direction.EGRESS]))
    assert [each.packets for each in denied.values()] == [4]


def test_without_tables_there_is_nothing_to_count(node: Site) -> None:
    with Socket(NETLINK_NETFILTER, namespace=node.router.descriptor) as socket:
        assert rule_counts(socket, Family.IPV4, TABLE) == []
        assert element_counts(socket, (Family.IPV4, TABLE, DENIED[Direction.EGRESS])) == {}


@pytest.mark.parametrize("log", [None, DenialLog(119, 10)])
def test_nft_lists_the_tables_as_we_write_them(node: Site, log: DenialLog | None) -> None:
    made = fragments(log)
    node.program(made)
    for fragment in made:
        for table in fragment.tables:
            shown = node.router.run(
                "nft", "--stateless", "--terse", "list", "table", table.family.text, TABLE
            )
            assert shown == render(table)
