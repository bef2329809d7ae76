"""What rules make of one packet: matches, look-ups, translations, verdicts. Pure.

Owns the meaning of the statements in `rules`, as the kernel's nft_do_chain and the expressions in
net/netfilter/nft_*.c have it. Knows no hooks and no routes: those are `datapath.trace`'s.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from datapath.nft.elements import key as encode_key
from datapath.nft.elements import parse_verdict
from datapath.nft.rules import (
    CT_MARK,
    CT_STATE_FIELD,
    CT_STATUS_FIELD,
    DADDR_TYPE,
    ICMPV6_TYPE_FIELD,
    IIFNAME,
    IP6_DADDR,
    IP6_SADDR,
    IP_DADDR,
    IP_SADDR,
    L4PROTO,
    META_MARK,
    META_PRIORITY,
    NFPROTO,
    OIFNAME,
    SADDR_TYPE,
    TCP_DPORT,
    TCP_FLAGS,
    TH_DPORT,
    UDP_DPORT,
    AnyOf,
    Code,
    Counter,
    CtState,
    CtStatus,
    Equals,
    Fib,
    Forget,
    InSet,
    Limit,
    Log,
    Lookup,
    MarkBits,
    Masked,
    Masquerade,
    NoTrack,
    Payload,
    Protocol,
    RandomNumber,
    Reject,
    RejectKind,
    Remember,
    SetPriority,
    Starts,
    Translate,
    Verdict,
    VerdictMap,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from datapath.nft.rules import (
        Chain,
        Family,
        Rule,
        Selector,
        Set,
        Statement,
        Table,
    )

_WORD = struct.Struct("=I")
_PORT = struct.Struct("!H")
_LOCAL, _UNICAST = _WORD.pack(2), _WORD.pack(1)
Elements: TypeAlias = "Mapping[str, Mapping[bytes, bytes]]"
"""Encoded elements by the set's name."""
Memory: TypeAlias = dict[tuple[int, str], dict[bytes, bytes]]
"""The elements that rules have put into dynamic maps, by family and the map's name."""


class End(Enum):
    """How a base chain can end; without any of them the packet goes on."""

    ACCEPTED = "accepted"
    DROPPED = "dropped"
    REFUSED = "refused"


