"""The part of the skeleton that serves Services: static chains over maps of plain data. Pure.

A new connection costs the same whatever the number of services, and a change of a service touches its own
elements alone: rules never change while services come and go. (Only a number of backends or an affinity
timeout that was never there adds chains.) `frontends` says what the sets hold.

Host ports (`hostports`) are looked up between the frontends with an address and the node ports.

The walk of a connection's first packet, in prerouting and output: the frontend's word is looked up into `meta
priority`, its flags decide about source NAT and affinity, its lower half, the number N of backends, picks the
chain that draws one of N slots. A packet can meet the N of before and the slots of after a change: then the
slot may be missing, and the second rule of the chain takes slot 0. Without it one SYN in a thousand would go
astray.

Verdict maps are constant: a commit that touches verdicts makes the kernel walk all chains.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from datapath.nft.elements import verdict
from datapath.nft.frontends import (
    ALLOWED,
    CLIENTS,
    CLUSTER_IPS,
    DROPPED,
    ENDPOINTS,
    FIREWALLED,
    HAS_AFFINITY,
    IDENTICAL,
    IDS,
    NODE_PORT_ADDRESSES,
    NODE_PORT_PREFIX,
    NODE_SOURCE,
    OUTSIDE,
    OUTSIDE_ID,
    OUTSIDE_SLOT,
    POD_CIDRS,
    REFUSED,
    SERVICE_CIDRS,
    SERVICES,
    SIZE_MASK,
    SNAT_ALWAYS,
    SNAT_FOREIGN,
    STICKY,
    TIMEOUTS,
    TREATS_OUTSIDE,
)
from datapath.nft.hostports import host_port_chain, host_port_maps, host_port_rule, loopback_snat
from datapath.nft.rules import (
    CT_STATE_FIELD,
    CT_STATUS_FIELD,
    DROP,
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
    MARK,
    META_MARK,
    META_PRIORITY,
    NF_PROTO,
    NFPROTO,
    OIFNAME,
    RETURN,
    SADDR_TYPE,
    TCP_DPORT,
    TH_DPORT,
    VERDICT,
    AnyOf,
    Chain,
    CtState,
    CtStatus,
    Equals,
    Family,
    Forget,
    Hook,
    HookPoint,
    InSet,
    Lookup,
    MarkBits,
    Masked,
    Masquerade,
    RandomNumber,
    Reject,
    RejectKind,
    Remember,
    Set,
    SetPriority,
    Starts,
    Translate,
    VerdictMap,
    goto,
    jump,
    rule,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from datapath.nft.rules import DataType, Payload, Rule, Selector, Verdict

COMMON_SIZES = 32
"""Numbers of backends whose chains are there from the start."""
SNAT_MARK = 0x4000
"""The bit of the packet's mark that asks for source NAT between prerouting and postrouting."""

NAT_CHAIN = "service"
REFUSE_CHAIN = "no-service"
SNAT_CHAIN = "source-nat"

_DSTNAT, _FIREWALL = -100, -110
_LOCAL = struct.pack("=I", 2)
_NEW = AnyOf(CT_STATE_FIELD, CtState.NEW)


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """What the chains depend on.

    Attributes:
        sizes: numbers of backends that occur.
        timeouts: affinity timeouts, in seconds, that occur.
        mark: the bit of the packet's mark that asks for source NAT.
        common: the numbers of backends from 1 to this have their chains from the start.
    """

    sizes: tuple[int, ...] = ()
    timeouts: tuple[int, ...] = ()
    mark: int = SNAT_MARK
    common: int = COMMON_SIZES

    @property
    def all_sizes(self) -> tuple[int, ...]:
        """The numbers of backends that there are chains for."""
        return tuple(sorted({*range(1, self.common + 1), *self.sizes}))


