"""Messages of connection tracking against pyroute2's classes, and what no deletion may ever look like."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from pyroute2.netlink.nfnetlink.nfctsocket import nfct_msg

from datapath.errors import NetlinkFormatError
from datapath.netlink.attributes import attribute, be16, be32, nest, parse, u8
from datapath.netlink.ctnetlink import (
    CT_DELETE,
    CT_GET,
    Flow,
    decode_flow,
    del_flow,
    ends,
    flow_addresses,
    flow_call,
    get_flows,
)
from datapath.netlink.nfnetlink import HEADER_BYTES, header
from datapath.netlink.transport import Message

V4 = (
    socket.AF_INET,
    [socket.inet_pton(socket.AF_INET, each) for each in ("10.1.0.7", "10.96.0.10", "10.2.0.9")],
)
V6 = socket.AF_INET6, [socket.inet_pton(socket.AF_INET6, each) for each in ("fd01::7", "fd96::10", "fd02::9")]
UDP, TCP, ICMP = 17, 6, 1
NO_ATTRIBUTE_OF_A_DELETION = ("CTA_FILTER", "CTA_STATUS", "CTA_MARK", "CTA_TUPLE_REPLY")


def direction(kind: int, protocol: int, source: tuple[bytes, int], destination: tuple[bytes, int]) -> bytes:
    first = 1 if len(source[0]) == 4 else 3
    return nest(
        kind,
        nest(1, attribute(first, source[0]), attribute(first + 1, destination[0])),
        nest(2, u8(1, protocol), be16(2, source[1]), be16(3, destination[1])),
    )


def listed(family: int, addresses: list[bytes], protocol: int = UDP, more: bytes = b"") -> bytes:
    """A message as the kernel lists it: a client's flow to a frontend that backend 5353 answers."""
    client, frontend, backend = addresses
    return b"".join(
        (
            header(family),
            direction(1, protocol, (client, 40000), (frontend, 53)),
            direction(2, protocol, (backend, 5353), (client, 40000)),
            be32(3, 0x18E),
            be32(7, 119),
            be32(8, 0x4000),
            be32(12, 0xDEADBEEF),
            be32(11, 1),
            more,
        )
    )


def read(message: Message) -> Any:
    """What pyroute2 takes a message of ours for."""
    raw = (16 + len(message.payload)).to_bytes(4, "little") + message.kind.to_bytes(2, "little")
    decoded = nfct_msg(raw + bytes(10) + message.payload)
    decoded.decode()
    return decoded


@pytest.mark.parametrize(("family", "addresses"), [V4, V6], ids=["IPv4", "IPv6"])
def test_a_filter_is_read_as_meant(family: int, addresses: list[bytes]) -> None:
    message = get_flows(family, protocol=UDP, destination=addresses[1], port=53, mark=(0x10, 0xF0))
    assert (message.kind, message.flags) == (CT_GET, 0)
    decoded = read(message)
    assert decoded["nfgen_family"] == family
    original = decoded.get_attr("CTA_TUPLE_ORIG")
    by_address = family == socket.AF_INET  # not in IPv6: the kernel compares the wrong way round
    if by_address:
        destination = original.get_attr("CTA_TUPLE_IP").get_attr("CTA_IP_V4_DST")
        assert destination == socket.inet_ntop(family, addresses[1])
    protocol = original.get_attr("CTA_TUPLE_PROTO")
    assert (protocol.get_attr("CTA_PROTO_NUM"), protocol.get_attr("CTA_PROTO_DST_PORT")) == (UDP, 53)
    assert (
        decoded.get_attr("CTA_FILTER").get_attr("CTA_FILTER_ORIG_FLAGS") == by_address << 1 | 1 << 3 | 1 << 5
    )
    assert (decoded.get_attr("CTA_MARK"), decoded.get_attr("CTA_MARK_MASK")) == (0x10, 0xF0)


def test_without_a_wish_everything_is_listed() -> None:
    assert get_flows() == Message(CT_GET, 0, header(0))
    flags = read(get_flows(socket.AF_INET, protocol=UDP)).get_attr("CTA_FILTER")
    assert flags.get_attr("CTA_FILTER_ORIG_FLAGS") == 1 << 3


@pytest.mark.parametrize(("family", "addresses"), [V4, V6], ids=["IPv4", "IPv6"])
def test_a_listed_flow_becomes_a_value(family: int, addresses: list[bytes]) -> None:
    client, frontend, backend = addresses
    assert decode_flow(listed(family, addresses)) == Flow(
        family=family,
        protocol=UDP,
        source=client,
        destination=frontend,
        source_port=40000,
        destination_port=53,
        answerer=backend,
        answerer_port=5353,
        answered_to=client,
        answered_to_port=40000,
        status=0x18E,
        mark=0x4000,
    )


