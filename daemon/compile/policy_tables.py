"""The policies in force as fragments of the desired state: chains, the sets they look up, whom they isolate.

Pure. Follows `Policies`, one change at a time; what has become superfluous goes in a second step (`sweep`),
when nothing in the kernel leads there any more.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING
from zlib import crc32

from daemon.compile.policy_content import Content
from datapath.desired import Fragment, SetElements
from datapath.nft.elements import key
from datapath.nft.plan import Transaction
from datapath.nft.policy import (
    FAMILIES,
    TABLE,
    TUNNELS,
    dispatch_chain,
    member_set,
    policy_chains,
    policy_table,
    subject_elements,
)
from datapath.nft.policy_inspection import ExpectedVerdict
from datapath.nft.rules import Family, Table
from datapath.nft.trial import TABLE as TRIAL
from datapath.nft.trial import trial
from datapath.policy import Blocks, Direction, Members, NamedPorts, Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from daemon.compile.policy import Changes, Policies
    from daemon.compile.policy_verdict import Flow
    from datapath.desired import FragmentKey
    from datapath.netlink.transport import Message
    from datapath.nft.policy import DenialLog, PolicyChains
    from datapath.nft.rules import Chain, Set
    from datapath.policy import PolicyPart, Rule, Rules, Subject

TABLES: FragmentKey = ("policy", "tables")
TUNNEL_KEY: FragmentKey = ("policy", "tunnels")
BUCKETS = 64
"""Fragments that the elements of one set are spread over: one element changed costs what one of them is."""


class PolicyTables:
    """The fragments as they were compiled last."""

    def __init__(self, log: DenialLog | None = None) -> None:
        """With `log`, denied packets are told there."""
        self._log = log
        self._owners: dict[str, PolicyPart] = {}
        self._parts: dict[tuple[PolicyPart, Family], PolicyChains] = {}
        self._dispatch: dict[str, dict[tuple[Family, Direction], Chain]] = {}
        self._isolated: dict[str, frozenset[PolicyPart]] = {}
        """By host link, what isolates its pod; `_links` is the same the other way round."""
        self._links: dict[PolicyPart, set[str]] = {}
        self._content = {family: Content() for family in FAMILIES}
        self._present = False
        self._static: set[tuple[Family, str]] = set()
        self._buckets: dict[FragmentKey, dict[tuple[int, bytes], None]] = {}

    def log_denials(self, log: DenialLog | None) -> None:
        """Have denied packets told there, in what is compiled from now on."""
        self._log = log

    @property
    def divisible(self) -> list[PolicyPart]:
        """The policies of which the kernel may refuse something: those that have rules."""
        found = {part: None for (part, _), each in self._parts.items() if each.chain.rules}
        return list(found)

    def trial(
        self, parts: Iterable[PolicyPart], withheld: Mapping[PolicyPart, Rules] = MappingProxyType({})
    ) -> Transaction:
        """Return what finds out whether the kernel takes just these policies.

        Args:
            parts: of those in the tables.
            withheld: rules to try instead of those that some of them have there.
        """
        wanted = list(parts)
        messages: list[Message] = []
        for family in FAMILIES:
            sets: dict[str, Set] = {}
            static: dict[str, Mapping[bytes, bytes]] = {}
            chains = [self._parts[part, family] for part in wanted if part not in withheld]
            chains += [policy_chains(*part, family, withheld[part]) for part in wanted if part in withheld]
            for each in chains:
                sets.update((one.name, one) for one in each.sets)
                static.update(each.static)
            sets[TUNNELS] = member_set(family, TUNNELS)
            table = Table(
                family,
                TRIAL,
                1,
                tuple(sets.values()),
                tuple({each.chain.name: each.chain for each in chains}.values()),
            )
            messages += trial(table, static).messages
        return Transaction(tuple(messages), ())

    @property
    def present(self) -> bool:
        """Whether there are tables: some pod is isolated."""
        return self._present

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
        return any(each.superfluous for each in self._content.values())

    def take(self, model: Policies, changes: Changes) -> dict[FragmentKey, Fragment | None]:
        """Return the fragments that are different after changes of the model; what is superfluous stays."""
        found: dict[FragmentKey, Fragment | None] = {}
        stale = set(changes.subjects)
        for part in changes.rules:
            self._compile_part(model, part)
            stale |= self._links.get(part, set())
        for link in stale:
            self._compile_subject(model, link, found)
        if not self._dispatch:
            # Nobody is isolated: the tables go at once, and everything with them.
            self._sweep()
            if self._present:
                self._hold(found)
        elif not self._present or any(each.grown for each in self._content.values()):
            self._hold(found)
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
            self._sweep()
            self._hold(found)
        return found

    def _compile_part(self, model: Policies, part: PolicyPart) -> None:
        rules = model.rules.get(part)
        for family in FAMILIES:
            before = self._parts.pop((part, family), None)
            if rules is not None:
                after = self._parts[part, family] = policy_chains(part[0], part[1], family, rules)
                self._content[family].use_policy(after)
                self._owners[after.chain.name] = part
            if before is not None:
                self._content[family].leave_policy(before)

    def _compile_subject(self, model: Policies, link: str, found: dict[FragmentKey, Fragment | None]) -> None:
        subject = model.subjects.get(link)
        self._file(link, subject)
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
        before = self._dispatch.pop(link, {})
        for (family, _), chain in chains.items():
            self._content[family].use(chain)
        for (family, _), chain in before.items():
            self._content[family].leave(chain)
        if chains:
            self._dispatch[link] = chains
            names = {each: chain.name for each, chain in chains.items()}
            found["policy", "subject", link] = Fragment(elements=subject_elements(link, names))
        elif before:
            found["policy", "subject", link] = None

    def _file(self, link: str, subject: Subject | None) -> None:
        """Note what isolates a pod, so that a changed policy finds it."""
        before = self._isolated.pop(link, _NOTHING)
        after = _NOTHING
        if subject is not None:
            after = frozenset((name, each) for each in Direction for name in subject.isolation(each) or ())
        if after:
            self._isolated[link] = after
        for part in after - before:
            self._links.setdefault(part, set()).add(link)
        for part in before - after:
            self._links[part].discard(link)
            if not self._links[part]:
                del self._links[part]

    def _knows(self, policy: str, direction: Direction) -> bool:
        return ((policy, direction), FAMILIES[0]) in self._parts

    def _sweep(self) -> None:
        for each in self._content.values():
            each.sweep()
        there = {name for each in self._content.values() for name in each.chains}
        self._owners = {name: part for name, part in self._owners.items() if name in there}

    def _hold(self, found: dict[FragmentKey, Fragment | None]) -> None:
        """Put in the tables as they are now, with the elements of sets that never change."""
        self._present = bool(self._dispatch)
        wanted = self._content if self._present else {}
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
        static = {(family, name) for family, held in wanted.items() for name in held.static}
        for family, name in self._static - static:
            found["policy", "static", family.text, name] = None
        for family, name in static - self._static:
            elements = SetElements((int(family), TABLE), name, wanted[family].static[name])
            found["policy", "static", family.text, name] = Fragment(elements=(elements,))
        self._static = static
        for each in wanted.values():
            each.grown = False

    def _change(
        self,
        name: str,
        elements: Mapping[tuple[int, bytes], bool],
        found: dict[FragmentKey, Fragment | None],
    ) -> None:
        """Change elements of a shared set: (width of its addresses, element), and whether it is in."""
        buckets: set[FragmentKey] = set()
        for element, is_in in elements.items():
            bucket: FragmentKey = ("policy", "set", name, str(crc32(element[1]) % BUCKETS))
            held = self._buckets.setdefault(bucket, {})
            if is_in:
                held[element] = None
            else:
                held.pop(element, None)
            buckets.add(bucket)
        for bucket in buckets:
            held = self._buckets[bucket]
            if held:
                found[bucket] = _members(name, held)
            else:
                found[bucket] = None
                del self._buckets[bucket]


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


_NOTHING: frozenset[PolicyPart] = frozenset()
_FAMILIES = {4: int(Family.IPV4), 16: int(Family.IPV6)}