@dataclass(frozen=True, slots=True)
class _Shape:
    """Frontends by address, or node ports; all clients, or those from outside: names and keys of these."""

    prefix: str
    variant: str
    place: tuple[Selector, ...]
    types: tuple[DataType, ...]
    saddr: Payload
    address: DataType

    def set(self, name: str) -> str:
        """Return the name of a set, which all clients share."""
        return self.prefix + name

    def chain(self, name: str) -> str:
        """Return the name of a chain, or of a constant map of chains."""
        return self.prefix + self.variant + name

    @property
    def words(self) -> str:
        """The map that holds the number of backends for these clients."""
        return self.set(OUTSIDE if self.variant else SERVICES)

    def slot(self, below: int) -> tuple[Selector, ...]:
        """Return the key of a slot drawn at random."""
        return (*self.place, RandomNumber(below, OUTSIDE_SLOT if self.variant else 0))


def _shapes(family: Family) -> Iterator[_Shape]:
    """Yield the four shapes: by address for all and for outsiders, node ports for all and for outsiders."""
    address, saddr, daddr = (
        (IPV4_ADDR, IP_SADDR, IP_DADDR) if family is Family.IPV4 else (IPV6_ADDR, IP6_SADDR, IP6_DADDR)
    )
    port, types = (L4PROTO, TH_DPORT), (INET_PROTO, INET_SERVICE)
    for variant in ("", "outside-"):
        yield _Shape("", variant, (daddr, *port), (address, *types), saddr, address)
        yield _Shape(NODE_PORT_PREFIX, variant, port, types, saddr, address)


def service_sets(family: Family, options: ServiceOptions) -> Iterator[Set]:
    """Yield the sets and maps of one family's table."""
    for shape in _shapes(family):
        if not shape.variant:
            yield from _frontend_sets(shape)
        yield _constant(shape.chain("sizes"), options.all_sizes, goto, shape.chain("one-of"))
        sizes = options.all_sizes if options.timeouts else ()
        yield _constant(shape.chain("draws"), sizes, jump, shape.chain("draw"))
        yield _constant(shape.chain("by-timeout"), options.timeouts, goto, shape.chain("stick"))
    by_address = next(_shapes(family))
    address = by_address.address
    yield Set(ALLOWED, (*by_address.types, address), interval=True)
    yield Set(FIREWALLED, by_address.types, rank=1)
    yield Set(CLUSTER_IPS, (address,))
    yield Set(SERVICE_CIDRS, (address,), interval=True)
    yield Set(POD_CIDRS, (address,), interval=True)
    yield Set(NODE_PORT_ADDRESSES, (address,))
    yield Set(NODE_SOURCE, (NF_PROTO,), (address,))
    yield from host_port_maps(family)


def service_chains(family: Family, options: ServiceOptions) -> Iterator[Chain]:
    """Yield the chains; SNAT_CHAIN and REFUSE_CHAIN are for `tables` to lead to."""
    shapes = list(_shapes(family))
    for shape in shapes:
        yield from _balancing(shape, options)
        if not shape.variant:
            yield from _dispatch(shape, options)
    by_address, by_port, *_ = shapes
    yield Chain(
        NAT_CHAIN,
        (
            rule(SetPriority(Lookup(by_address.place, by_address.words)), goto(by_address.chain("dispatch"))),
            host_port_rule(family),
            rule(
                InSet(by_address.place[:1], NODE_PORT_ADDRESSES),
                SetPriority(Lookup(by_port.place, by_port.words)),
                goto(by_port.chain("dispatch")),
            ),
        ),
    )
    yield host_port_chain(family)
    yield _refusals(by_address, by_port)
    yield Chain(
        SNAT_CHAIN,
        (
            rule(
                Starts(OIFNAME, b"weft", 32),
                Starts(OIFNAME, b"weft.", 40, negate=True),
                Translate(Lookup((NFPROTO,), NODE_SOURCE), port=False, source=True),
            ),
            rule(Masquerade()),
        ),
    )
    firewalled = rule(
        _NEW,
        InSet(by_address.place, FIREWALLED),
        InSet((*by_address.place, by_address.saddr), ALLOWED, negate=True),
        DROP,
    )
    for name, point in (("prerouting", HookPoint.PREROUTING), ("output", HookPoint.OUTPUT)):
        yield Chain(f"{name}-ranges", (firewalled,), Hook("filter", point, _FIREWALL))
        yield Chain(f"{name}-nat", (rule(jump(NAT_CHAIN)),), Hook("nat", point, _DSTNAT))


