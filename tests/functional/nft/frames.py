"""Crafts frames byte by byte, as a pod with CAP_NET_RAW can."""

from __future__ import annotations

import socket
import struct

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
_ECHO_REQUEST = {ICMP: 8, ICMPV6: 128}
_SYN = 2
FRAGMENT, DESTINATION_OPTIONS, HOP_BY_HOP, ROUTING = 44, 60, 0, 43
_NOP_OPTIONS = bytes((1, 4, 0, 0, 0, 0))


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    padded = data + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _with_checksum(source: str, target: str, protocol: int, segment: bytes, place: int) -> bytes:
    """Put the checksum of a segment and its pseudo header where it has zeros (RFC 9293, RFC 8200)."""
    low, high, length = packed(source), packed(target), len(segment)
    if protocol == ICMP:
        pseudo = b""
    elif len(low) == 4:
        pseudo = low + high + struct.pack("!BBH", 0, protocol, length)
    else:
        pseudo = low + high + struct.pack("!II", length, protocol)
    total = checksum(pseudo + segment) or 0xFFFF
    return segment[:place] + struct.pack("!H", total) + segment[place + 2 :]


def udp(source: str, target: str, sport: int, dport: int, payload: bytes) -> bytes:
    """A UDP datagram with its checksum."""
    header = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0)
    return _with_checksum(source, target, UDP, header + payload, 6)


def syn(source: str, target: str, sport: int, dport: int, payload: bytes) -> bytes:
    """The first segment of a TCP connection, which may carry data."""
    header = struct.pack("!HHIIBBHHH", sport, dport, 1, 0, 5 << 4, _SYN, 65535, 0, 0)
    return _with_checksum(source, target, TCP, header + payload, 16)


def echo_request(source: str, target: str, identity: int, payload: bytes) -> bytes:
    """A ping of the family of its addresses."""
    protocol = ICMPV6 if ":" in source else ICMP
    header = struct.pack("!BBHHH", _ECHO_REQUEST[protocol], 0, 0, identity, 1)
    return _with_checksum(source, target, protocol, header + payload, 2)


def ipv4(
    source: str,
    target: str,
    payload: bytes,
    *,
    protocol: int = UDP,
    identity: int = 1,
    offset: int = 0,
    more: bool = False,
    options: bytes = b"",
) -> bytes:
    """An IPv4 packet; `offset` of a fragment in bytes."""
    words = 5 + len(options) // 4
    fields = (
        0x40 | words,
        0,
        words * 4 + len(payload),
        identity,
        (0x2000 if more else 0) | offset // 8,
        64,
        protocol,
    )
    header = struct.pack("!BBHHHBBH", *fields, 0) + packed(source) + packed(target) + options
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def ipv6(source: str, target: str, payload: bytes, *, following: int = UDP, hops: int = 64) -> bytes:
    """An IPv6 packet; `following` is the type of what comes next."""
    head = struct.pack("!IHBB", 6 << 28, len(payload), following, hops)
    return head + packed(source) + packed(target) + payload


def options(following: int) -> bytes:
    """A hop-by-hop or destination options header that says nothing."""
    return bytes((following, 0)) + _NOP_OPTIONS


def fragment(following: int, offset: int, payload: bytes, *, more: bool, identity: int = 7) -> bytes:
    """An IPv6 fragment header with its part."""
    return struct.pack("!BBHI", following, 0, offset | int(more), identity) + payload


def ip(source: str, target: str, payload: bytes, *, protocol: int = UDP) -> bytes:
    """A packet of the family of its addresses."""
    if ":" in source:
        return ipv6(source, target, payload, following=protocol)
    return ipv4(source, target, payload, protocol=protocol)


def ethernet(source: bytes, target: bytes, packet: bytes) -> bytes:
    kind = 0x86DD if packet[0] >> 4 == 6 else 0x0800
    return target + source + struct.pack("!H", kind) + packet


def vxlan(vni: int, frame: bytes) -> bytes:
    """A VXLAN header with the frame inside (RFC 7348)."""
    return struct.pack("!II", 0x08000000, vni << 8) + frame
