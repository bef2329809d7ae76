"""Tables, chains, rules and sets of nftables as frozen values. Pure: encodes, renders and applies nothing.

The values have three kinds of reader: `encode` (netlink, the only way into the kernel), `render` (text as
`nft list` prints it) and whoever walks a packet through them. A rule is a tuple of statements evaluated in
order; a match that fails ends the rule. Only what all readers understand is expressible, and only shapes that
nft 1.0.6 can print.

A new expression kind is a class here, a case in `encode` and one in `render`.
Numbers are those of linux/netfilter/nf_tables.h; type numbers those of nft's user space (`nft describe`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping


class Family(IntEnum):
    """The table families in use (NFPROTO_*)."""

    INET = 1
    IPV4 = 2
    IPV6 = 10

    @property
    def text(self) -> str:
        """The family as `nft` writes it."""
        return {Family.INET: "inet", Family.IPV4: "ip", Family.IPV6: "ip6"}[self]


@dataclass(frozen=True, slots=True)
class DataType:
    """A type of key or data: its nft name and number, its width in bytes and its byte order in registers."""

    name: str
    number: int
    size: int
    host_order: bool = False


VERDICT = DataType("verdict", 1, 16)
NF_PROTO = DataType("nf_proto", 2, 1)
IPV4_ADDR = DataType("ipv4_addr", 7, 4)
IPV6_ADDR = DataType("ipv6_addr", 8, 16)
INET_PROTO = DataType("inet_proto", 12, 1)
INET_SERVICE = DataType("inet_service", 13, 2)
TCP_FLAG = DataType("tcp_flag", 15, 1)
MARK = DataType("mark", 19, 4, host_order=True)
CT_STATE = DataType("ct_state", 26, 4, host_order=True)
CT_STATUS = DataType("ct_status", 28, 4, host_order=True)
ICMPV6_TYPE = DataType("icmpv6_type", 29, 1)
FIB_ADDRTYPE = DataType("fib_addrtype", 38, 4, host_order=True)
IFNAME = DataType("ifname", 41, 16)


class Protocol(IntEnum):
    """IP protocol numbers that rules speak of."""

    TCP = 6
    UDP = 17
    ICMPV6 = 58
    SCTP = 132


class CtState(IntFlag):
    """Bits of `ct state` (NF_CT_STATE_BIT)."""

    INVALID = 1
    ESTABLISHED = 2
    RELATED = 4
    NEW = 8
    UNTRACKED = 64


class CtStatus(IntFlag):
    """Bits of `ct status` (IPS_*) that rules ask for."""

    SNAT = 16
    DNAT = 32


@dataclass(frozen=True, slots=True)
class Payload:
    """Bytes of the packet.

    `base` is NFT_PAYLOAD_*: 1 network header, 2 transport header. With `protocol`, the rule first makes sure
    that the packet is of that transport protocol.
    """

    text: str
    type: DataType
    base: int
    offset: int
    protocol: Protocol | None = None


@dataclass(frozen=True, slots=True)
class Meta:
    """What the kernel knows about the packet; `key` is NFT_META_*."""

    text: str
    type: DataType
    key: int


@dataclass(frozen=True, slots=True)
class Ct:
    """What connection tracking knows about the packet; `key` is NFT_CT_*."""

    text: str
    type: DataType
    key: int


@dataclass(frozen=True, slots=True)
class Fib:
    """An answer of the routing table; `flags` are NFTA_FIB_F_*, `result` is NFT_FIB_RESULT_*."""

    text: str
    type: DataType
    flags: int
    result: int


@dataclass(frozen=True, slots=True)
class RandomNumber:
    """A number drawn afresh for each packet: `offset` to `offset + below - 1`, a MARK in registers."""

    below: int
    offset: int = 0

    @property
    def type(self) -> DataType:
        """The type that sets declare for it: 4 bytes in host order."""
        return MARK

    @property
    def text(self) -> str:
        """The selector as `nft` writes it."""
        return f"numgen random mod {self.below}" + (f" offset {self.offset}" if self.offset else "")


@dataclass(frozen=True, slots=True)
class Masked:
    """Some bits of a selector of 4 bytes in host order."""

    selector: Meta
    mask: int

    @property
    def type(self) -> DataType:
        """That of the selector."""
        return self.selector.type

    @property
    def text(self) -> str:
        """The selector as `nft` writes it: tc_handle constants are major:minor in hexadecimal."""
        return f"{self.selector.text} & {self.mask >> 16:x}:{self.mask & 0xFFFF:x}"


Selector: TypeAlias = Payload | Meta | Ct | Fib | RandomNumber | Masked

IP_SADDR = Payload("ip saddr", IPV4_ADDR, 1, 12)
IP_DADDR = Payload("ip daddr", IPV4_ADDR, 1, 16)
IP6_SADDR = Payload("ip6 saddr", IPV6_ADDR, 1, 8)
IP6_DADDR = Payload("ip6 daddr", IPV6_ADDR, 1, 24)
TH_DPORT = Payload("th dport", INET_SERVICE, 2, 2)
TCP_DPORT = Payload("tcp dport", INET_SERVICE, 2, 2, Protocol.TCP)
TCP_FLAGS = Payload("tcp flags", TCP_FLAG, 2, 13, Protocol.TCP)
UDP_DPORT = Payload("udp dport", INET_SERVICE, 2, 2, Protocol.UDP)
ICMPV6_TYPE_FIELD = Payload("icmpv6 type", ICMPV6_TYPE, 2, 0, Protocol.ICMPV6)
META_PRIORITY = Meta("meta priority", MARK, 2)
"""A word that goes with the packet, which nobody needs before it is routed: scratch for our chains. Declared
as MARK, since sets can't name the type that nft gives it; only the width matters to the kernel."""
META_MARK = Meta("meta mark", MARK, 3)
NFPROTO = Meta("meta nfproto", NF_PROTO, 15)
IIFNAME = Meta("iifname", IFNAME, 6)
OIFNAME = Meta("oifname", IFNAME, 7)
L4PROTO = Meta("meta l4proto", INET_PROTO, 16)
CT_STATE_FIELD = Ct("ct state", CT_STATE, 0)
CT_STATUS_FIELD = Ct("ct status", CT_STATUS, 2)
CT_MARK = Ct("ct mark", MARK, 3)
SADDR_TYPE = Fib("fib saddr type", FIB_ADDRTYPE, 1, 3)
DADDR_TYPE = Fib("fib daddr type", FIB_ADDRTYPE, 2, 3)


