"""NetworkPolicy as nftables: which chains and sets there are for the policies in force. Pure.

Tables of their own, which are there only while some policy isolates a pod of this node, or may: a node
without policies spends nothing on them. Two base chains at forward, one for what pods send and one for what
they get, since an accept in the one does not skip the other. What began earlier passes, unless its mark says
that it may no more (the mark is daemon.cutting's). A pod is isolated by being in a map from its
link to a chain, and that chain asks the policies that isolate the pod, one after the other, and ends in a
drop.

Chains are named for what is in them: a changed policy is another chain beside the old one, and the element
that leads to it is changed last. So no packet ever meets half a policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2s
from typing import TYPE_CHECKING, NamedTuple

from datapath.desired import Fragment, SetElements
from datapath.nft.elements import interface, intervals, key, verdict
from datapath.nft.rules import (
    ACCEPT,
    CT_MARK,
    CT_STATE_FIELD,
    DROP,
    ICMPV6_TYPE,
    ICMPV6_TYPE_FIELD,
    IFNAME,
    IIFNAME,
    INET_PROTO,
    INET_SERVICE,
    IP6_DADDR,
    IP6_SADDR,
    IP_DADDR,
    IP_SADDR,
    IPV4_ADDR,
    IPV6_ADDR,
    L4PROTO,
    OIFNAME,
    TCP_FLAG,
    TCP_FLAGS,
    TH_DPORT,
    VERDICT,
    AnyOf,
    Chain,
    Counter,
    CtState,
    Family,
    Hook,
    HookPoint,
    InSet,
    Limit,
    Log,
    Set,
    Table,
    VerdictMap,
    goto,
    jump,
    rule,
)
from datapath.policy import Blocks, Direction, Members, NamedPorts, Ports

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from datapath.nft.rules import DataType, Payload, Statement
    from datapath.nft.rules import Rule as NftRule
    from datapath.policy import Rule, Rules

TABLE = "weft-policy"
LAYOUT = 2

TUNNELS = "tunnels"
"""The addresses by which other nodes come through the overlay: no block says anything about these."""
ITSELF = "itself"
"""(link . link) of isolated pods: what a pod sends to itself, by way of a service."""
SUBJECTS = {Direction.INGRESS: "ingress-subjects", Direction.EGRESS: "egress-subjects"}
"""Maps from a pod's link to the chain that decides."""
CUT_MARK = 0x0800_0000
"""The bit of a tracked flow's mark (ct mark) that says: no policy allows this connection any more."""
DENY = {Direction.INGRESS: "deny-ingress", Direction.EGRESS: "deny-egress"}
DENIED = {Direction.INGRESS: "ingress-denied", Direction.EGRESS: "egress-denied"}
"""Sets of the links of isolated pods, in which the kernel counts what it drops for each."""
LOG_PREFIXES = {Direction.INGRESS: "weft-policy ingress", Direction.EGRESS: "weft-policy egress"}
LOGGED_BYTES = 128
"""Of a denied packet: its headers."""

_EGRESS_PRIORITY, _INGRESS_PRIORITY = 5, 6
_SUBJECT_RANK = 9
_DISCOVERY = "neighbour-discovery"
_DISCOVERY_TYPES = (130, 131, 132, 133, 134, 135, 136, 143)
_BARE_SYN = "bare-syn"
_BARE_SYN_FLAGS = (0x02, 0x42, 0x82, 0xC2)
"""SYN, alone or with the two bits of explicit congestion notification (RFC 3168, section 6.1.1)."""
_COMMENT_BYTES = 120
FAMILIES = (Family.IPV4, Family.IPV6)


class DenialLog(NamedTuple):
    """Where denied packets are told (`datapath.packetlog`): how many a second, by direction and family."""

    group: int
    rate: int


class PolicyChains(NamedTuple):
    """What one policy is in one direction and family: its chain, and the sets that only rules of it name.

    `static` are the elements of those sets: they are named for what they hold.
    """

    chain: Chain
    sets: tuple[Set, ...]
    static: tuple[tuple[str, Mapping[bytes, bytes]], ...]


@dataclass(frozen=True, slots=True)
class _Side:
    """Names of one family in one direction: the peer's address is the source of what comes in."""

    family: Family
    direction: Direction

    @property
    def address(self) -> DataType:
        return IPV4_ADDR if self.family is Family.IPV4 else IPV6_ADDR

    @property
    def peer(self) -> Payload:
        four, six = (IP_SADDR, IP6_SADDR) if self.direction is Direction.INGRESS else (IP_DADDR, IP6_DADDR)
        return four if self.family is Family.IPV4 else six

    @property
    def destination(self) -> Payload:
        return IP_DADDR if self.family is Family.IPV4 else IP6_DADDR


