"""Where the first packet of a connection goes: a walk through our rules, hook by hook. Pure.

Stands on the values that are sent to the kernel (`datapath.nft.rules`) and on their elements; it is to tests
what the kernel is, and tells people why a packet went where it went. Every choice that the kernel would leave
to chance is followed. What is not ours (foreign tables, rp_filter, neighbours) it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from fractions import Fraction
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from datapath.nft.evaluation import End, Evaluation, Surroundings
from datapath.nft.rules import CtState, HookPoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from datapath.nft.evaluation import Memory, Packet
    from datapath.nft.rules import Chain, Rule, Ruleset, Table

LOOPBACK = "lo"
MOST_PATHS = 1 << 16
_NAT = "nat"
_NONE: Mapping[bytes, bytes] = {}


class Route(NamedTuple):
    """A route: packets to the prefix leave by the link. Of several that fit the longest counts."""

    address: bytes
    length: int
    link: str


@dataclass(frozen=True, slots=True)
class Host:
    """What the rules can't tell of a host.

    Attributes:
        addresses: its own.
        routes: where it sends what is not its own.
        masquerade: the address that masquerading gives to packets that leave by a link, by link and width.
    """

    addresses: frozenset[bytes]
    routes: tuple[Route, ...] = ()
    masquerade: Mapping[tuple[str, int], bytes] = field(default_factory=dict)

    def link_to(self, address: bytes) -> str:
        """Return the link by which packets to an address leave; "lo" for its own, "" where no route leads."""
        if address in self.addresses:
            return LOOPBACK
        fitting = [route for route in self.routes if _leads(route, address)]
        return max(fitting, key=lambda route: route.length).link if fitting else ""


class Fate(Enum):
    """What becomes of a packet on a host."""

    DELIVERED = "delivered to this host"
    SENT = "sent on"
    DROPPED = "dropped by a rule"
    REFUSED = "refused by a rule"
    UNROUTED = "no route leads there"


class Step(NamedTuple):
    """A rule that did something to the packet, or led it elsewhere."""

    table: Table
    hook: HookPoint
    chain: str
    number: int

    @property
    def rule(self) -> Rule:
        """The rule itself."""
        return next(chain.rules[self.number] for chain in self.table.chains if chain.name == self.chain)


@dataclass(frozen=True, slots=True)
class Path:
    """One way that the packet can go.

    Attributes:
        fate: what becomes of it.
        packet: as it is in the end.
        chance: how probable this way is among all of them.
        steps: the rules on its way, in order.
        memory: what the dynamic maps hold afterwards.
    """

    fate: Fate
    packet: Packet
    chance: Fraction
    steps: tuple[Step, ...]
    memory: Memory


def trace(ruleset: Ruleset, packet: Packet, host: Host, memory: Memory | None = None) -> tuple[Path, ...]:
    """Return all ways that the first packet of a connection can go.

    Args:
        ruleset: our tables and the elements of their sets.
        packet: as it comes in by its `iif`, or as this host sends it where that is empty.
        host: addresses and routes.
        memory: what the dynamic maps hold; it is not changed.

    Raises:
        ValueError: there are more ways than MOST_PATHS.
    """
    paths: list[Path] = []
    drawn: list[_Draw] | None = []
    while drawn is not None:
        copied = {key: dict(elements) for key, elements in (memory or {}).items()}
        walk = _Walk(ruleset, replace(packet), host, copied, drawn)
        fate = walk.go()
        chance = Fraction(1)
        for draw in walk.draws:
            chance /= draw.below
        paths.append(Path(fate, walk.packet, chance, tuple(walk.steps), walk.memory))
        if len(paths) > MOST_PATHS:
            raise ValueError(f"there are more than {MOST_PATHS} ways for this packet")
        drawn = _next(walk.draws)
    return tuple(paths)


class _Draw(NamedTuple):
    """A number that was drawn, and below what."""

    number: int
    below: int


def _next(draws: list[_Draw]) -> list[_Draw] | None:
    """Return the draws of the next way, in lexical order; None when all were followed."""
    for position in reversed(range(len(draws))):
        number, below = draws[position]
        if number + 1 < below:
            return [*draws[:position], _Draw(number + 1, below)]
    return None


class _Walk:
    """One way; the first numbers that it draws are given, the others are 0."""

    def __init__(
        self, ruleset: Ruleset, packet: Packet, host: Host, memory: Memory, given: list[_Draw]
    ) -> None:
        self.packet = packet
        self.memory = memory
        self.steps: list[Step] = []
        self.draws: list[_Draw] = []
        self._given = given
        self._host = host
        self._hook = HookPoint.PREROUTING
        self._translates = True
        self._evaluations = [
            (table, Evaluation(table, _elements(ruleset, table), memory, self._surroundings(table)))
            for table in ruleset.tables
            if table.family is packet.family
        ]

    def _surroundings(self, table: Table) -> Surroundings:
        def note(chain: str, number: int) -> None:
            self.steps.append(Step(table, self._hook, chain, number))

        return Surroundings(self._host.addresses.__contains__, self._masquerade, self._draw, note)

    def _masquerade(self, packet: Packet) -> bytes | None:
        return self._host.masquerade.get((packet.oif, len(packet.source)))

    def _draw(self, below: int) -> int:
        position = len(self.draws)
        number = self._given[position].number if position < len(self._given) else 0
        self.draws.append(_Draw(number, below))
        return number

    def go(self) -> Fate:
        """Walk; returns the end."""
        if self.packet.iif:
            return self._pass(HookPoint.PREROUTING) or self._arrive()
        return self._leave(HookPoint.OUTPUT) or self._return()

    def _arrive(self) -> Fate:
        if self.packet.destination in self._host.addresses:
            return self._pass(HookPoint.INPUT) or Fate.DELIVERED
        return self._leave(HookPoint.FORWARD) or Fate.SENT

    def _leave(self, point: HookPoint) -> Fate | None:
        """Route, pass the hook, and route again, as the hook may have changed where the packet goes."""
        packet = self.packet
        packet.oif = self._host.link_to(packet.destination)
        if not packet.oif:
            return Fate.UNROUTED
        if (end := self._pass(point)) is not None:
            return end
        packet.oif = self._host.link_to(packet.destination)
        return self._pass(HookPoint.POSTROUTING) if packet.oif else Fate.UNROUTED

    def _return(self) -> Fate:
        """What a host sends to itself comes in again; its connection has been translated by then."""
        if self.packet.oif != LOOPBACK:
            return Fate.SENT
        self.packet.iif, self.packet.oif, self._translates = LOOPBACK, "", False
        return self._pass(HookPoint.PREROUTING) or self._arrive()

    def _pass(self, point: HookPoint) -> Fate | None:
        """Evaluate the base chains of a hook; None: the packet goes on.

        Of the chains that translate the first that does so is the last that is asked.
        """
        self._hook = point
        before = self.packet.status
        for chain, evaluation in self._chains(point):
            if chain.hook is not None and chain.hook.type == _NAT:
                tracked = CtState.NEW in self.packet.state
                if not tracked or not self._translates or self.packet.status != before:
                    continue
            end = evaluation.base(chain, self.packet)
            if end is not End.ACCEPTED:
                return Fate.DROPPED if end is End.DROPPED else Fate.REFUSED
        return None

    def _chains(self, point: HookPoint) -> Iterator[tuple[Chain, Evaluation]]:
        found = [
            (chain.hook.priority, chain, evaluation)
            for table, evaluation in self._evaluations
            for chain in table.chains
            if chain.hook is not None and chain.hook.point is point
        ]
        for _, chain, evaluation in sorted(found, key=itemgetter(0)):
            yield chain, evaluation


def _elements(ruleset: Ruleset, table: Table) -> dict[str, Mapping[bytes, bytes]]:
    return {
        declared.name: ruleset.elements.get((*table.key, declared.name), _NONE) for declared in table.sets
    }


def _leads(route: Route, address: bytes) -> bool:
    if len(route.address) != len(address):
        return False
    shift = len(address) * 8 - route.length
    return int.from_bytes(route.address, "big") >> shift == int.from_bytes(address, "big") >> shift
