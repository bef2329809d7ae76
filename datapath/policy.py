"""What NetworkPolicies ask of the datapath, as values. Pure: knows no Kubernetes, no nftables, no time.

Three layers, each referring to the next by name:

- A `Subject` is a pod of this node with the policies that isolate it, by direction. Pods that are isolated by
  the same policies may share a chain.
- `Rules` are what one policy allows in one direction, by family: a packet is accepted that meets any of them.
- Shared sets are what rules look up: addresses of pods (`Members`), addresses by which nodes come through the
  overlay (`Blocks.nodes`), ports that pods call by a name (`NamedPorts`). They are named for what is in them,
  the same on all nodes and at all times, are shared by all policies, and alone change when pods come and go.

A packet that starts a connection of an isolated pod passes if a rule of a policy that isolates it in that
direction accepts it. What else passes (replies, the pod itself, its own node, neighbour discovery) does not
depend on policies.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from datapath.nft.elements import Range, disjoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Direction(Enum):
    """As seen from the pod that a policy selects."""

    INGRESS = "ingress"
    EGRESS = "egress"


class PortRange(NamedTuple):
    """Ports of one protocol (as in IP headers) from `first` to `last`, both included."""

    protocol: int
    first: int
    last: int


class Target(NamedTuple):
    """Where a named port leads at one pod: element of a NamedPorts set."""

    address: bytes
    protocol: int
    port: int


@dataclass(frozen=True, slots=True)
class Members:
    """The peer is in the shared set of this name, whose elements are addresses of pods, of both families."""

    name: str


@dataclass(frozen=True, slots=True)
class Blocks:
    """The peer's address is in one of the ranges, all of one family, sorted and disjoint.

    A node that comes through the overlay carries an address of its podCIDR, its tunnel address, and counts
    as what it is: such an address is in the blocks if it is in the shared set `nodes`, and the ranges say
    nothing about it. `nodes` is "" where the ranges hold all addresses, of nodes too.
    """

    ranges: tuple[Range, ...]
    nodes: str


@dataclass(frozen=True, slots=True)
class Ports:
    """The destination port is in one of the ranges, sorted and disjoint; other protocols have no ports."""

    ranges: tuple[PortRange, ...]


@dataclass(frozen=True, slots=True)
class NamedPorts:
    """Destination, protocol and port are in the shared set of this name, whose elements are Targets."""

    name: str


@dataclass(frozen=True, slots=True)
class Rule:
    """Accepts what comes from (ingress) or goes to (egress) the peer, at the ports; None stands for any.

    For a rule without ports every protocol is right; a rule with ports never accepts one that has none.
    """

    peer: Members | Blocks | None = None
    ports: Ports | NamedPorts | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """What one policy allows in one direction: any of the rules of the packet's family. () allows nothing."""

    ipv4: tuple[Rule, ...] = ()
    ipv6: tuple[Rule, ...] = ()

    def of(self, address: bytes) -> tuple[Rule, ...]:
        """Return the rules of an address's family."""
        return self.ipv4 if len(address) == 4 else self.ipv6


@dataclass(frozen=True, slots=True)
class Subject:
    """A pod of this node, and by which policies it is isolated.

    Attributes:
        host_link: the node's end of its attachment, which names it in the datapath.
        pod: NAMESPACE/NAME.
        addresses: at most one per family.
        ingress, egress: the policies that isolate it in that direction, sorted; None where none does. ()
            closes it: policies of its namespace may select it, and its labels are not known yet.
    """

    host_link: str
    pod: str
    addresses: tuple[bytes, ...]
    ingress: tuple[str, ...] | None = None
    egress: tuple[str, ...] | None = None

    def isolation(self, direction: Direction) -> tuple[str, ...] | None:
        """Return the policies that isolate it in a direction."""
        return self.ingress if direction is Direction.INGRESS else self.egress


PolicyPart: TypeAlias = tuple[str, Direction]
"""Names Rules: the policy, NAMESPACE/NAME, and the direction."""


def contains(ranges: Sequence[Range], address: bytes) -> bool:
    """Return whether sorted disjoint ranges hold an address of their family."""
    place = bisect_right(ranges, (address, b"\xff" * len(address))) - 1
    return place >= 0 and ranges[place].first <= address <= ranges[place].last


def covers_everything(ranges: Sequence[Range]) -> bool:
    """Return whether sorted disjoint ranges hold every address of their family."""
    if not ranges:
        return False
    width = len(ranges[0].first)
    joined = merged(ranges)
    return joined == (Range(bytes(width), b"\xff" * width),)


def merged(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Return the same addresses as disjoint ranges of which no two touch either, sorted."""
    result: list[Range] = []
    for each in disjoint(ranges):
        if result and int.from_bytes(result[-1].last) + 1 == int.from_bytes(each.first):
            result[-1] = Range(result[-1].first, each.last)
        else:
            result.append(each)
    return tuple(result)


def without(whole: Range, holes: Iterable[Range]) -> tuple[Range, ...]:
    """Return what of a range is in none of the others (of the same family), disjoint and sorted."""
    result: list[Range] = []
    width = len(whole.first)
    start, end = int.from_bytes(whole.first), int.from_bytes(whole.last)
    for hole in disjoint(holes):
        first, last = int.from_bytes(hole.first), int.from_bytes(hole.last)
        if last < start or first > end:
            continue
        if first > start:
            result.append(_range(start, first - 1, width))
        start = last + 1
    if start <= end:
        result.append(_range(start, end, width))
    return tuple(result)


def port_ranges(ranges: Iterable[PortRange]) -> tuple[PortRange, ...]:
    """Return the same ports as disjoint ranges of which no two touch, sorted."""
    result: list[PortRange] = []
    for each in sorted(ranges):
        last = result[-1] if result else None
        if last is not None and last.protocol == each.protocol and each.first <= last.last + 1:
            result[-1] = PortRange(each.protocol, last.first, max(last.last, each.last))
        else:
            result.append(each)
    return tuple(result)


def _range(first: int, last: int, width: int) -> Range:
    return Range(first.to_bytes(width, "big"), last.to_bytes(width, "big"))
