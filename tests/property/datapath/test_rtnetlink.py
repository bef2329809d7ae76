"""What we encode, pyroute2's message classes read as meant; what they encode, we do; and both ways agree."""

from __future__ import annotations

import struct
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from datapath.desired import FdbEntry, LinkAddress, Neighbour, Route, RouteKind, VxlanLink
from datapath.errors import NetlinkFormatError
from datapath.netlink import attributes
from datapath.netlink.addresses import (
    AddressState,
    decode_address,
    del_address,
    get_addresses,
    new_address,
)
from datapath.netlink.links import (
    VethPair,
    VxlanState,
    address_family_settings,
    decode_link,
    decode_pair,
    get_links,
    new_veth,
    new_vxlan,
    set_link,
)
from datapath.netlink.neighbours import (
    FdbState,
    NeighbourState,
    decode_fdb,
    decode_neighbour,
    del_fdb,
    del_neighbour,
    get_fdb,
    learned_neighbour,
    new_fdb,
    new_neighbour,
)
from datapath.netlink.routes import decode_route, del_route, get_routes, new_route

if TYPE_CHECKING:
    from datapath.netlink.transport import Message

indexes = st.integers(1, 2**31 - 1)
macs = st.binary(min_size=6, max_size=6)
# ::ffff:0:0/96 has two text forms, and 0.0.0.0 and :: are read as absent where a route has them.
addresses4 = st.binary(min_size=4, max_size=4).filter(any)
addresses6 = st.binary(min_size=15, max_size=15).map(lambda tail: b"\xfd" + tail)
addresses = addresses4 | addresses6
names = st.text("abcdefghijklmnopqrstuvwxyz0123456789.", min_size=1, max_size=15)


@st.composite
def routes(draw: st.DrawFn) -> Route:
    family = draw(st.sampled_from([addresses4, addresses6]))
    destination = draw(family)
    kind = draw(st.sampled_from(RouteKind))
    unicast = kind is RouteKind.UNICAST
    return Route(
        destination=destination,
        length=draw(st.integers(1, 8 * len(destination))),
        link="link" if unicast else None,
        gateway=draw(st.none() | family) if unicast else None,
        source=draw(st.none() | family) if unicast else None,
        onlink=draw(st.booleans()) if unicast else False,
        kind=kind,
        metric=draw(st.integers(0, 2**32 - 1).filter(lambda metric: metric != 1024)),
    )


def read(message_class: Any, message: Message) -> dict[str, Any]:
    """Decode our message with one of pyroute2's classes; returns fields and attributes in one."""
    header = struct.pack("=IHHII", 16 + len(message.payload), message.kind, message.flags, 1, 0)
    decoded = message_class(header + message.payload)
    decoded.decode()
    return {**dict(decoded["attrs"]), **{name: decoded[name] for name, _ in message_class.fields}}


def written(message_class: Any, fields: dict[str, Any], attrs: list[tuple[str, Any]]) -> bytes:
    """Encode with one of pyroute2's classes; returns family header and attributes."""
    message = message_class()
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attrs
    message.encode()
    return bytes(message.data[16 : struct.unpack_from("=I", message.data)[0]])


def text(address: bytes) -> str:
    return str(ip_address(address))


def colons(mac: bytes) -> str:
    return mac.hex(":")


def prefix_number(route: Route) -> int:
    network = ip_network((route.destination, route.length), strict=False)
    return int(network.network_address) // network.num_addresses


