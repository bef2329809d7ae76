"""The policies in force as fragments of the desired state: chains, the sets they look up, whom they isolate.

Pure. Follows `Policies`, one change at a time; what has become superfluous goes in a second step (`sweep`),
when nothing in the kernel leads there any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from datapath.desired import Fragment, SetElements
from datapath.nft.elements import key
from datapath.nft.policy import (
    FAMILIES,
    TABLE,
    TUNNELS,
    dispatch_chain,
    policy_chains,
    policy_table,
    subject_elements,
)
from datapath.nft.policy_inspection import ExpectedVerdict
from datapath.nft.rules import Family
from datapath.policy import Blocks, Direction, Members, NamedPorts, Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from daemon.compile.policy import Changes, Policies
    from daemon.compile.policy_verdict import Flow
    from datapath.desired import FragmentKey
    from datapath.nft.policy import DenialLog, PolicyChains
    from datapath.nft.rules import Chain, Set
    from datapath.policy import PolicyPart, Rule, Subject

TABLES: FragmentKey = ("policy", "tables")
TUNNEL_KEY: FragmentKey = ("policy", "tunnels")
BUCKETS = 64
"""Fragments that the elements of one set are spread over: one element changed costs what one of them is."""


class _Held(NamedTuple):
    """What one family's table consists of."""

    chains: dict[str, Chain]
    sets: dict[str, Set]
    static: dict[str, Mapping[bytes, bytes]]


class PolicyTables:
    """The fragments as they were compiled last."""

    def __init__(self, log: DenialLog | None = None) -> None:
        """With `log`, denied packets are told there."""
        self._log = log
        self._owners: dict[str, PolicyPart] = {}
        self._parts: dict[tuple[PolicyPart, Family], PolicyChains] = {}
        self._dispatch: dict[str, dict[tuple[Family, Direction], Chain]] = {}
        self._present: dict[Family, _Held] = {}
        self._buckets: dict[FragmentKey, dict[tuple[int, bytes], None]] = {}

    @property
    def present(self) -> bool:
        """Whether there are tables: some pod is isolated."""
        return bool(self._present)

    @property
    def owners(self) -> Mapping[str, PolicyPart]:
        """Whose the chains of policies are that are in the tables, by the chain's name."""
        return self._owners

    def expected(
        self, model: Policies, subject: Subject, direction: Direction, flow: Flow
    ) -> ExpectedVerdict:
        """Return what the kernel must hold for a flow to end at one of its pods as the model says."""
        family = Family.IPV4 if len(flow.source) == 4 else Family.IPV6
        dispatch = self._dispatch.get(subject.host_link, {}).get((family, direction))
        names = [name for name in subject.isolation(direction) or () if self._knows(name, direction)]
        parts = [self._parts[(name, direction), family] for name in names]
        members: dict[tuple[str, bytes], bool] = {}
        for name in names:
            for each in model.rules[name, direction].of(flow.source):
                members |= _looked_up(model, each, direction, flow)
        return ExpectedVerdict(
            family=family,
            direction=direction,
            host_link=subject.host_link,
            dispatch=dispatch,
            chains=tuple([each.chain for each in parts if each.chain.rules]),
            static=tuple([static for each in parts for static in each.static]),
            members=tuple([(*which, is_in) for which, is_in in members.items()]),
        )

    @property
    def superfluous(self) -> bool:
        """Whether `sweep` has something to do."""
        return self._present != self._needed()

    def take(self, model: Policies, changes: Changes) -> dict[FragmentKey, Fragment | None]:
        """Return the fragments that are different after changes of the model; what is superfluous stays."""
        found: dict[FragmentKey, Fragment | None] = {}
        stale = set(changes.subjects)
        for part in changes.rules:
            self._compile_part(model, part)
            stale |= {
                link for link, each in model.subjects.items() if part[0] in (each.isolation(part[1]) or ())
            }
        for link in stale:
            self._compile_subject(model, link, found)
        needed = self._needed()
        if not needed:
            # Nobody is isolated: the tables go at once, and everything with them.
            if self._present:
                self._hold({}, found)
        elif not self._present or any(
            each.chains.keys() - self._present[family].chains.keys() for family, each in needed.items()
        ):
            self._hold(
                {family: _union(self._present.get(family), each) for family, each in needed.items()}, found
            )
        for name, addresses in (*changes.peers.items(), *changes.nodes.items()):
            members = model.peers.get(name) or model.nodes.get(name) or {}
            self._change(name, {(len(each), each): each in members for each in addresses}, found)
        for name, targets in changes.ports.items():
            there = model.ports.get(name) or {}
            self._change(name, {_target(each): each in there for each in targets}, found)
        if changes.tunnels:
            found[TUNNEL_KEY] = _addresses(TUNNELS, model.tunnels)
        # Tables first: chains must be there before elements lead to them.
        return {name: found[name] for name in sorted(found, key=lambda name: name != TABLES)}

    def sweep(self) -> dict[FragmentKey, Fragment | None]:
        """Return what takes away chains and sets that nothing refers to any more."""
        found: dict[FragmentKey, Fragment | None] = {}
        if self.superfluous:
            self._hold(self._needed(), found)
        return found

    def _compile_part(self, model: Policies, part: PolicyPart) -> None:
        rules = model.rules.get(part)
        for family in FAMILIES:
            if rules is None:
                self._parts.pop((part, family), None)
            else:
                chains = self._parts[part, family] = policy_chains(part[0], part[1], family, rules)
                self._owners[chains.chain.name] = part

    def _compile_subject(self, model: Policies, link: str, found: dict[FragmentKey, Fragment | None]) -> None:
        subject = model.subjects.get(link)
        chains: dict[tuple[Family, Direction], Chain] = {}
        for direction in Direction:
            isolating = subject.isolation(direction) if subject is not None else None
            if isolating is None:
                continue
            for family in FAMILIES:
                asked = [
                    self._parts[(name, direction), family]
                    for name in isolating
                    if self._knows(name, direction)
                ]
                chains[family, direction] = dispatch_chain(direction, asked)
        if chains:
            self._dispatch[link] = chains
            names = {each: chain.name for each, chain in chains.items()}
            found["policy", "subject", link] = Fragment(elements=subject_elements(link, names))
        elif self._dispatch.pop(link, None) is not None:
            found["policy", "subject", link] = None

    def _knows(self, policy: str, direction: Direction) -> bool:
        return ((policy, direction), FAMILIES[0]) in self._parts

    def _needed(self) -> dict[Family, _Held]:
        if not self._dispatch:
            return {}
        needed = {family: _Held({}, {}, {}) for family in FAMILIES}
        for (_, family), part in self._parts.items():
            held = needed[family]
            held.chains[part.chain.name] = part.chain
            held.sets.update((each.name, each) for each in part.sets)
            held.static.update(part.static)
        for chains in self._dispatch.values():
            for (family, _), chain in chains.items():
                needed[family].chains[chain.name] = chain
        return needed

    def _hold(self, wanted: dict[Family, _Held], found: dict[FragmentKey, Fragment | None]) -> None:
        """Make these the tables, and put in what that changes."""
        before, self._present = self._present, wanted
        there = {name for held in wanted.values() for name in held.chains}
        self._owners = {name: part for name, part in self._owners.items() if name in there}
        found[TABLES] = (
            Fragment(
                tables=tuple(
                    policy_table(each, held.sets.values(), held.chains.values(), log=self._log)
                    for each, held in wanted.items()
                )
            )
            if wanted
            else None
        )
        for family in FAMILIES:
            old = before[family].static if family in before else {}
            new = wanted[family].static if family in wanted else {}
            for name in old.keys() - new.keys():
                found["policy", "static", family.text, name] = None
            for name in new.keys() - old.keys():
                elements = SetElements((int(family), TABLE), name, new[name])
                found["policy", "static", family.text, name] = Fragment(elements=(elements,))

    def _change(
        self,
        name: str,
        elements: Mapping[tuple[int, bytes], bool],
        found: dict[FragmentKey, Fragment | None],
    ) -> None:
        """Change elements of a shared set: (width of its addresses, element), and whether it is in."""
        for element, is_in in elements.items():
            bucket: FragmentKey = ("policy", "set", name, str(crc32(element[1]) % BUCKETS))
            held = self._buckets.setdefault(bucket, {})
            if is_in:
                held[element] = None
            else:
                held.pop(element, None)
            found[bucket] = None
        for bucket in [each for each in found if each[:3] == ("policy", "set", name)]:
            held = self._buckets[bucket]
            if held:
                found[bucket] = _members(name, held)
            else:
                del self._buckets[bucket]