@dataclass(slots=True)
class Packet:
    """The first packet of a connection on its way through one host; rules change it.

    Attributes:
        family: IPV4 or IPV6.
        protocol: number of the transport protocol.
        source: packed address.
        destination: packed address.
        destination_port: of the transport protocol; 0 where it has none.
        iif: the link by which it came; empty for packets of this host itself.
        oif: the link by which it goes, once that is known.
        mark: the packet's mark.
        priority: the packet's priority.
        state: what connection tracking says of it.
        status: how connection tracking has changed it.
        icmp_type: of ICMPv6 packets.
    """

    family: Family
    protocol: int
    source: bytes
    destination: bytes
    destination_port: int = 0
    iif: str = ""
    oif: str = ""
    mark: int = 0
    priority: int = 0
    state: CtState = CtState.NEW
    status: CtStatus = field(default_factory=lambda: CtStatus(0))
    icmp_type: int = 0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What rules ask of the host.

    Attributes:
        is_local: whether an address is one of the host's own.
        masquerade: the address of the host that masquerading gives the packet; None for none.
        draw: draws a number below its argument.
        note: is told each rule that did something: the name of its chain, its number there.
    """

    is_local: Callable[[bytes], bool]
    masquerade: Callable[[Packet], bytes | None]
    draw: Callable[[int], int]
    note: Callable[[str, int], None]


class Evaluation:
    """Evaluates chains of one table.

    Args:
        table: rules and declarations of sets.
        elements: what is in the sets besides their constant elements.
        memory: what is in the dynamic maps; rules change it.
        around: the host.
    """

    def __init__(self, table: Table, elements: Elements, memory: Memory, around: Surroundings) -> None:
        self._family = int(table.family)
        self._chains, self._sets, self._constant = _index(table)
        self._elements = elements
        self._memory = memory
        self._around = around

    def base(self, chain: Chain, packet: Packet) -> End:
        """Return how a base chain ends for the packet, which it may change."""
        return self._chain(chain, packet) or End.ACCEPTED

    def _chain(self, chain: Chain, packet: Packet) -> End | None:
        """Return how the packet ends in a chain; None when it comes to the chain's end or returns."""
        for number, rule in enumerate(chain.rules):
            done = self._rule(rule, packet)
            if done is False:
                continue
            self._around.note(chain.name, number)
            if isinstance(done, End):
                return done
            if isinstance(done, Verdict):
                if done.code is Code.RETURN:
                    return None
                end = self._chain(self._chains[done.chain], packet)
                if end is not None or done.code is Code.GOTO:
                    return end
        return None

    def _rule(self, rule: Rule, packet: Packet) -> bool | End | Verdict:
        """Return whether all statements were gone through, or what ended the rule before that."""
        if Reject(RejectKind.TCP_RESET) in rule.statements and packet.protocol != Protocol.TCP:
            return False
        for statement in rule.statements:
            done = self._statement(statement, packet)
            if done is not True:
                return done
        return True

    def _statement(self, statement: Statement, packet: Packet) -> bool | End | Verdict:
        """Return whether the rule goes on, or what ends it."""
        match statement:
            case Equals(selector, value, negate):
                found = self._read(selector, packet)
                return found is not None and (found == value) is not negate
            case Starts(selector, value, bits, negate):
                found = self._read(selector, packet)
                return found is not None and _begins(found, value, bits) is not negate
            case AnyOf(selector, bits):
                found = self._read(selector, packet)
                return found is not None and bool(_WORD.unpack(found)[0] & bits)
            case InSet(selectors, name, negate):
                key = self._key(selectors, packet)
                return key is not None and (self._find(name, key) is not None) is not negate
            case VerdictMap(selectors, name):
                found = self._look_up(Lookup(selectors, name), packet)
                return found is not None and _conclude(parse_verdict(found))
            case Verdict():
                return _conclude(statement)
            case _:
                return self._act(statement, packet)

    def _act(self, statement: Statement, packet: Packet) -> bool | End:  # noqa: C901 - one case per kind
        """Carry out a statement that changes something; returns as `_statement`."""
        match statement:
            case SetPriority(int(value)):
                packet.priority = value
            case SetPriority(Lookup() as lookup):
                word = self._look_up(lookup, packet)
                if word is None:
                    return False
                packet.priority = _WORD.unpack(word)[0]
            case MarkBits(bits, clear):
                packet.mark = packet.mark & ~bits if clear else packet.mark | bits
            case NoTrack():
                packet.state = CtState.UNTRACKED
            case Translate():
                return self._translate(statement, packet)
            case Masquerade():
                return self._masquerade(packet)
            case Reject():
                return End.REFUSED
            case Remember(name, selectors, data):
                key, content = self._key(selectors, packet), self._read(data, packet)
                if key is not None and content is not None:
                    self._memory.setdefault((self._family, name), {}).setdefault(key, content)
            case Forget(name, selectors):
                if (key := self._key(selectors, packet)) is not None:
                    self._memory.get((self._family, name), {}).pop(key, None)
            case Counter() | Limit() | Log():
                pass
            case _:
                raise TypeError(f"no meaning is known of {statement}: give it one here")
        return True

    def _masquerade(self, packet: Packet) -> End:
        """The kernel drops what leaves by a link without a usable address."""
        address = self._around.masquerade(packet)
        if address is None:
            return End.DROPPED
        packet.source = address
        packet.status |= CtStatus.SNAT
        return End.ACCEPTED

    def _translate(self, statement: Translate, packet: Packet) -> bool | End:
        target = self._look_up(statement.target, packet)
        if target is None:
            return False
        width = len(packet.source)
        if statement.source:
            packet.source = target[:width]
            packet.status |= CtStatus.SNAT
        else:
            packet.destination = target[:width]
            packet.status |= CtStatus.DNAT
            if statement.port:
                packet.destination_port = _PORT.unpack_from(target, width)[0]
        return End.ACCEPTED

    def _look_up(self, lookup: Lookup, packet: Packet) -> bytes | None:
        key = self._key(lookup.key, packet)
        return None if key is None else self._find(lookup.map, key)

    def _key(self, selectors: tuple[Selector, ...], packet: Packet) -> bytes | None:
        fields = [self._read(selector, packet) for selector in selectors]
        present = [field for field in fields if field is not None]
        return encode_key(*present) if len(present) == len(fields) else None

    def _find(self, name: str, key: bytes) -> bytes | None:
        """Return an element's data, which are empty in a set; None where there is no such element."""
        declared = self._sets[name]
        if declared.dynamic:
            return self._memory.get((self._family, name), {}).get(key)
        for elements in (self._constant[name], self._elements.get(name, {})):
            if declared.interval:
                found = next((data for each, data in elements.items() if _within(declared, each, key)), None)
            else:
                found = elements.get(key)
            if found is not None:
                return found
        return None

    def _read(self, selector: Selector, packet: Packet) -> bytes | None:
        """Return a selector's value in its full width; None where the packet has no such thing."""
        match selector:
            case RandomNumber(below, offset):
                return _WORD.pack(offset + self._around.draw(below))
            case Masked(inner, mask):
                word = self._read(inner, packet)
                return None if word is None else _WORD.pack(_WORD.unpack(word)[0] & mask)
            case Payload(protocol=Protocol() as protocol) if protocol != packet.protocol:
                return None
            case Fib() if selector in (SADDR_TYPE, DADDR_TYPE):
                address = packet.source if selector == SADDR_TYPE else packet.destination
                return _LOCAL if self._around.is_local(address) else _UNICAST
        reader = _READERS.get(selector)
        if reader is None:
            raise TypeError(f"no meaning is known of {selector.text}: give it one here")
        return reader(packet)