@dataclass(frozen=True, slots=True)
class Equals:
    """The selector has (or, negated, has not) this value, of the type's full width and byte order."""

    selector: Selector
    value: bytes
    negate: bool = False


@dataclass(frozen=True, slots=True)
class Starts:
    """The selector begins with the first `bits` of `value`: a prefix of an address or interface name."""

    selector: Selector
    value: bytes
    bits: int
    negate: bool = False


@dataclass(frozen=True, slots=True)
class AnyOf:
    """The selector, a bit field in host order, has one of these bits."""

    selector: Selector
    bits: int


@dataclass(frozen=True, slots=True)
class InSet:
    """The concatenated selectors are (or, negated, are not) in a set of the same table."""

    key: tuple[Selector, ...]
    set: str
    negate: bool = False


class Code(IntEnum):
    """Verdict codes (NF_* and NFT_*)."""

    DROP = 0
    ACCEPT = 1
    JUMP = -3
    GOTO = -4
    RETURN = -5


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of the packet; `chain` for JUMP and GOTO."""

    code: Code
    chain: str = ""


ACCEPT = Verdict(Code.ACCEPT)
DROP = Verdict(Code.DROP)
RETURN = Verdict(Code.RETURN)


def jump(chain: str) -> Verdict:
    """Evaluate a chain and come back."""
    return Verdict(Code.JUMP, chain)


def goto(chain: str) -> Verdict:
    """Evaluate a chain instead of the rest of this one."""
    return Verdict(Code.GOTO, chain)


@dataclass(frozen=True, slots=True)
class VerdictMap:
    """The verdict that a map of the same table holds for the concatenated selectors, if any."""

    key: tuple[Selector, ...]
    map: str


@dataclass(frozen=True, slots=True)
class Lookup:
    """What a map of the same table holds for the concatenated selectors; without it the rule ends."""

    key: tuple[Selector, ...]
    map: str


@dataclass(frozen=True, slots=True)
class SetPriority:
    """Sets `meta priority` to a constant or to what a map holds."""

    value: int | Lookup


@dataclass(frozen=True, slots=True)
class Translate:
    """Destination (or, with `source`, source) NAT to the address, and with `port` the port, that a map holds.

    A source port is chosen at random (fully-random).
    """

    target: Lookup
    port: bool = True
    source: bool = False


@dataclass(frozen=True, slots=True)
class Remember:
    """Adds an element to a dynamic map, or prolongs the one that is there: that keeps its data.

    `timeout` is in seconds. What another map holds can't be the data: nft 1.0.6 aborts when it lists that.
    """

    map: str
    key: tuple[Selector, ...]
    data: Selector
    timeout: int


@dataclass(frozen=True, slots=True)
class Forget:
    """Deletes an element of a dynamic map; there need be none. The kernel wants data, and ignores them."""

    map: str
    key: tuple[Selector, ...]
    data: Selector


@dataclass(frozen=True, slots=True)
class Counter:
    """Counts packets and bytes that come this far in the rule."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The rule goes on for so many packets a second, and for `burst` more at once; for others it ends."""

    rate: int
    burst: int