def _union(present: _Held | None, needed: _Held) -> _Held:
    if present is None:
        return needed
    return _Held(
        {**present.chains, **needed.chains},
        {**present.sets, **needed.sets},
        {**present.static, **needed.static},
    )


def _looked_up(
    model: Policies, rule: Rule, direction: Direction, flow: Flow
) -> dict[tuple[str, bytes], bool]:
    """Return the elements of shared sets that a rule looks up for a flow, and whether they are in."""
    peer = flow.source if direction is Direction.INGRESS else flow.destination
    found: dict[tuple[str, bytes], bool] = {}
    if isinstance(rule.peer, Members):
        found[rule.peer.name, key(peer)] = peer in model.peers[rule.peer.name]
    elif isinstance(rule.peer, Blocks) and rule.peer.nodes:
        found[rule.peer.nodes, key(peer)] = peer in model.nodes[rule.peer.nodes]
        found[TUNNELS, key(peer)] = peer in model.tunnels
    if isinstance(rule.ports, NamedPorts) and flow.port is not None:
        target = Target(flow.destination, flow.protocol, flow.port)
        found[rule.ports.name, _target(target)[1]] = target in model.ports[rule.ports.name]
    return found


def _target(target: Target) -> tuple[int, bytes]:
    return len(target.address), key(target.address, bytes([target.protocol]), target.port.to_bytes(2, "big"))


def _members(name: str, elements: Iterable[tuple[int, bytes]]) -> Fragment:
    found: dict[int, dict[bytes, bytes]] = {}
    for width, element in elements:
        found.setdefault(width, {})[element] = b""
    return Fragment(
        elements=tuple(SetElements((_FAMILIES[width], TABLE), name, each) for width, each in found.items())
    )


def _addresses(name: str, addresses: Iterable[bytes]) -> Fragment:
    return _members(name, [(len(each), each) for each in addresses])


_FAMILIES = {4: int(Family.IPV4), 16: int(Family.IPV6)}