@lru_cache(maxsize=16)
def _index(table: Table) -> tuple[dict[str, Chain], dict[str, Set], dict[str, dict[bytes, bytes]]]:
    """Return chains, declarations of sets and their constant elements by name."""
    return (
        {chain.name: chain for chain in table.chains},
        {declared.name: declared for declared in table.sets},
        {declared.name: dict(declared.constant) for declared in table.sets},
    )


def _link(name: str) -> bytes:
    return name.encode().ljust(IIFNAME.type.size, b"\0")


_READERS: dict[Selector, Callable[[Packet], bytes]] = {
    IP_SADDR: lambda packet: packet.source,
    IP_DADDR: lambda packet: packet.destination,
    IP6_SADDR: lambda packet: packet.source,
    IP6_DADDR: lambda packet: packet.destination,
    TH_DPORT: lambda packet: _PORT.pack(packet.destination_port),
    TCP_DPORT: lambda packet: _PORT.pack(packet.destination_port),
    TCP_FLAGS: lambda _: b"\x02",  # packets here are the first of their connection
    UDP_DPORT: lambda packet: _PORT.pack(packet.destination_port),
    ICMPV6_TYPE_FIELD: lambda packet: bytes([packet.icmp_type]),
    META_PRIORITY: lambda packet: _WORD.pack(packet.priority),
    META_MARK: lambda packet: _WORD.pack(packet.mark),
    NFPROTO: lambda packet: bytes([packet.family]),
    IIFNAME: lambda packet: _link(packet.iif),
    OIFNAME: lambda packet: _link(packet.oif),
    L4PROTO: lambda packet: bytes([packet.protocol]),
    CT_STATE_FIELD: lambda packet: _WORD.pack(packet.state),
    CT_STATUS_FIELD: lambda packet: _WORD.pack(packet.status),
    CT_MARK: lambda _: _WORD.pack(0),
}


def _conclude(verdict: Verdict) -> End | Verdict:
    """Return what ends a base chain, or the verdict that leads to another chain or back."""
    return {Code.ACCEPT: End.ACCEPTED, Code.DROP: End.DROPPED}.get(verdict.code, verdict)


def _begins(found: bytes, value: bytes, bits: int) -> bool:
    one, other = (int.from_bytes(each, "big") >> (len(each) * 8 - bits) for each in (found, value))
    return one == other


def _within(declared: Set, interval: bytes, key: bytes) -> bool:
    """Whether each field of a key is within that field of an interval (first key, then last)."""
    length, position = len(interval) // 2, 0
    for kind in declared.key:
        here = slice(position, position + kind.size)
        if not interval[here] <= key[here] <= interval[length:][here]:
            return False
        position += -(-kind.size // 4) * 4
    return True
