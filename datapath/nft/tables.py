"""The static skeleton: what `ip weft` and `ip6 weft` hold on every node. Pure.

Only set elements change afterwards.

What each base chain is for:

- prerouting (raw): nothing that comes in by a link is for the loopback address. A pod's packet must have the
  pod's own source address. VXLAN from a known node to our address is kept out of connection tracking; else a
  pod's masqueraded flow with a lucky port could capture overlay packets.
- output (raw): VXLAN to a node is kept out of connection tracking too, so no NAT of anybody can touch it.
- input: the VXLAN port accepts only what came in untracked (as VXLAN, not by any DNAT), from outside, from a
  known node, to our underlay address.
- forward: no pod sends to the VXLAN port of anything, and nobody does by way of a DNAT.
- prerouting-ranges, output-ranges: clients of a load balancer come from where its service says.
- prerouting-nat, output-nat: connections to a service go to one of its endpoints (`services`), those to a
  host port to its pod (`hostports`).
- input, forward, output-filter: connections to a service that nobody serves are refused or dropped.
- postrouting: connections to services take the node's address where they must, and so do pods' packets that
  leave the cluster.

The rules that ask for connection tracking also make the kernel reassemble fragments before any of these
chains, so a header can't hide in a later fragment.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from datapath.desired import SetElements
from datapath.nft.elements import interface, key
from datapath.nft.hostports import loopback_guard
from datapath.nft.rules import (
    ACCEPT,
    CT_STATE_FIELD,
    CT_STATUS_FIELD,
    DROP,
    ICMPV6_TYPE,
    ICMPV6_TYPE_FIELD,
    IFNAME,
    IIFNAME,
    IP6_DADDR,
    IP6_SADDR,
    IP_DADDR,
    IP_SADDR,
    IPV4_ADDR,
    IPV6_ADDR,
    L4PROTO,
    OIFNAME,
    RETURN,
    UDP_DPORT,
    AnyOf,
    Chain,
    Counter,
    CtState,
    CtStatus,
    Equals,
    Family,
    Hook,
    HookPoint,
    InSet,
    Masquerade,
    NoTrack,
    Protocol,
    Set,
    Starts,
    Table,
    goto,
    jump,
    rule,
)
from datapath.nft.services import REFUSE_CHAIN, ServiceOptions, service_chains, service_sets, snat_rules

if TYPE_CHECKING:
    from collections.abc import Iterable

    from datapath.nft.rules import Payload, Rule

TABLE = "weft"
LAYOUT = 2
"""Raised with every change of the skeleton that can't be applied chain by chain."""

NODES = "nodes"
"""Set of addresses: underlay addresses of the other nodes, from which VXLAN may come."""
LOCAL = "local"
"""Set of addresses: our underlay addresses, to which VXLAN may come."""
DIRECT = "direct"
"""Set of addresses: those of nodes with a direct route, towards which pods keep their address."""
UNMASQUERADED = "unmasqueraded"
"""Interval set: pod CIDRs of the cluster and non-masquerade CIDRs, towards which pods keep their address."""
SOURCES = "sources"
"""Set of (host veth . address): the addresses that pods may send from.

A set and not `fib saddr . iif oif`, which would need no elements: measured on Linux 6.18 with 250 pods and
5,000 routes, a packet costs 90 ns (IPv4) and 113 ns (IPv6) with the set, 108 ns and 755 ns with the look-up,
as IPv6 allocates a route for each; and policy routing by others can't lead it astray. An attachment's
elements cost 10 us."""
DISCOVERY = "neighbour-discovery"

RAW_PRIORITY = -300
FILTER_PRIORITY = 0
SRCNAT_PRIORITY = 100

_COUNTER = Counter()
_ANY_VETH = Starts(IIFNAME, b"weft", 32)
_ANY_LINK_OF_OURS = _ANY_VETH
_OTHER_LINK = Starts(IIFNAME, b"weft.", 40, negate=True)
_FROM_POD = (_ANY_VETH, _OTHER_LINK)
_DISCOVERY_TYPES = (131, 132, 133, 135, 136, 143)
"""MLD report and done, router solicitation, neighbour solicitation and advertisement, MLDv2 report (RFC 4861,
3810). Router advertisements and redirects are none of a pod's business."""


@dataclass(frozen=True, slots=True)
class TableOptions:
    """What the skeleton depends on besides its sets."""

    vxlan_port: int = 4789
    masquerade: bool = True
    services: ServiceOptions = field(default_factory=ServiceOptions)


def node_tables(options: TableOptions) -> tuple[Table, ...]:
    """Return the tables of this node, `ip weft` and `ip6 weft`."""
    return (_table(Family.IPV4, options), _table(Family.IPV6, options))


def pod_sources(host_link: str, addresses: Iterable[bytes]) -> tuple[SetElements, ...]:
    """Return the elements that let a pod send: its addresses, at most one per family, by its host veth.

    They must be in before the pod sends its first packet, and go when the veth goes.
    """
    # As `key` would make it: both are whole words.
    link = interface(host_link)
    return tuple([SetElements(TABLES[len(address)], SOURCES, {link + address: b""}) for address in addresses])


TABLES = {IPV4_ADDR.size: (int(Family.IPV4), TABLE), IPV6_ADDR.size: (int(Family.IPV6), TABLE)}
"""Family and name of each table, by the bytes of its family's addresses."""


