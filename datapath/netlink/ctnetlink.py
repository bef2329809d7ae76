"""Flows of connection tracking as ctnetlink messages, and back (linux/netfilter/nfnetlink_conntrack.h).

Owns their layout; knows nothing of Services. A tuple is one direction of a flow: the original is the client's
packet as it came, the reply what an answer is before NAT is undone, so that its source is who answers.

A deletion without a tuple is a flush of the whole table, and one with a tuple and a filter is the deletion
of that tuple on an old kernel and a flush by filter on a new one. So there is one form of deletion only: one
flow by its original tuple and its id, and never a filter.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from socket import AF_INET, AF_INET6
from struct import Struct
from typing import TYPE_CHECKING

from datapath.errors import NetlinkFormatError
from datapath.netlink.attributes import (
    NLA_F_NESTED,
    attribute,
    be16,
    be32,
    big_endian,
    nest,
    parse,
    u8,
    u32,
)
from datapath.netlink.nfnetlink import HEADER_BYTES, header
from datapath.netlink.transport import Message

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datapath.desired import Address

NFNL_SUBSYS_CTNETLINK = 1
CT_NEW = NFNL_SUBSYS_CTNETLINK << 8
CT_GET = NFNL_SUBSYS_CTNETLINK << 8 | 1
CT_DELETE = NFNL_SUBSYS_CTNETLINK << 8 | 2

IPPROTO_UDP = 17

_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _MARK, _ID, _ZONE, _MARK_MASK, _FILTER = 1, 2, 3, 8, 12, 18, 21, 25
_IP, _PROTO = 1, 2
_ADDRESSES: dict[int, tuple[int, int]] = {AF_INET: (1, 2), AF_INET6: (3, 4)}
"""CTA_IP_V4_SRC and _DST, CTA_IP_V6_SRC and _DST."""
_PROTO_NUM, _PROTO_SRC_PORT, _PROTO_DST_PORT = 1, 2, 3
_FILTER_ORIG_FLAGS = 1
# Bits of what a filter compares (net/netfilter/nf_conntrack_netlink.c, CTA_FILTER_F_*).
_BY_DESTINATION, _BY_PROTOCOL, _BY_DESTINATION_PORT = 1 << 1, 1 << 3, 1 << 5

_ATTRIBUTE = Struct("=HH")
_KIND = Struct("=H")
_ORIGINAL_KIND, _REPLY_KIND = (_KIND.pack(each | NLA_F_NESTED) for each in (_TUPLE_ORIG, _TUPLE_REPLY))
_REPLY_NUMBER = _TUPLE_REPLY | NLA_F_NESTED
_NUMBER_HEAD, _PORT_HEAD = _ATTRIBUTE.pack(5, _PROTO_NUM), _ATTRIBUTE.pack(6, _PROTO_SRC_PORT)
_ADDRESSES_HEAD: dict[int, bytes] = {
    family: _ATTRIBUTE.pack(4 + 2 * (4 + width), _IP | NLA_F_NESTED)
    + _ATTRIBUTE.pack(4 + width, _ADDRESSES[family][0])
    for family, width in ((AF_INET, 4), (AF_INET6, 16))
}
"""How the addresses of a tuple begin: the attribute around them, and the header of the source."""


@dataclass(frozen=True, slots=True)
class Flow:
    """A tracked flow as the kernel lists it; ports are 0 for protocols without.

    Attributes:
        family: AF_INET or AF_INET6.
        source, destination, source_port, destination_port: of the original direction.
        answerer, answerer_port: source of the reply direction; the backend if the destination was replaced.
        answered_to, answered_to_port: destination of the reply direction; the client, or what stands for it.
        status: IPS_* bits of linux/netfilter/nf_conntrack_common.h.
    """

    family: int
    protocol: int
    source: Address
    destination: Address
    source_port: int
    destination_port: int
    answerer: Address
    answerer_port: int
    answered_to: Address
    answered_to_port: int
    status: int
    mark: int


def get_flows(
    family: int = 0,
    *,
    protocol: int = 0,
    destination: Address | None = None,
    port: int = 0,
    mark: tuple[int, int] | None = None,
) -> Message:
    """Return the dump of flows; what is not 0 or None selects in the kernel.

    Kernels before 5.8 list all flows of the family whatever the rest is, so the caller compares as well. An
    IPv6 destination is left to the caller: Linux (6.18 too) lists the flows with another one, as it takes the
    comparison (ipv6_addr_cmp in ctnetlink_filter_match_tuple) the wrong way round.

    Args:
        family: AF_INET, AF_INET6, or 0 for both (with IPv4 flows of the protocol only, where one is given).
        protocol: IPPROTO_*, needed with a port.
        destination: of the original direction, of `family`.
        port: destination port of the original direction.
        mark: value and mask of the connection mark.
    """
    flags = 0
    parts: list[bytes] = []
    if destination is not None and len(destination) == 4:
        flags |= _BY_DESTINATION
        parts.append(nest(_IP, attribute(_ADDRESSES[AF_INET][1], destination)))
    if protocol:
        flags |= _BY_PROTOCOL
        inner = [u8(_PROTO_NUM, protocol)]
        if port:
            flags |= _BY_DESTINATION_PORT
            inner.append(be16(_PROTO_DST_PORT, port))
        parts.append(nest(_PROTO, *inner))
    payload = [header(family)]
    if flags:
        payload += (nest(_TUPLE_ORIG, *parts), nest(_FILTER, u32(_FILTER_ORIG_FLAGS, flags)))
    if mark is not None:
        payload += (be32(_MARK, mark[0]), be32(_MARK_MASK, mark[1]))
    return Message(CT_GET, 0, b"".join(payload))


def decode_flow(payload: bytes) -> Flow:
    """Return the flow of a message of the dump. Raises NetlinkFormatError."""
    family = payload[0]
    found = parse(payload, HEADER_BYTES)
    protocol, source, destination, source_port, destination_port = _tuple(family, found, _TUPLE_ORIG)
    _, answerer, answered_to, answerer_port, answered_to_port = _tuple(family, found, _TUPLE_REPLY)
    return Flow(
        family=family,
        protocol=protocol,
        source=source,
        destination=destination,
        source_port=source_port,
        destination_port=destination_port,
        answerer=answerer,
        answerer_port=answerer_port,
        answered_to=answered_to,
        answered_to_port=answered_to_port,
        status=big_endian(found.get(_STATUS, b"")),
        mark=big_endian(found.get(_MARK, b"")),
    )


def del_flow(payload: bytes) -> Message:
    """Return the deletion of the flow that a message of the dump is about, and of no other.

    A flow that took its place meanwhile has another id, unless the kernel used the same memory, and then
    survives (ENOENT).

    Raises:
        NetlinkFormatError: the message lacks tuple or id; without them it would say something else.
    """
    found = parse(payload, HEADER_BYTES)
    original, identity = found.get(_TUPLE_ORIG), found.get(_ID)
    if not original or not identity:
        raise NetlinkFormatError("a listed flow has no original tuple or no id, so it can't be deleted alone")
    zone = attribute(_ZONE, found[_ZONE]) if _ZONE in found else b""
    return Message(
        CT_DELETE,
        0,
        b"".join(
            (
                header(payload[0]),
                attribute(_TUPLE_ORIG | NLA_F_NESTED, original),
                attribute(_ID, identity),
                zone,
            )
        ),
    )


def flow_call(payload: bytes) -> tuple[int, int, int, int]:
    """Return protocol and port of who answers, status and mark (as in `Flow`).

    For messages of the dump; it takes a fifth of `decode_flow`. Raises NetlinkFormatError.
    """
    width = 4 if payload[0] == AF_INET else 16
    protocol = port = status = mark = -1
    offset, end = HEADER_BYTES, len(payload)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(payload, offset)
        if kind == _REPLY_NUMBER:
            # Behind the addresses: the head of the protocol's part, its number, the port of the source.
            numbers = offset + 16 + 2 * (width + 4)
            if payload[numbers - 4 : numbers] == _NUMBER_HEAD:
                protocol = payload[numbers]
                if payload[numbers + 4 : numbers + 8] == _PORT_HEAD:
                    port = payload[numbers + 8] << 8 | payload[numbers + 9]
        elif kind == _STATUS:
            status = big_endian(payload[offset + 4 : offset + 8])
        elif kind == _MARK:
            mark = big_endian(payload[offset + 4 : offset + 8])
            break
        offset += max(length, 4) + 3 & ~3
    if min(protocol, port, status, mark) < 0:
        flow = decode_flow(payload)
        return flow.protocol, flow.answerer_port, flow.status, flow.mark
    return protocol, port, status, mark


def mark_flow(payload: bytes, mark: int, mask: int) -> Message:
    """Return the change of some bits of the mark of the flow that a message of the dump is about.

    A flow with the same original tuple that took its place meanwhile gets them too; none is made.

    Raises:
        NetlinkFormatError: the message lacks the tuple.
    """
    found = parse(payload, HEADER_BYTES)
    original = found.get(_TUPLE_ORIG)
    if not original:
        raise NetlinkFormatError("a listed flow has no original tuple, so it can't be marked")
    zone = attribute(_ZONE, found[_ZONE]) if _ZONE in found else b""
    where = header(payload[0]) + attribute(_TUPLE_ORIG | NLA_F_NESTED, original) + zone
    return Message(CT_NEW, 0, where + be32(_MARK, mark & mask) + be32(_MARK_MASK, mask))


def flow_addresses(payload: bytes) -> tuple[Address, Address, Address, Address]:
    """Return source and destination of the original direction and of the reply direction.

    For messages of the dump, of any protocol. It takes a tenth of `decode_flow` where the kernel writes the
    tuples first and in this order, as it does. Raises NetlinkFormatError.
    """
    family = payload[0]
    width = 4 if family == AF_INET else 16
    original = HEADER_BYTES
    reply = original + (int.from_bytes(payload[original : original + 2], sys.byteorder) + 3 & ~3)
    found: list[Address] = []
    for start, kind in ((original, _ORIGINAL_KIND), (reply, _REPLY_KIND)):
        source = start + 12
        behind = source + width
        if payload[start + 2 : start + 4] != kind or payload[start + 4 : source] != _ADDRESSES_HEAD[family]:
            flow = decode_flow(payload)
            return flow.source, flow.destination, flow.answerer, flow.answered_to
        found += (payload[source:behind], payload[behind + 4 : behind + 4 + width])
    return found[0], found[1], found[2], found[3]


def ends(family: int) -> re.Pattern[bytes]:
    """Return a pattern for messages of the dump about flows with ports of one family, matched from byte 0.

    Its groups, as they travel: destination, protocol (one byte) and destination port of the original
    direction; address and port of the answerer. It takes a twentieth of `decode_flow`, as the kernel writes
    the tuples first and in this order; what does not match is another protocol, or is decoded the long way.
    """
    width = 4 if family == AF_INET else 16
    source, destination = _ADDRESSES[family]
    size = 4 + 2 * (4 + width) + 4 + 3 * 8
    address, port = b"(.{%d})" % width, b"(..)"
    no_address, no_port = b".{%d}" % width, b".."

    def direction(kind: int, *fields: bytes) -> bytes:
        from_address, to_address, protocol, from_port, to_port = fields
        return b"".join(
            (
                _head(4 + size, kind | NLA_F_NESTED),
                _head(4 + 2 * (4 + width), _IP | NLA_F_NESTED),
                _head(4 + width, source),
                from_address,
                _head(4 + width, destination),
                to_address,
                _head(4 + 3 * 8, _PROTO | NLA_F_NESTED),
                _head(5, _PROTO_NUM),
                protocol,
                b"...",
                _head(6, _PROTO_SRC_PORT),
                from_port,
                b"..",
                _head(6, _PROTO_DST_PORT),
                to_port,
                b"..",
            )
        )

    original = direction(_TUPLE_ORIG, no_address, address, b"(.)", no_port, port)
    reply = direction(_TUPLE_REPLY, address, no_address, b".", port, no_port)
    return re.compile(b".{%d}" % HEADER_BYTES + original + reply, re.DOTALL)


def _head(length: int, kind: int) -> bytes:
    return re.escape(_ATTRIBUTE.pack(length, kind))


def _tuple(family: int, found: Mapping[int, bytes], kind: int) -> tuple[int, Address, Address, int, int]:
    """Return protocol, source, destination and both ports of one direction."""
    if family not in _ADDRESSES or kind not in found:
        raise NetlinkFormatError(f"a listed flow of family {family} lacks direction {kind}")
    direction = parse(found[kind])
    addresses, protocol = parse(direction.get(_IP, b"")), parse(direction.get(_PROTO, b""))
    source, destination = _ADDRESSES[family]
    return (
        big_endian(protocol.get(_PROTO_NUM, b"")),
        addresses.get(source, b""),
        addresses.get(destination, b""),
        big_endian(protocol.get(_PROTO_SRC_PORT, b"")),
        big_endian(protocol.get(_PROTO_DST_PORT, b"")),
    )