def without_absent(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


@given(routes(), indexes)
def test_routes_are_read_as_meant(route: Route, index: int) -> None:
    index = index if route.link else 0
    message = new_route(route, index)
    found = read(rtmsg, message)
    family = 2 if len(route.destination) == 4 else 10
    scope = 0
    if route.kind is RouteKind.UNICAST and family == 2:
        scope = 253 if route.gateway is None else prefix_number(route) % 199
    assert found == without_absent(
        {
            "family": family,
            "dst_len": route.length,
            "src_len": 0,
            "tos": 0,
            "table": 254,
            "proto": 119,
            "scope": scope,
            "type": int(route.kind),
            "flags": 4 if route.onlink else 0,
            "RTA_DST": text(route.destination),
            "RTA_OIF": index or None,
            "RTA_GATEWAY": text(route.gateway) if route.gateway else None,
            "RTA_PREFSRC": text(route.source) if route.source else None,
            "RTA_PRIORITY": route.metric or None,
        }
    )
    assert (message.kind, message.flags) == (24, 0x500)
    deletion = del_route(route, index)
    assert (deletion.kind, deletion.flags) == (25, 0)
    assert {**found, "scope": 255} == read(rtmsg, deletion)


@given(routes(), indexes)
def test_routes_come_back_as_they_went(route: Route, index: int) -> None:
    state = decode_route(new_route(route, index if route.link else 0).payload)
    assert state.route({index: "link"}) == route
    assert (state.protocol, state.table) == (119, 254)


@given(routes(), indexes, st.integers(0, 2**32 - 1))
def test_routes_of_pyroute2_are_read(route: Route, index: int, table: int) -> None:
    attrs: list[tuple[str, Any]] = [("RTA_TABLE", table), ("RTA_DST", text(route.destination))]
    if route.gateway:
        attrs.append(("RTA_GATEWAY", text(route.gateway)))
    if route.source:
        attrs.append(("RTA_PREFSRC", text(route.source)))
    # The kernel lists IPv6 routes of no link with lo, and IPv6's default metric as 1024.
    attrs.append(("RTA_OIF", index if route.link else 1))
    family = 2 if len(route.destination) == 4 else 10
    attrs.append(("RTA_PRIORITY", route.metric or (1024 if family == 10 else 0)))
    fields = {
        "family": family,
        "dst_len": route.length,
        "proto": 119,
        "type": int(route.kind),
        "flags": 4 if route.onlink else 0,
    }
    if family == 2 and not route.link:
        attrs = [pair for pair in attrs if pair[0] != "RTA_OIF"]
    state = decode_route(written(rtmsg, fields, attrs))
    assert state.route({index: "link"}) == route
    assert state.table == table


def test_a_default_route_has_no_destination_on_the_wire() -> None:
    for gateway in (bytes((10, 0, 0, 1)), bytes(15) + b"\1"):
        route = Route(bytes(len(gateway)), 0, "link", gateway=gateway)
        assert "RTA_DST" not in read(rtmsg, new_route(route, 3))
        assert decode_route(new_route(route, 3).payload).route({3: "link"}) == route


def test_a_route_of_an_unknown_link_or_kind_is_none_that_is_desired() -> None:
    state = decode_route(new_route(Route(b"\n\0\0\0", 8, "link"), 3).payload)
    assert state.route({}) is None
    prohibit = written(rtmsg, {"family": 2, "dst_len": 8, "type": 8}, [("RTA_DST", "10.0.0.0")])
    assert decode_route(prohibit).route({}) is None


@given(addresses, macs, indexes)
def test_neighbours_are_read_as_meant(address: bytes, mac: bytes, index: int) -> None:
    neighbour = Neighbour("link", address, mac)
    expected = {
        "family": 2 if len(address) == 4 else 10,
        "__pad": (),
        "ifindex": index,
        "state": 0x80,
        "flags": 0,
        "ndm_type": 0,
        "NDA_DST": text(address),
        "NDA_LLADDR": colons(mac),
    }
    message = new_neighbour(neighbour, index)
    assert (message.kind, message.flags, read(ndmsg, message)) == (28, 0x500, expected)
    deletion = del_neighbour(neighbour, index)
    assert (deletion.kind, deletion.flags, read(ndmsg, deletion)) == (29, 0, expected)
    learned = learned_neighbour(neighbour, index)
    assert read(ndmsg, learned) == {**expected, "state": 0x04, "flags": 0x10}
    assert decode_neighbour(message.payload) == NeighbourState(index, address, mac, 0x80)
    assert decode_neighbour(message.payload).permanent
    assert not decode_neighbour(learned.payload).permanent


@given(addresses, macs, indexes)
def test_forwarding_entries_are_read_as_meant(remote: bytes, mac: bytes, index: int) -> None:
    entry = FdbEntry("link", mac, remote)
    found = read(ndmsg, new_fdb(entry, index))
    assert (found["family"], found["ifindex"], found["state"], found["flags"]) == (7, index, 0x80, 2)
    assert found["NDA_LLADDR"] == colons(mac)
    assert found == read(ndmsg, del_fdb(entry, index))
    theirs = written(
        ndmsg,
        {"family": 7, "ifindex": index, "state": 0x80, "flags": 2},
        [("NDA_LLADDR", colons(mac)), ("NDA_DST", text(remote))],
    )
    assert decode_fdb(theirs) == decode_fdb(new_fdb(entry, index).payload)
    assert decode_fdb(theirs) == FdbState(index, mac, remote, 0x80)


@given(addresses, st.integers(1, 32), indexes, st.booleans())
def test_addresses_are_read_as_meant(address: bytes, length: int, index: int, prefix_route: bool) -> None:
    value = LinkAddress("link", address, length)
    message = new_address(value, index, prefix_route=prefix_route)
    flags = (0 if prefix_route else 0x200) | (0 if len(address) == 4 else 0x02)
    assert read(ifaddrmsg, message) == {
        "family": 2 if len(address) == 4 else 10,
        "prefixlen": length,
        "flags": 0,
        "scope": 0,
        "index": index,
        "IFA_LOCAL": text(address),
        "IFA_ADDRESS": text(address),
        "IFA_FLAGS": flags,
    }
    assert decode_address(message.payload) == AddressState(index, address, length, flags)
    assert read(ifaddrmsg, del_address(value, index))["IFA_LOCAL"] == text(address)
    assert read(ifaddrmsg, new_address(value, index, link_scope=True))["scope"] == 253


@given(names, st.integers(1, 2**24 - 1), st.integers(1, 65535), macs, addresses, st.integers(68, 65535))
def test_vxlan_links_are_read_as_meant(
    name: str, vni: int, port: int, mac: bytes, local: bytes, mtu: int
) -> None:
    message = new_vxlan(VxlanLink(name, vni, port, mac, local, mtu))
    found = read(ifinfmsg, message)
    assert (found["IFLA_IFNAME"], found["IFLA_ADDRESS"], found["IFLA_MTU"]) == (name, colons(mac), mtu)
    info = dict(found["IFLA_LINKINFO"]["attrs"])
    data = dict(info["IFLA_INFO_DATA"]["attrs"])
    own = "IFLA_VXLAN_LOCAL" if len(local) == 4 else "IFLA_VXLAN_LOCAL6"
    assert info["IFLA_INFO_KIND"] == "vxlan"
    expected = {"IFLA_VXLAN_ID": vni, own: text(local), "IFLA_VXLAN_LEARNING": 0, "IFLA_VXLAN_PORT": port}
    assert data == expected
    state = decode_link(message.payload)
    assert (state.name, state.kind, state.mac, state.mtu) == (name, "vxlan", mac, mtu)
    assert state.vxlan == VxlanState(vni, port, local, learning=False, external=False)


@given(names, macs, names, macs, st.integers(68, 65535))
def test_veth_pairs_are_read_as_meant(name: str, mac: bytes, peer: str, peer_mac: bytes, mtu: int) -> None:
    message = new_veth(VethPair(name, mac, peer, peer_mac, 9, mtu))
    assert message.flags == 0x608
    found = read(ifinfmsg, message)
    assert (found["IFLA_IFNAME"], found["IFLA_ADDRESS"], found["IFLA_MTU"]) == (name, colons(mac), mtu)
    assert (found["IFLA_NUM_TX_QUEUES"], found["IFLA_NUM_RX_QUEUES"]) == (1, 1)
    info = dict(found["IFLA_LINKINFO"]["attrs"])
    other = dict(dict(info["IFLA_INFO_DATA"]["attrs"])["VETH_INFO_PEER"]["attrs"])
    assert other["IFLA_IFNAME"] == peer
    assert other["IFLA_ADDRESS"] == colons(peer_mac)
    assert (other["IFLA_NET_NS_FD"], other["IFLA_MTU"]) == (9, mtu)


@given(indexes, indexes, names)
def test_the_echo_of_a_pair_gives_both_indexes(index: int, peer: int, name: str) -> None:
    attrs = [("IFLA_IFNAME", name), ("IFLA_MTU", 1500), ("IFLA_LINK", peer), ("IFLA_GROUP", 0)]
    assert decode_pair(written(ifinfmsg, {"index": index}, attrs)) == (index, peer)
    with pytest.raises(NetlinkFormatError):
        decode_pair(written(ifinfmsg, {"index": index}, [("IFLA_IFNAME", name)]))


@given(indexes, indexes, st.binary(max_size=9), st.binary(max_size=9))
def test_the_peer_is_not_taken_from_what_looks_like_it(
    index: int, peer: int, before: bytes, after: bytes
) -> None:
    """Its header stands in other attributes too, as a MAC address can have it."""
    looks = attributes.u32(5, 77)
    header = struct.pack("=BxHiII", 0, 0, index, 0, 0)
    true = attributes.u32(5, peer)
    first, last = attributes.attribute(1, before + looks), attributes.attribute(2, looks + after)
    for payload in (header + first + true, header + true + last, header + first + true + last):
        assert decode_pair(payload) == (index, peer)


@given(indexes, names, st.none() | st.booleans(), st.none() | st.text("äx ", max_size=20), macs)
def test_changes_of_a_link_are_read_as_meant(
    index: int, name: str, up: bool | None, alias: str | None, mac: bytes
) -> None:
    settings = address_family_settings({1: 1}, ipv6_link_local=False)
    message = set_link(index, name=name, up=up, alias=alias, mac=mac, mtu=1300, group=7, settings=settings)
    found = read(ifinfmsg, message)
    assert (message.kind, message.flags, found["index"]) == (16, 0, index)
    assert (found["flags"], found["change"]) == {None: (0, 0), True: (1, 1), False: (0, 1)}[up]
    assert (found["IFLA_IFNAME"], found["IFLA_ADDRESS"]) == (name, colons(mac))
    assert (found["IFLA_MTU"], found["IFLA_GROUP"]) == (1300, 7)
    assert found.get("IFLA_IFALIAS") == alias
    families = dict(found["IFLA_AF_SPEC"]["attrs"])
    assert dict(families["AF_INET6"]["attrs"]) == {"IFLA_INET6_ADDR_GEN_MODE": 1}
    state = decode_link(message.payload)
    assert (state.index, state.name, state.group, state.alias) == (index, name, 7, alias or "")
    assert state.up == bool(up)


def test_dumps_carry_their_filters() -> None:
    routes = read(rtmsg, get_routes(2, protocol=119, link_index=4))
    assert (routes["family"], routes["proto"], routes["RTA_OIF"]) == (2, 119, 4)
    assert read(ifaddrmsg, get_addresses(10, 3))["index"] == 3
    assert read(ndmsg, get_fdb(3))["NDA_IFINDEX"] == 3
    kind = dict(read(ifinfmsg, get_links("veth"))["IFLA_LINKINFO"]["attrs"])["IFLA_INFO_KIND"]
    assert kind == "veth"


# Attributes


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=40))))
def test_attributes_come_back_in_order(pairs: list[tuple[int, bytes]]) -> None:
    packed = b"".join(attributes.attribute(kind, payload) for kind, payload in pairs)
    assert len(packed) % 4 == 0
    assert list(attributes.items(b"head" + packed, 4)) == pairs
    assert attributes.parse(packed) == dict(pairs)