def snat_rules(family: Family, sources: str, mark: int = SNAT_MARK) -> tuple[Rule, ...]:
    """Return the rules for the head of postrouting.

    Args:
        family: of the table.
        sources: the set of (link . address) of this node's pods: a packet that leaves by the link of the pod
            whose address it carries has come back to where it started.
        mark: the bit that asks for source NAT.
    """
    saddr = IP_SADDR if family is Family.IPV4 else IP6_SADDR
    return (
        rule(AnyOf(CT_STATUS_FIELD, CtStatus.DNAT), SetPriority(0)),
        rule(AnyOf(META_MARK, mark), MarkBits(mark, clear=True), goto(SNAT_CHAIN)),
        rule(InSet((OIFNAME, saddr), sources), goto(SNAT_CHAIN)),
        *loopback_snat(family, SNAT_CHAIN),
    )


def _frontend_sets(shape: _Shape) -> Iterator[Set]:
    slot, backend = (*shape.types, MARK), (shape.address, INET_SERVICE)
    yield Set(shape.set(ENDPOINTS), slot, backend)
    yield Set(shape.set(STICKY), slot, backend)
    yield Set(shape.set(IDENTICAL), shape.types)
    yield Set(shape.set(IDS), slot, (MARK,), rank=1)
    yield Set(shape.set(TIMEOUTS), shape.types, (MARK,), rank=1)
    yield Set(shape.set(OUTSIDE), shape.types, (MARK,), rank=2)
    yield Set(shape.set(SERVICES), shape.types, (MARK,), rank=3)
    yield Set(shape.set(CLIENTS), (shape.address, *shape.types), (MARK,), dynamic=True)
    yield Set(shape.set(DROPPED), shape.types, rank=3)
    yield Set(shape.set(REFUSED), shape.types, rank=3)


def _constant(name: str, numbers: Iterable[int], lead: Callable[[str], Verdict], chain: str) -> Set:
    """Return a verdict map from each number to its own chain."""
    elements = tuple((struct.pack("=I", each), verdict(lead(f"{chain}-{each}"))) for each in numbers)
    return Set(name, (MARK,), (VERDICT,), constant=elements, rank=4)


def _dispatch(shape: _Shape, options: ServiceOptions) -> Iterator[Chain]:
    """The flags of the word that is in the packet's priority."""
    mark = MarkBits(options.mark)
    from_pod = InSet((shape.saddr,), POD_CIDRS)
    balance = goto(shape.chain("balance"))
    yield Chain(
        shape.chain("dispatch"),
        (
            rule(AnyOf(META_PRIORITY, TREATS_OUTSIDE), goto(shape.chain("split"))),
            rule(
                AnyOf(META_PRIORITY, SNAT_FOREIGN),
                InSet((shape.saddr,), POD_CIDRS, negate=True),
                mark,
                balance,
            ),
            rule(AnyOf(META_PRIORITY, SNAT_ALWAYS), mark),
            rule(balance),
        ),
    )
    outside = replace(shape, variant="outside-")
    yield Chain(
        shape.chain("split"),
        (
            rule(Starts(IIFNAME, b"weft", 32), Starts(IIFNAME, b"weft.", 40, negate=True), from_pod, balance),
            # Another node's pod may meet itself, which nothing here could tell on its way out.
            rule(from_pod, mark, balance),
            rule(Equals(SADDR_TYPE, _LOCAL), mark, balance),
            rule(SetPriority(Lookup(outside.place, outside.words)), goto(outside.chain("balance"))),
        ),
    )


