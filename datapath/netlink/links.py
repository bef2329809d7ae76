"""Links (network interfaces) as rtnetlink messages, and back (linux/if_link.h).

Owns the layouts of ifinfomsg, of VXLAN and veth data and of the settings in IFLA_AF_SPEC; knows nothing of
what a link is for.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING

from datapath.errors import NetlinkFormatError
from datapath.netlink.attributes import (
    attribute,
    be16,
    big_endian,
    flag,
    integer,
    items,
    nest,
    parse,
    string,
    text,
    u8,
    u32,
)
from datapath.netlink.transport import NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL, Message

if TYPE_CHECKING:
    from datapath.desired import Address, Mac, VxlanLink

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTNLGRP_LINK = 1

IFF_UP = 0x1
IFF_LOWER_UP = 0x10000
LOOPBACK_INDEX = 1

_IFLA_ADDRESS = 1
_IFLA_IFNAME = 3
_IFLA_MTU = 4
_IFLA_LINK = 5
_IFLA_MASTER = 10
_IFLA_LINKINFO = 18
_IFLA_IFALIAS = 20
_IFLA_AF_SPEC = 26
_IFLA_GROUP = 27
_IFLA_NET_NS_FD = 28
_IFLA_EXT_MASK = 29
_IFLA_NUM_TX_QUEUES = 31
_IFLA_NUM_RX_QUEUES = 32
_IFLA_LINK_NETNSID = 37

_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_VETH_INFO_PEER = 1
_IFLA_INET_CONF = 1
_IFLA_INET6_CONF, _IFLA_INET6_ADDR_GEN_MODE = 2, 8
_IN6_ADDR_GEN_MODE_NONE = 1
_RTEXT_FILTER_SKIP_STATS = 8

_VXLAN_ID, _VXLAN_LOCAL, _VXLAN_LEARNING, _VXLAN_PORT, _VXLAN_LOCAL6 = 1, 4, 7, 15, 17
_VXLAN_COLLECT_METADATA = 25

# Places in the array of IPv4 settings, from 1 (linux/ip.h), and of IPv6 settings, from 0 (linux/ipv6.h).
IPV4_FORWARDING = 1
IPV4_PROXY_ARP = 3
IPV4_RP_FILTER = 8
IPV4_ARP_NOTIFY = 22
IPV4_ROUTE_LOCALNET = 26
IPV6_ACCEPT_RA = 3
IPV6_DISABLE = 26

_IFINFOMSG = Struct("=BxHiII")
_S32 = Struct("=i")
_PEER = u32(_IFLA_LINK, 0)[:4]


@dataclass(frozen=True, slots=True)
class VxlanState:
    """What the kernel says of a VXLAN link; `external` links take the VNI from each packet."""

    vni: int
    port: int
    local: Address | None
    learning: bool
    external: bool


@dataclass(frozen=True, slots=True)
class LinkState:
    """A link as the kernel lists it.

    Attributes:
        kind: rtnl kind (`veth`, `vxlan`), empty for a physical link.
        flags: IFF_* bits.
        master: index of the bridge or bond that holds it, 0 without one.
        peer_index: a veth's other end, an index in the namespace of that end; 0 for other kinds.
        peer_elsewhere: whether that end is in another namespace.
        ipv6_settings: the raw array of IFLA_INET6_CONF, empty without IPv6; read it with `ipv6_setting`.
    """

    index: int
    name: str
    kind: str
    mac: Mac
    mtu: int
    flags: int
    alias: str
    group: int
    master: int
    peer_index: int
    peer_elsewhere: bool
    vxlan: VxlanState | None
    ipv4_settings: bytes
    ipv6_settings: bytes

    @property
    def up(self) -> bool:
        """Whether it is administratively up."""
        return bool(self.flags & IFF_UP)

    def ipv4_setting(self, place: int) -> int | None:
        """Return a setting by its IPV4_* place; None when the kernel lists none."""
        return _setting(self.ipv4_settings, place - 1)

    def ipv6_setting(self, place: int) -> int | None:
        """Return a setting by its IPV6_* place; None when the kernel lists none."""
        return _setting(self.ipv6_settings, place)


def get_links(kind: str = "") -> Message:
    """Return the dump of all links without statistics, with `kind` of those alone."""
    wanted = nest(_IFLA_LINKINFO, string(_IFLA_INFO_KIND, kind)) if kind else b""
    return Message(RTM_GETLINK, 0, _IFINFOMSG.pack(0, 0, 0, 0, 0) + _NO_STATISTICS + wanted)


def get_link(link: int | str) -> Message:
    """Return the request for one link by index or name."""
    return Message(RTM_GETLINK, 0, _selected(link) + _NO_STATISTICS)


def decode_link(payload: bytes) -> LinkState:
    """Return the link of an RTM_NEWLINK or RTM_DELLINK payload. Raises NetlinkFormatError."""
    _, _, index, flags, _ = _IFINFOMSG.unpack_from(payload)
    found = parse(payload, _IFINFOMSG.size)
    information = parse(found.get(_IFLA_LINKINFO, b""))
    kind = text(information.get(_IFLA_INFO_KIND, b""))
    families = parse(found.get(_IFLA_AF_SPEC, b""))
    return LinkState(
        index=index,
        name=text(found.get(_IFLA_IFNAME, b"")),
        kind=kind,
        mac=found.get(_IFLA_ADDRESS, b""),
        mtu=integer(found.get(_IFLA_MTU, b"")),
        flags=flags,
        alias=text(found.get(_IFLA_IFALIAS, b"")),
        group=integer(found.get(_IFLA_GROUP, b"")),
        master=integer(found.get(_IFLA_MASTER, b"")),
        peer_index=integer(found.get(_IFLA_LINK, b"")) if kind == "veth" else 0,
        peer_elsewhere=_IFLA_LINK_NETNSID in found,
        vxlan=_decode_vxlan(information.get(_IFLA_INFO_DATA, b"")) if kind == "vxlan" else None,
        ipv4_settings=_part(families.get(socket.AF_INET, b""), _IFLA_INET_CONF),
        ipv6_settings=_part(families.get(socket.AF_INET6, b""), _IFLA_INET6_CONF),
    )


def decode_link_name(payload: bytes) -> tuple[int, str, bool]:
    """Return of the same payload only the index, the name and whether it is up. Raises NetlinkFormatError."""
    _, _, index, flags, _ = _IFINFOMSG.unpack_from(payload)
    # The name comes first, and the rest is long.
    name = next((value for kind, value in items(payload, _IFINFOMSG.size) if kind == _IFLA_IFNAME), b"")
    return index, text(name), bool(flags & IFF_UP)


def decode_pair(payload: bytes) -> tuple[int, int]:
    """Return both indices from the echo of `new_veth`: that of the end here and that of its peer.

    Raises NetlinkFormatError.
    """
    # The echo has some forty attributes, and this is on the path of every ADD. What looks like the header of
    # the wanted one is it, unless it stands in another's payload as well: then they are read one by one.
    place = payload.find(_PEER, _IFINFOMSG.size)
    if place & 3 == 0 and payload.find(_PEER, place + 1) < 0:
        peer = payload[place + 4 : place + 8]
    else:
        peer = _part(payload, _IFLA_LINK, _IFINFOMSG.size)
    if len(peer) != _S32.size:
        raise NetlinkFormatError("the echo of a veth names no peer")
    return _S32.unpack_from(payload, 4)[0], _S32.unpack(peer)[0]


@dataclass(frozen=True, slots=True)
class VethPair:
    """A veth pair to be: `peer_name`, `peer_mac` in the namespace that the descriptor stands for."""

    name: str
    mac: Mac
    peer_name: str
    peer_mac: Mac
    peer_namespace: int
    mtu: int


def new_veth(pair: VethPair) -> Message:
    """Return the message that creates both ends, each in its namespace; its echo is the link `name`."""
    common = u32(_IFLA_MTU, pair.mtu) + _ONE_QUEUE
    peer = (
        _IFINFOMSG.pack(0, 0, 0, 0, 0)
        + string(_IFLA_IFNAME, pair.peer_name)
        + attribute(_IFLA_ADDRESS, pair.peer_mac)
        + u32(_IFLA_NET_NS_FD, pair.peer_namespace)
        + common
    )
    payload = (
        _IFINFOMSG.pack(0, 0, 0, 0, 0)
        + string(_IFLA_IFNAME, pair.name)
        + attribute(_IFLA_ADDRESS, pair.mac)
        + common
        + _information("veth", attribute(_VETH_INFO_PEER, peer))
    )
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ECHO, payload)


def new_vxlan(link: VxlanLink) -> Message:
    """Return the message that creates a VXLAN link, down, without learning.

    The kernel echoes no VXLAN link: ask for it by name to learn its index.
    """
    local = _VXLAN_LOCAL if len(link.local) == 4 else _VXLAN_LOCAL6
    data = (
        u32(_VXLAN_ID, link.vni),
        attribute(local, link.local),
        u8(_VXLAN_LEARNING, 0),
        be16(_VXLAN_PORT, link.port),
    )
    payload = (
        _IFINFOMSG.pack(0, 0, 0, 0, 0)
        + string(_IFLA_IFNAME, link.name)
        + attribute(_IFLA_ADDRESS, link.mac)
        + u32(_IFLA_MTU, link.mtu)
        + _information("vxlan", *data)
    )
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, payload)


def set_link(
    link: int | str,
    *,
    up: bool | None = None,
    name: str | None = None,
    mac: Mac | None = None,
    mtu: int | None = None,
    alias: str | None = None,
    group: int | None = None,
    settings: bytes = b"",
) -> Message:
    """Return the message that changes a link, named by index or name; None leaves a property as it is.

    Args:
        link: index or name.
        up: administratively up or down.
        name: the new name (links that are up can't be renamed before Linux 6.2).
        mac: the new MAC address.
        mtu: the new MTU.
        alias: the new IFLA_IFALIAS; an empty text removes it.
        group: the new IFLA_GROUP.
        settings: what `address_family_settings` returns; they apply after the link is up.
    """
    payload = _selected(link, up=up)
    if name is not None and not isinstance(link, str):
        payload += string(_IFLA_IFNAME, name)
    if mac is not None:
        payload += attribute(_IFLA_ADDRESS, mac)
    if mtu is not None:
        payload += u32(_IFLA_MTU, mtu)
    if alias is not None:
        payload += attribute(_IFLA_IFALIAS, alias.encode()) if alias else flag(_IFLA_IFALIAS)
    if group is not None:
        payload += u32(_IFLA_GROUP, group)
    return Message(RTM_NEWLINK, 0, payload + settings)


def del_link(link: int | str) -> Message:
    """Return the message that destroys a link by index or name. The kernel takes tens of milliseconds."""
    return Message(RTM_DELLINK, 0, _selected(link))


def del_group(group: int) -> Message:
    """Return the message that destroys all links of a group at once, hardly slower than one."""
    return Message(RTM_DELLINK, 0, _IFINFOMSG.pack(0, 0, 0, 0, 0) + u32(_IFLA_GROUP, group))


def address_family_settings(ipv4: dict[int, int], *, ipv6_link_local: bool = True) -> bytes:
    """Return IFLA_AF_SPEC with IPv4 settings by IPV4_* place; without `ipv6_link_local` none is generated."""
    parts = []
    if ipv4:
        settings = [u32(place, value) for place, value in ipv4.items()]
        parts.append(nest(socket.AF_INET, nest(_IFLA_INET_CONF, *settings)))
    if not ipv6_link_local:
        parts.append(nest(socket.AF_INET6, u8(_IFLA_INET6_ADDR_GEN_MODE, _IN6_ADDR_GEN_MODE_NONE)))
    return nest(_IFLA_AF_SPEC, *parts) if parts else b""


# Each queue of a veth is a kobject with files, and a veth without XDP gains nothing from a second one.
_ONE_QUEUE = u32(_IFLA_NUM_TX_QUEUES, 1) + u32(_IFLA_NUM_RX_QUEUES, 1)
_NO_STATISTICS = u32(_IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)


def _selected(link: int | str, *, up: bool | None = None) -> bytes:
    flags, change = (IFF_UP if up else 0), (0 if up is None else IFF_UP)
    if isinstance(link, str):
        return _IFINFOMSG.pack(0, 0, 0, flags, change) + string(_IFLA_IFNAME, link)
    return _IFINFOMSG.pack(0, 0, link, flags, change)


def _information(kind: str, *data: bytes) -> bytes:
    return nest(_IFLA_LINKINFO, string(_IFLA_INFO_KIND, kind), nest(_IFLA_INFO_DATA, *data))


def _decode_vxlan(data: bytes) -> VxlanState:
    found = parse(data)
    return VxlanState(
        vni=integer(found.get(_VXLAN_ID, b"")),
        port=big_endian(found.get(_VXLAN_PORT, b"")),
        local=found.get(_VXLAN_LOCAL) or found.get(_VXLAN_LOCAL6),
        learning=bool(integer(found.get(_VXLAN_LEARNING, b""))),
        external=_VXLAN_COLLECT_METADATA in found and any(found[_VXLAN_COLLECT_METADATA]),
    )


def _part(buffer: bytes, kind: int, offset: int = 0) -> bytes:
    return next((payload for found, payload in items(buffer, offset) if found == kind), b"")


def _setting(settings: bytes, place: int) -> int | None:
    offset = place * _S32.size
    return int(_S32.unpack_from(settings, offset)[0]) if offset + _S32.size <= len(settings) else None
