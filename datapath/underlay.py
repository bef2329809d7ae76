"""The links of the machine that are not ours: which addresses, MTU and routes the overlay has to build on.

Reads only; which of them is the underlay is worked out elsewhere.
"""

from __future__ import annotations

import errno
import socket
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datapath.desired import VETH_PREFIX
from datapath.errors import NetlinkError
from datapath.netlink.addresses import decode_address, get_addresses
from datapath.netlink.links import IPV6_ACCEPT_RA, LOOPBACK_INDEX, decode_link, get_links
from datapath.netlink.routes import decode_route, get_route

if TYPE_CHECKING:
    from datapath.desired import Address
    from datapath.netlink.transport import Socket

_NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.EAFNOSUPPORT})
_IPV6_FORWARDING = 0
_OUTSIDE = (bytes((192, 0, 0, 8)), b"\1" + bytes(14) + b"\1")
"""The dummy address (RFC 7600), one of the discard prefix (RFC 6666): only a default route leads there."""


@dataclass(frozen=True, slots=True)
class HostLink:
    """A link of the machine with addresses of global scope.

    Attributes:
        name: the link's name.
        mtu: bytes.
        addresses: each with its prefix length, in the kernel's order.
        default: whether a default route leaves by it.
        accept_ra: the IPv6 setting; 0 never, 1 unless forwarding, 2 always.
        forwarding: whether it forwards IPv6.
    """

    name: str
    mtu: int
    addresses: tuple[tuple[Address, int], ...] = ()
    default: bool = False
    accept_ra: int = 0
    forwarding: bool = False


def read_links(route: Socket) -> tuple[HostLink, ...]:
    """Return the machine's links with addresses, in the order of their indexes.

    Raises:
        NetlinkError: the kernel refused to list them.
        NetlinkOverrunError: answers were lost; read again.
    """
    addresses: dict[int, list[tuple[Address, int]]] = defaultdict(list)
    for family in (socket.AF_INET, socket.AF_INET6):
        for payload in route.dump(get_addresses(family), "addresses could not be read"):
            state = decode_address(payload)
            if not _is_link_local(state.address):
                addresses[state.link_index].append((state.address, state.length))
    if not addresses:
        return ()
    defaults = _default_links(route)
    found = []
    for payload in route.dump(get_links(), "links could not be read"):
        link = decode_link(payload)
        if link.index not in addresses or link.index == LOOPBACK_INDEX or link.name.startswith(VETH_PREFIX):
            continue
        found.append(
            HostLink(
                name=link.name,
                mtu=link.mtu,
                addresses=tuple(addresses[link.index]),
                default=link.index in defaults,
                accept_ra=link.ipv6_setting(IPV6_ACCEPT_RA) or 0,
                forwarding=bool(link.ipv6_setting(_IPV6_FORWARDING)),
            )
        )
    return tuple(found)


def _default_links(route: Socket) -> set[int]:
    """Return the links by which packets leave for addresses that no other route knows."""
    found = set()
    for outside in _OUTSIDE:
        try:
            state = decode_route(route.request(get_route(outside), "the default route could not be read"))
        except NetlinkError as error:
            if error.code not in _NO_ROUTE:
                raise
        else:
            found.add(state.link_index)
    return found


def _is_link_local(address: Address) -> bool:
    if len(address) == 4:
        return address[:2] == b"\xa9\xfe"
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80