@pytest.mark.parametrize(("family", "addresses"), [V4, V6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("protocol", [UDP, TCP])
def test_the_pattern_finds_the_ends(family: int, addresses: list[bytes], protocol: int) -> None:
    found = ends(family).match(listed(family, addresses, protocol))
    assert found is not None
    assert found.groups() == (addresses[1], bytes((protocol,)), b"\0\x35", addresses[2], b"\x14\xe9")


def test_the_pattern_takes_no_other_layout_for_its_own() -> None:
    family, (client, frontend, _) = V4
    echo = b"".join(
        (
            header(family),
            nest(1, nest(1, attribute(1, client), attribute(2, frontend)), nest(2, u8(1, ICMP), u8(5, 8))),
            nest(2, nest(1, attribute(1, frontend), attribute(2, client)), nest(2, u8(1, ICMP), u8(5, 0))),
        )
    )
    assert ends(family).match(echo) is None
    assert decode_flow(echo).destination_port == 0
    assert ends(socket.AF_INET6).match(listed(*V4)) is None
    swapped = listed(*V4)
    reply = swapped[56:108]
    assert ends(family).match(swapped[:4] + reply + swapped[4:56] + swapped[108:]) is None


@pytest.mark.parametrize(("family", "addresses"), [V4, V6], ids=["IPv4", "IPv6"])
def test_a_deletion_names_one_flow_and_can_be_read_as_nothing_else(
    family: int, addresses: list[bytes]
) -> None:
    payload = listed(family, addresses, more=be16(18, 7))
    message = del_flow(payload)
    assert (message.kind, message.flags) == (CT_DELETE, 0)
    decoded = read(message)
    client = socket.inet_ntop(family, addresses[0])
    ip = decoded.get_attr("CTA_TUPLE_ORIG").get_attr("CTA_TUPLE_IP")
    assert ip.get_attr("CTA_IP_V4_SRC" if family == socket.AF_INET else "CTA_IP_V6_SRC") == client
    assert (decoded.get_attr("CTA_ID"), decoded.get_attr("CTA_ZONE")) == (0xDEADBEEF, 7)
    assert not [name for name in NO_ATTRIBUTE_OF_A_DELETION if decoded.get_attr(name)]
    ours, theirs = parse(message.payload, HEADER_BYTES), parse(payload, HEADER_BYTES)
    assert ours[1] == theirs[1]


@pytest.mark.parametrize("missing", [1, 12], ids=["tuple", "id"])
def test_what_would_flush_is_never_made(missing: int) -> None:
    family, addresses = V4
    kept = [
        attribute(kind, payload)
        for kind, payload in parse(listed(family, addresses), HEADER_BYTES).items()
        if kind != missing
    ]
    with pytest.raises(NetlinkFormatError, match="can't be deleted alone"):
        del_flow(header(family) + b"".join(kept))


def test_a_message_of_another_family_or_half_of_one_is_refused() -> None:
    with pytest.raises(NetlinkFormatError, match="family 5"):
        decode_flow(header(5))
    with pytest.raises(NetlinkFormatError, match="lacks direction 2"):
        decode_flow(header(2) + direction(1, UDP, (V4[1][0], 1), (V4[1][1], 2)))


@pytest.mark.parametrize(("family", "addresses"), [V4, V6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("protocol", [UDP, TCP, ICMP])
def test_addresses_are_read_whatever_the_protocol(family: int, addresses: list[bytes], protocol: int) -> None:
    client, frontend, backend = addresses
    expected = (client, frontend, backend, client)
    assert flow_addresses(listed(family, addresses, protocol)) == expected
    # Neither the order of attributes nor what stands before the tuples is a promise.
    turned = b"".join(
        (
            header(family),
            be32(7, 119),
            direction(2, protocol, (backend, 5353), (client, 40000)),
            direction(1, protocol, (client, 40000), (frontend, 53)),
        )
    )
    assert flow_addresses(turned) == expected
    with pytest.raises(NetlinkFormatError):
        flow_addresses(header(family) + be32(7, 119))


@pytest.mark.parametrize(("family", "addresses"), [V4, V6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("protocol", [UDP, TCP, ICMP])
def test_what_was_called_is_read_without_the_rest(family: int, addresses: list[bytes], protocol: int) -> None:
    payload = listed(family, addresses, protocol)
    flow = decode_flow(payload)
    expected = (flow.protocol, flow.answerer_port, flow.status, flow.mark)
    assert expected == (protocol, 5353, 0x18E, 0x4000)
    assert flow_call(payload) == expected
    # Without a mark, and in another order.
    client, frontend, backend = addresses
    turned = b"".join(
        (
            header(family),
            be32(3, 0x18E),
            direction(2, protocol, (backend, 5353), (client, 40000)),
            direction(1, protocol, (client, 40000), (frontend, 53)),
        )
    )
    assert flow_call(turned) == (protocol, 5353, 0x18E, 0)