def policy_chains(name: str, direction: Direction, family: Family, rules: Rules) -> PolicyChains:
    """Return the chain of one policy in one direction.

    Args:
        name: of the policy, NAMESPACE/NAME.
        direction: which of its halves.
        family: of the table.
        rules: what it allows.
    """
    side = _Side(family, direction)
    sets: dict[str, Set] = {}
    static: dict[str, Mapping[bytes, bytes]] = {}
    found: list[NftRule] = []
    for each in rules.ipv4 if family is Family.IPV4 else rules.ipv6:
        ports = tuple(_ports(side, each, sets, static))
        found += [
            rule(*peer, *ports, Counter(), ACCEPT, comment=name[:_COMMENT_BYTES])
            for peer in _peers(side, each, sets, static)
        ]
    chain = Chain(f"policy-{direction.value}-{_digest(name, found)}", tuple(found))
    return PolicyChains(chain, tuple(sets.values()), tuple(static.items()))


def dispatch_chain(direction: Direction, policies: Iterable[PolicyChains]) -> Chain:
    """Return the chain of pods that these policies isolate, in order; with none it denies everything."""
    chains = [each.chain for each in policies]
    leads = tuple(rule(jump(each.name)) for each in chains if each.rules)
    name = f"{direction.value}-{_digest(*(each.name for each in chains))}"
    return Chain(name, (*leads, rule(goto(DENY[direction]))))


def policy_table(
    family: Family, sets: Iterable[Set] = (), chains: Iterable[Chain] = (), *, log: DenialLog | None = None
) -> Table:
    """Return a family's table with these sets and chains of policies; with `log`, what is denied is told."""
    address = IPV4_ADDR if family is Family.IPV4 else IPV6_ADDR
    own = [
        Set(TUNNELS, (address,)),
        Set(ITSELF, (IFNAME, IFNAME)),
        *(Set(name, (IFNAME,), (VERDICT,), rank=_SUBJECT_RANK) for name in SUBJECTS.values()),
        *(Set(name, (IFNAME,), counted=True) for name in DENIED.values()),
        Set(_BARE_SYN, (TCP_FLAG,), constant=tuple((key(bytes([each])), b"") for each in _BARE_SYN_FLAGS)),
    ]
    discovery: tuple[NftRule, ...] = ()
    if family is Family.IPV6:
        types = tuple((key(bytes([each])), b"") for each in _DISCOVERY_TYPES)
        own.append(Set(_DISCOVERY, (ICMPV6_TYPE,), constant=types))
        discovery = (rule(InSet((ICMPV6_TYPE_FIELD,), _DISCOVERY), ACCEPT),)
    begun = rule(AnyOf(CT_STATE_FIELD, CtState.ESTABLISHED | CtState.RELATED), ACCEPT)
    # What a node's own cache of names keeps out of tracking (NOTRACK) has no beginning.
    known = rule(AnyOf(CT_STATE_FIELD, CtState.ESTABLISHED | CtState.RELATED | CtState.UNTRACKED), ACCEPT)
    cut = rule(AnyOf(CT_MARK, CUT_MARK), Counter(), DROP, comment="no policy allows this connection any more")
    # A connection whose tracking was lost begins anew with whoever speaks first. Where that is the one who
    # was called, its policies would be asked the wrong way round: so it must be the one who called.
    begins = InSet((TCP_FLAGS,), _BARE_SYN, negate=True)
    resumes = "who was called can't resume a connection"
    from_called = rule(begins, InSet((IIFNAME,), DENIED[Direction.INGRESS]), DROP, comment=resumes)
    to_caller = rule(begins, InSet((OIFNAME,), DENIED[Direction.EGRESS]), DROP, comment=resumes)
    itself = rule(InSet((IIFNAME, OIFNAME), ITSELF), ACCEPT)
    sends = rule(VerdictMap((IIFNAME,), SUBJECTS[Direction.EGRESS]))
    gets = rule(VerdictMap((OIFNAME,), SUBJECTS[Direction.INGRESS]))
    denies = [_deny_chain(direction, log) for direction in Direction]
    bases = [
        Chain(
            "egress",
            (cut, begun, itself, from_called, to_caller, sends),
            Hook("filter", HookPoint.FORWARD, _EGRESS_PRIORITY),
        ),
        Chain("ingress", (begun, itself, gets), Hook("filter", HookPoint.FORWARD, _INGRESS_PRIORITY)),
        Chain("to-node", (*discovery, cut, begun, sends), Hook("filter", HookPoint.INPUT, _EGRESS_PRIORITY)),
        Chain("from-node", (known, to_caller), Hook("filter", HookPoint.OUTPUT, _EGRESS_PRIORITY)),
    ]
    return Table(family, TABLE, LAYOUT, (*own, *sets), (*denies, *chains, *bases))


