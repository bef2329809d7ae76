"""Compiled rules in words, for people. Pure.

Says what programs the kernel, so what a policy has become, not how it was written.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from daemon.compile.policy_rules import PodScope, PortScope
from datapath.nft.render import render_range
from datapath.policy import Blocks, Direction, Members, NamedPorts, Ports

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.compile.policy import Policies
    from datapath.policy import Rule

_NAMED = 3
_PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}


def protocol_name(protocol: int) -> str:
    """Return a protocol of IP headers as people call it."""
    return _PROTOCOLS.get(protocol, f"protocol {protocol}")


def rule_words(policies: Policies, rule: Rule, direction: Direction) -> str:
    """Return what one rule accepts, e.g. "from pods app=web of namespace shop, at TCP 80"."""
    way = "from" if direction is Direction.INGRESS else "to"
    return f"{way} {_peer(policies, rule)}, at {_ports(policies, rule)}"


def _peer(policies: Policies, rule: Rule) -> str:
    if rule.peer is None:
        return "anybody"
    if isinstance(rule.peer, Blocks):
        return _some([render_range(each) for each in rule.peer.ranges])
    assert isinstance(rule.peer, Members)
    scope = policies.scope(rule.peer.name)
    if not isinstance(scope, PodScope):
        return "pods"
    which = f"pods {scope.pods.text}" if scope.pods.text else "all pods"
    if isinstance(scope.namespaces, str):
        return f"{which} of namespace {scope.namespaces}"
    return (
        f"{which} of {f'namespaces {scope.namespaces.text}' if scope.namespaces.text else 'all namespaces'}"
    )


def _ports(policies: Policies, rule: Rule) -> str:
    if rule.ports is None:
        return "any port"
    if isinstance(rule.ports, NamedPorts):
        scope = policies.scope(rule.ports.name)
        assert scope is None or isinstance(scope, PortScope)
        return f"the port called {scope.name} of {protocol_name(scope.protocol)}" if scope else "a named port"
    assert isinstance(rule.ports, Ports)
    return _some(
        [
            f"{protocol_name(protocol)} {first if first == last else f'{first}-{last}'}"
            for protocol, first, last in rule.ports.ranges
        ]
    )


def _some(words: Sequence[str]) -> str:
    more = len(words) - _NAMED
    return ", ".join(islice(words, _NAMED)) + (f" and {more} more" if more > 0 else "")