def _table(family: Family, options: TableOptions) -> Table:
    address = IPV4_ADDR if family is Family.IPV4 else IPV6_ADDR
    saddr, daddr = (IP_SADDR, IP_DADDR) if family is Family.IPV4 else (IP6_SADDR, IP6_DADDR)
    vxlan = Equals(UDP_DPORT, struct.pack("!H", options.vxlan_port))
    no_service = rule(AnyOf(CT_STATE_FIELD, CtState.NEW), jump(REFUSE_CHAIN))
    sets = [
        Set(NODES, (address,)),
        Set(LOCAL, (address,)),
        Set(DIRECT, (address,)),
        Set(UNMASQUERADED, (address,), interval=True),
        Set(SOURCES, (IFNAME, address)),
        *service_sets(family, options.services),
    ]
    chains = [_source(saddr), _overlay(saddr, daddr), *service_chains(family, options.services)]
    if family is Family.IPV6:
        sets.append(
            Set(
                DISCOVERY,
                (ICMPV6_TYPE,),
                constant=tuple((key(bytes([each])), b"") for each in _DISCOVERY_TYPES),
            )
        )
        chains.insert(0, _link_local())
    chains += [
        Chain(
            "prerouting",
            (
                *loopback_guard(family),
                rule(*_FROM_POD, goto("source")),
                rule(vxlan, InSet((saddr,), NODES), InSet((daddr,), LOCAL), NoTrack()),
            ),
            Hook("filter", HookPoint.PREROUTING, RAW_PRIORITY),
        ),
        Chain(
            "output",
            (rule(vxlan, InSet((saddr,), LOCAL), InSet((daddr,), NODES), NoTrack()),),
            Hook("filter", HookPoint.OUTPUT, RAW_PRIORITY),
        ),
        Chain(
            "input",
            (rule(vxlan, goto("overlay")), no_service),
            Hook("filter", HookPoint.INPUT, FILTER_PRIORITY),
        ),
        Chain("output-filter", (no_service,), Hook("filter", HookPoint.OUTPUT, FILTER_PRIORITY)),
        Chain(
            "forward",
            (
                rule(*_FROM_POD, vxlan, _COUNTER, DROP, comment="no pod speaks VXLAN"),
                rule(
                    vxlan,
                    AnyOf(CT_STATUS_FIELD, CtStatus.DNAT),
                    _COUNTER,
                    DROP,
                    comment="no DNAT leads to VXLAN",
                ),
                rule(
                    _ANY_LINK_OF_OURS,
                    Equals(L4PROTO, bytes([Protocol.TCP])),
                    AnyOf(CT_STATE_FIELD, CtState.INVALID),
                    DROP,
                    comment="it would show its client a backend's address",
                ),
                no_service,
            ),
            Hook("filter", HookPoint.FORWARD, FILTER_PRIORITY),
        ),
    ]
    leaving = snat_rules(family, SOURCES, options.services.mark)
    if options.masquerade:
        chains.append(_egress(daddr))
        leaving += (rule(*_FROM_POD, goto("egress")),)
    chains.append(Chain("postrouting", leaving, Hook("nat", HookPoint.POSTROUTING, SRCNAT_PRIORITY)))
    return Table(family, TABLE, LAYOUT, tuple(sets), tuple(chains))


def _source(saddr: Payload) -> Chain:
    """A pod sends from its own addresses only; its link-local ones serve neighbour discovery alone."""
    rules: list[Rule] = []
    if saddr is IP6_SADDR:
        rules += [
            rule(Starts(saddr, bytes.fromhex("fe80") + bytes(14), 10), goto("link-local")),
            rule(Equals(saddr, bytes(16)), goto("link-local")),
        ]
    rules += [
        rule(InSet((IIFNAME, saddr), SOURCES), ACCEPT),
        rule(_COUNTER, DROP, comment="not an address of this pod"),
    ]
    return Chain("source", tuple(rules))


def _link_local() -> Chain:
    return Chain(
        "link-local",
        (
            rule(InSet((ICMPV6_TYPE_FIELD,), DISCOVERY), ACCEPT),
            rule(_COUNTER, DROP, comment="link-local is for neighbour discovery"),
        ),
    )


def _overlay(saddr: Payload, daddr: Payload) -> Chain:
    """Decides about packets to our VXLAN port.

    Those of our own links (pods, and VXLAN within VXLAN) and of this host itself are never welcome.
    """
    return Chain(
        "overlay",
        (
            rule(
                Starts(IIFNAME, b"weft", 32, negate=True),
                Equals(IIFNAME, b"lo".ljust(16, b"\0"), negate=True),
                AnyOf(CT_STATE_FIELD, CtState.UNTRACKED),
                InSet((saddr,), NODES),
                InSet((daddr,), LOCAL),
                ACCEPT,
            ),
            rule(_COUNTER, DROP, comment="VXLAN comes from known nodes only"),
        ),
    )


def _egress(daddr: Payload) -> Chain:
    """Our own links lead to pods, here or through the overlay: nothing is ever masqueraded into them."""
    return Chain(
        "egress",
        (
            rule(Starts(OIFNAME, b"weft", 32), RETURN),
            rule(InSet((daddr,), UNMASQUERADED), RETURN),
            rule(InSet((daddr,), DIRECT), RETURN),
            rule(Masquerade()),
        ),
    )
