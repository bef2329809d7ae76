"""One NetworkPolicy into rules, and the shared sets that these rules look up. Pure.

Depends on the policy alone: no pod, namespace or node changes the result, only what the sets hold.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from hashlib import blake2s
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from daemon.cluster.model import IPBlock
from datapath.nft.elements import disjoint, prefix
from datapath.policy import (
    Blocks,
    Direction,
    Members,
    NamedPorts,
    PortRange,
    Ports,
    Rule,
    Rules,
    covers_everything,
    port_ranges,
    without,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from daemon.cluster.model import NetworkPolicy, PolicyPeer, PolicyPort, PolicyRule
    from daemon.cluster.selectors import Selector
    from datapath.nft.elements import Range

_WIDTHS = (4, 16)


class PodScope(NamedTuple):
    """Pods by label, in one namespace (by name) or in those that a selector selects."""

    namespaces: str | Selector
    pods: Selector


class BlockScope(NamedTuple):
    """Nodes whose own address is in one of these ranges: sorted, disjoint, of one family."""

    ranges: tuple[Range, ...]


class PortScope(NamedTuple):
    """Ports with this name and protocol: of all pods, or of this node's own (`here`)."""

    name: str
    protocol: int
    here: bool


Scope: TypeAlias = PodScope | BlockScope | PortScope
"""What belongs into a shared set; says all about it, so its hash is the set's name."""


@dataclass(slots=True)
class CompiledPolicy:
    """What one policy is: its rules in the directions in which it isolates, and the sets that they need."""

    rules: dict[Direction, Rules] = field(default_factory=dict)
    sets: dict[str, Scope] = field(default_factory=dict)


def set_name(scope: Scope) -> str:
    """Return the name of the shared set with this scope: the same on all nodes and at all times."""
    if isinstance(scope, PodScope):
        namespaces = scope.namespaces
        where = namespaces if isinstance(namespaces, str) else _plain(namespaces)
        return _named("peers", [where, _plain(scope.pods)])
    if isinstance(scope, BlockScope):
        return _named("nodes", [[each.first.hex(), each.last.hex()] for each in scope.ranges])
    return _named("ports", [scope.name, scope.protocol, scope.here])


def compile_policy(policy: NetworkPolicy) -> CompiledPolicy:
    """Compile one policy."""
    result = CompiledPolicy()
    for direction, rules in ((Direction.INGRESS, policy.ingress), (Direction.EGRESS, policy.egress)):
        if rules is not None:
            families = [
                tuple(dict.fromkeys(_rules(policy, direction, rules, width, result.sets)))
                for width in _WIDTHS
            ]
            result.rules[direction] = Rules(*families)
    return result


def _rules(
    policy: NetworkPolicy,
    direction: Direction,
    rules: Iterable[PolicyRule],
    width: int,
    sets: dict[str, Scope],
) -> Iterator[Rule]:
    """Yield what is allowed in the family with addresses of this width."""

    def shared(scope: Scope) -> str:
        name = set_name(scope)
        sets[name] = scope
        return name

    for rule in rules:
        peers: tuple[Members | Blocks | None, ...] = (None,)
        if rule.peers is not None:
            found: list[Members | Blocks | None] = [
                Members(
                    shared(
                        PodScope(policy.namespace if each.namespaces is None else each.namespaces, each.pods)
                    )
                )
                for each in rule.peers
                if not isinstance(each, IPBlock)
            ]
            if ranges := _ranges(rule.peers, width):
                found.append(Blocks(ranges, "" if covers_everything(ranges) else shared(BlockScope(ranges))))
            peers = tuple(found)
        if not peers:
            continue
        ports: list[Ports | NamedPorts | None] = [None]
        if rule.ports is not None:
            ports = list(_ports(rule.ports))
            ports += [
                NamedPorts(shared(PortScope(each.name, each.protocol, direction is Direction.INGRESS)))
                for each in rule.ports
                if each.name
            ]
        for peer in peers:
            for port in ports:
                yield Rule(peer, port)


def _ranges(peers: Iterable[PolicyPeer], width: int) -> tuple[Range, ...]:
    """Return the addresses of one family in any of the blocks: an exception of one says nothing of others."""
    found: list[Range] = []
    for each in peers:
        if isinstance(each, IPBlock) and len(each.cidr.address) == width:
            holes = [prefix(*hole) for hole in each.exceptions if len(hole.address) == width]
            found += without(prefix(*each.cidr), holes)
    return disjoint(found)


def _ports(ports: Iterable[PolicyPort]) -> Iterator[Ports]:
    numbers = [PortRange(each.protocol, each.first, each.last) for each in ports if not each.name]
    if numbers:
        yield Ports(port_ranges(numbers))


def _plain(selector: Selector) -> list[list[object]]:
    return [[key, operator.value, list(values)] for key, operator, values in selector.requirements]


def _named(kind: str, content: object) -> str:
    text = json.dumps(content, separators=(",", ":"))
    return f"{kind}-{blake2s(text.encode(errors='surrogatepass'), digest_size=8).hexdigest()}"