@given(st.binary(max_size=200))
def test_garbage_is_a_format_error_or_attributes(buffer: bytes) -> None:
    try:
        found = list(attributes.items(buffer))
    except NetlinkFormatError:
        return
    assert sum(4 + len(payload) for _, payload in found) <= len(buffer)


@given(st.integers(0, 255), st.integers(0, 65535), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_integers(byte: int, short: int, word: int, long: int) -> None:
    packed = b"".join(
        (
            attributes.u8(1, byte),
            attributes.u16(2, short),
            attributes.u32(3, word),
            attributes.u64(4, long),
            attributes.be16(5, short),
            attributes.be32(6, word),
            attributes.be64(7, long),
        )
    )
    found = attributes.parse(packed)
    assert [attributes.integer(found[kind]) for kind in (1, 2, 3, 4)] == [byte, short, word, long]
    assert [attributes.big_endian(found[kind]) for kind in (5, 6, 7)] == [short, word, long]
    assert [len(found[kind]) for kind in range(1, 8)] == [1, 2, 4, 8, 2, 4, 8]


def test_nests_strings_flags_and_the_limit() -> None:
    packed = attributes.nest(1, attributes.string(2, "naïve"), attributes.flag(3))
    assert packed[3] & 0x80
    inner = attributes.parse(attributes.parse(packed)[1])
    assert attributes.text(inner[2]) == "naïve"
    assert inner[3] == b""
    attributes.attribute(1, bytes(0xFFFF - 4))
    with pytest.raises(NetlinkFormatError, match="split it"):
        attributes.attribute(1, bytes(0xFFFF - 3))