@dataclass(frozen=True, slots=True)
class Log:
    """Gives the packet's first `size` bytes to whoever is bound to the nflog group (`datapath.packetlog`)."""

    group: int
    prefix: str
    size: int


@dataclass(frozen=True, slots=True)
class Masquerade:
    """Source NAT to the address of the outgoing interface, with a port chosen at random (fully-random)."""


@dataclass(frozen=True, slots=True)
class NoTrack:
    """Keeps the packet out of connection tracking, and so out of every NAT."""


class RejectKind(IntEnum):
    """How a packet is refused (NFT_REJECT_*)."""

    ICMP_UNREACHABLE = 0
    TCP_RESET = 1


@dataclass(frozen=True, slots=True)
class Reject:
    """Refuses the packet: TCP reset, or port unreachable by ICMP or ICMPv6 as the table's family demands."""

    kind: RejectKind = RejectKind.ICMP_UNREACHABLE


@dataclass(frozen=True, slots=True)
class MarkBits:
    """Sets or clears bits of the packet's mark and leaves the others alone."""

    bits: int
    clear: bool = False


Statement: TypeAlias = (
    Equals
    | Starts
    | AnyOf
    | InSet
    | Verdict
    | VerdictMap
    | SetPriority
    | Translate
    | Remember
    | Forget
    | Counter
    | Limit
    | Log
    | Masquerade
    | NoTrack
    | Reject
    | MarkBits
)


@dataclass(frozen=True, slots=True)
class Rule:
    """Statements in order; the comment is shown by `nft list`."""

    statements: tuple[Statement, ...]
    comment: str = ""


def rule(*statements: Statement, comment: str = "") -> Rule:
    """Return a rule of these statements."""
    return Rule(statements, comment)


class HookPoint(IntEnum):
    """Where a base chain hangs (NF_INET_*)."""

    PREROUTING = 0
    INPUT = 1
    FORWARD = 2
    OUTPUT = 3
    POSTROUTING = 4


@dataclass(frozen=True, slots=True)
class Hook:
    """Makes a chain a base chain; its policy is always accept. `type` is filter, nat or route."""

    type: str
    point: HookPoint
    priority: int


@dataclass(frozen=True, slots=True)
class Chain:
    """A named list of rules."""

    name: str
    rules: tuple[Rule, ...]
    hook: Hook | None = None

    def __hash__(self) -> int:
        # As for tables: equal ones are mostly the same object, and rules need not be walked to find it.
        return hash((self.name, len(self.rules)))


@dataclass(frozen=True, slots=True)
class Set:
    """A set, or with `data` a map.

    Attributes:
        name: unique in its table.
        key: the types whose concatenation is the key.
        data: the types whose concatenation a map holds, or (VERDICT,).
        interval: keys are ranges. With one key type the kernel stores start and end separately.
        constant: elements that belong to the declaration and are there always: encoded keys to encoded data.
        counted: the kernel counts, for each element, packets and bytes that were found in the set.
        dynamic: rules add elements, which time out; nobody else does, and what they are is nobody's business.
        rank: in a transaction, additions go by ascending rank, deletions by descending: what refers to
            elements of another set has a higher rank than that.
    """

    name: str
    key: tuple[DataType, ...]
    data: tuple[DataType, ...] = ()
    interval: bool = False
    constant: tuple[tuple[bytes, bytes], ...] = ()
    counted: bool = False
    dynamic: bool = False
    rank: int = 0

    def __hash__(self) -> int:
        # As for chains.
        return hash((self.name, self.key[0].size))


@dataclass(frozen=True, slots=True)
class Table:
    """A table with all that belongs to it. A table of another `layout` is replaced as a whole."""

    family: Family
    name: str
    layout: int
    sets: tuple[Set, ...]
    chains: tuple[Chain, ...]

    @property
    def key(self) -> tuple[int, str]:
        """Family and name, as `datapath.desired.SetElements.table`."""
        return (int(self.family), self.name)

    def __hash__(self) -> int:
        # Tables are large and few: all their rules need not be walked to find one.
        return hash((self.family, self.name, self.layout, len(self.sets), len(self.chains)))

    def set(self, name: str) -> Set:
        """Return the set of that name. Raises KeyError."""
        for each in self.sets:
            if each.name == name:
                return each
        raise KeyError(name)


SetKey: TypeAlias = tuple[int, str, str]
"""Family, table and set name, as `datapath.desired.SetElements.key`."""


@dataclass(frozen=True, slots=True)
class Ruleset:
    """All that nftables should hold of ours: tables, and the elements of their sets.

    `elements` maps a set to its elements, encoded key to encoded data (see `datapath.nft.elements`); a set
    that is not in it should be empty but for its constant elements.
    """

    tables: tuple[Table, ...]
    elements: Mapping[SetKey, Mapping[bytes, bytes]] = field(default_factory=dict)