def _deny_chain(direction: Direction, log: DenialLog | None) -> Chain:
    """Return where packets end that no policy allows: told, within bounds, counted by pod, and dropped."""
    found = []
    if log is not None:
        told = Log(log.group, LOG_PREFIXES[direction], LOGGED_BYTES)
        found.append(rule(Limit(log.rate, 2 * log.rate), told))
    link = IIFNAME if direction is Direction.EGRESS else OIFNAME
    found.append(
        rule(InSet((link,), DENIED[direction]), DROP, comment=f"no policy allows this {direction.value}")
    )
    # For each pod that leads here there is an element, but for the moment between two transactions.
    found.append(rule(Counter(), DROP))
    return Chain(DENY[direction], tuple(found))


def subject_elements(
    host_link: str, chains: Mapping[tuple[Family, Direction], str]
) -> tuple[SetElements, ...]:
    """Return the elements that isolate a pod.

    Args:
        host_link: the pod's.
        chains: which chain decides, by family and by direction in which it is isolated.
    """
    link = key(interface(host_link))
    found = [
        each
        for (family, direction), chain in chains.items()
        for each in (
            SetElements((int(family), TABLE), SUBJECTS[direction], {link: verdict(goto(chain))}),
            SetElements((int(family), TABLE), DENIED[direction], {link: b""}),
        )
    ]
    families = {family for family, _ in chains}
    return (
        *found,
        *(SetElements((int(each), TABLE), ITSELF, {link + link: b""}) for each in sorted(families)),
    )


def closed_fragment(host_link: str, directions: Iterable[Direction]) -> Fragment:
    """Return what closes a pod from its first packet on, until it is known what it may; tables included."""
    chains = {(family, each): DENY[each] for family in FAMILIES for each in directions}
    return Fragment(
        elements=subject_elements(host_link, chains), tables=tuple(policy_table(each) for each in FAMILIES)
    )


def member_set(family: Family, name: str) -> Set:
    """Return the declaration of a shared set of addresses."""
    return Set(name, (IPV4_ADDR if family is Family.IPV4 else IPV6_ADDR,))


def named_port_set(family: Family, name: str) -> Set:
    """Return the declaration of a shared set of named ports' targets."""
    return Set(name, (IPV4_ADDR if family is Family.IPV4 else IPV6_ADDR, INET_PROTO, INET_SERVICE))


def _peers(
    side: _Side, each: Rule, sets: dict[str, Set], static: dict[str, Mapping[bytes, bytes]]
) -> Iterator[tuple[Statement, ...]]:
    """Yield what the peer must meet; each alternative is a rule of its own."""
    match each.peer:
        case None:
            yield ()
        case Members(name):
            sets[name] = member_set(side.family, name)
            yield (InSet((side.peer,), name),)
        case Blocks(ranges, nodes):
            name = f"blocks-{_digest(ranges)}"
            if nodes:
                sets[nodes] = member_set(side.family, nodes)
                yield (InSet((side.peer,), nodes),)
            if ranges:
                sets[name] = Set(name, (side.address,), interval=True)
                static[name] = intervals(ranges)
                others = (InSet((side.peer,), TUNNELS, negate=True),) if nodes else ()
                yield (*others, InSet((side.peer,), name))


def _ports(
    side: _Side, each: Rule, sets: dict[str, Set], static: dict[str, Mapping[bytes, bytes]]
) -> Iterator[Statement]:
    match each.ports:
        case None:
            return
        case NamedPorts(name):
            sets[name] = named_port_set(side.family, name)
            yield InSet((side.destination, L4PROTO, TH_DPORT), name)
        case Ports(ranges):
            name = f"ports-{_digest(ranges)}"
            sets[name] = Set(name, (INET_PROTO, INET_SERVICE), interval=True)
            static[name] = {
                _port(protocol, first) + _port(protocol, last): b"" for protocol, first, last in ranges
            }
            yield InSet((L4PROTO, TH_DPORT), name)


def _port(protocol: int, port: int) -> bytes:
    return key(bytes([protocol]), port.to_bytes(2, "big"))


def _digest(*parts: object) -> str:
    return blake2s(repr(parts).encode(), digest_size=8).hexdigest()