def _balancing(shape: _Shape, options: ServiceOptions) -> Iterator[Chain]:
    """From the number of backends to one of them."""
    size = (Masked(META_PRIORITY, SIZE_MASK),)
    yield Chain(
        shape.chain("balance"),
        (
            rule(AnyOf(META_PRIORITY, HAS_AFFINITY), goto(shape.chain("affinity"))),
            rule(VerdictMap(size, shape.chain("sizes"))),
        ),
    )
    for each in options.all_sizes:
        draws = (rule(_to_endpoint(shape, each)), rule(_to_endpoint(shape, 1)))
        yield Chain(shape.chain(f"one-of-{each}"), draws[:1] if each == 1 else draws)
    yield Chain(
        shape.chain("affinity"),
        (
            rule(SetPriority(Lookup(shape.place, shape.set(TIMEOUTS)))),
            rule(VerdictMap((META_PRIORITY,), shape.chain("by-timeout"))),
            # It had affinity when its word was looked up, and has none by now.
            rule(_to_endpoint(shape, 1)),
        ),
    )
    for each in options.all_sizes if options.timeouts else ():
        drawn = SetPriority(Lookup(shape.slot(each), shape.set(IDS)))
        yield Chain(shape.chain(f"draw-{each}"), (rule(drawn),))
    for timeout in options.timeouts:
        yield from _sticking(shape, timeout)


def _sticking(shape: _Shape, timeout: int) -> Iterator[Chain]:
    """Lead a client to the backend that it had, if that lives, else to one that is remembered from now on."""
    clients, client = shape.set(CLIENTS), (shape.saddr, *shape.place)
    recall = SetPriority(Lookup(client, clients))
    # Of a client that is known this prolongs the memory and leaves it as it is.
    remember = rule(Remember(clients, client, META_PRIORITY, timeout))
    there = Translate(Lookup((*shape.place, META_PRIORITY), shape.set(STICKY)))
    # Who came from outside before it was treated apart may remember a backend that is no more for it.
    own = (AnyOf(META_PRIORITY, OUTSIDE_ID),) if shape.variant else ()
    known, pick = shape.chain(f"known-{timeout}"), shape.chain(f"pick-{timeout}")
    yield Chain(shape.chain(f"stick-{timeout}"), (rule(recall, goto(known)), rule(goto(pick))))
    yield Chain(known, (remember, rule(*own, there), rule(goto(pick))))
    yield Chain(
        pick,
        (
            rule(SetPriority(Lookup(shape.place, shape.words))),
            rule(VerdictMap((Masked(META_PRIORITY, SIZE_MASK),), shape.chain("draws"))),
            rule(Forget(clients, client, META_PRIORITY)),
            remember,
            rule(there),
            rule(_to_endpoint(shape, 1)),
        ),
    )


def _to_endpoint(shape: _Shape, size: int) -> Translate:
    return Translate(Lookup(shape.slot(size), shape.set(ENDPOINTS)))


def _refusals(by_address: _Shape, by_port: _Shape) -> Chain:
    """What was not translated and has the address of a service: nobody serves it.

    Or nobody did when it was looked up, in the middle of a change: it is dropped, and comes again.
    """
    daddr = by_address.place[:1]
    # A backend may have the address of a frontend, be it another's: an external address may be a node's.
    rules = [rule(AnyOf(CT_STATUS_FIELD, CtStatus.DNAT), RETURN)]
    for match, shape in (((), by_address), ((InSet(daddr, NODE_PORT_ADDRESSES),), by_port)):
        refused = shape.set(REFUSED)
        rules += [
            rule(*match, InSet(shape.place, shape.set(IDENTICAL)), RETURN),
            rule(*match, InSet(shape.place, shape.set(DROPPED)), DROP),
            rule(*match, InSet((*shape.place[:-1], TCP_DPORT), refused), Reject(RejectKind.TCP_RESET)),
            rule(*match, InSet(shape.place, refused), Reject()),
            rule(*match, SetPriority(Lookup(shape.place, shape.words)), DROP),
        ]
    rules += [
        rule(InSet(daddr, CLUSTER_IPS), Reject(RejectKind.TCP_RESET)),
        rule(InSet(daddr, CLUSTER_IPS), Reject()),
        rule(InSet(daddr, SERVICE_CIDRS), DROP),
    ]
    return Chain(REFUSE_CHAIN, tuple(rules))
