"""Addresses of links as rtnetlink messages, and back (linux/if_addr.h). Owns their layout."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING

from datapath.netlink.attributes import family_of, integer, parse
from datapath.netlink.transport import NLM_F_CREATE, NLM_F_REPLACE, Message

if TYPE_CHECKING:
    from datapath.desired import Address, LinkAddress

RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTNLGRP_IPV4_IFADDR = 5
RTNLGRP_IPV6_IFADDR = 9

IFA_F_NODAD = 0x02
IFA_F_PERMANENT = 0x80
IFA_F_NOPREFIXROUTE = 0x200

_PUT = NLM_F_CREATE | NLM_F_REPLACE
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_IFADDRMSG = Struct("=BBBBI")

# ifaddrmsg, IFA_LOCAL, IFA_ADDRESS, IFA_FLAGS, by the address's length.
_ADDRESS = {4: Struct("=BBBBIHH4sHH4sHHI"), 16: Struct("=BBBBIHH16sHH16sHHI")}


@dataclass(frozen=True, slots=True)
class AddressState:
    """An address of a link as the kernel lists it; `flags` holds IFA_F_* bits."""

    link_index: int
    address: Address
    length: int
    flags: int


def new_address(
    address: LinkAddress,
    link_index: int,
    *,
    flags: int = _PUT,
    prefix_route: bool = True,
    link_scope: bool = False,
) -> Message:
    """Return the message that adds an address; an IPv6 address is usable at once (no duplicate detection).

    Without `prefix_route` the kernel adds no route to the address's prefix. With `link_scope` an IPv4
    address is no source for what leaves by another link (an IPv6 address has the scope that it says).
    """
    bits = 0 if prefix_route else IFA_F_NOPREFIXROUTE
    if len(address.address) == 16:
        bits |= IFA_F_NODAD
    scope = _SCOPE_LINK if link_scope else _SCOPE_UNIVERSE
    return Message(RTM_NEWADDR, flags, _address_payload(address, link_index, scope, bits))


def del_address(address: LinkAddress, link_index: int) -> Message:
    """Return the message that removes an address."""
    return Message(RTM_DELADDR, 0, _address_payload(address, link_index, _SCOPE_UNIVERSE, 0))


def get_addresses(family: int, link_index: int = 0) -> Message:
    """Return the dump of one family's addresses, with an index those of one link."""
    return Message(RTM_GETADDR, 0, _IFADDRMSG.pack(family, 0, 0, 0, link_index))


def decode_address(payload: bytes) -> AddressState:
    """Return the address of an RTM_NEWADDR or RTM_DELADDR payload. Raises NetlinkFormatError."""
    _, length, flags, _, link_index = _IFADDRMSG.unpack_from(payload)
    found = parse(payload, _IFADDRMSG.size)
    # On a point-to-point link IFA_ADDRESS is the peer's; IFA_LOCAL is ours where it is given.
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS, b"")
    return AddressState(
        link_index, packed, length, integer(found[_IFA_FLAGS]) if _IFA_FLAGS in found else flags
    )


def _address_payload(address: LinkAddress, link_index: int, scope: int, flags: int) -> bytes:
    packed = address.address
    size = len(packed)
    return _ADDRESS[size].pack(
        family_of(packed),
        address.length,
        0,
        scope,
        link_index,
        4 + size,
        _IFA_LOCAL,
        packed,
        4 + size,
        _IFA_ADDRESS,
        packed,
        8,
        _IFA_FLAGS,
        flags,
    )
