"""Neighbours and VXLAN forwarding entries as rtnetlink messages, and back (linux/neighbour.h).

Owns their layouts, one fixed struct for each address length: a node writes two of them for each other node.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING

from datapath.netlink.attributes import family_of, parse, u32
from datapath.netlink.transport import NLM_F_CREATE, NLM_F_REPLACE, Message

if TYPE_CHECKING:
    from datapath.desired import Address, FdbEntry, Mac, Neighbour

RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTNLGRP_NEIGH = 3

AF_BRIDGE = 7
NUD_PERMANENT = 0x80
NTF_SELF = 0x02
NTF_EXT_LEARNED = 0x10
NUD_STALE = 0x04

_PUT = NLM_F_CREATE | NLM_F_REPLACE
_NDA_DST, _NDA_LLADDR, _NDA_IFINDEX = 1, 2, 8
_NDMSG = Struct("=BxxxiHBB")

# ndmsg, NDA_DST, NDA_LLADDR (with two bytes of padding), by the length of NDA_DST's address.
_NEIGHBOUR = {4: Struct("=BxxxiHBBHH4sHH6s2x"), 16: Struct("=BxxxiHBBHH16sHH6s2x")}


@dataclass(frozen=True, slots=True)
class NeighbourState:
    """A neighbour as the kernel lists it; `mac` is None until it is resolved, `state` holds NUD_* bits."""

    link_index: int
    address: Address
    mac: Mac | None
    state: int

    @property
    def permanent(self) -> bool:
        """Whether it was set from outside and stays."""
        return bool(self.state & NUD_PERMANENT)


@dataclass(frozen=True, slots=True)
class FdbState:
    """A forwarding entry of a VXLAN link as the kernel lists it; `remote` is None where it names no VTEP."""

    link_index: int
    mac: Mac
    remote: Address | None
    state: int


def new_neighbour(neighbour: Neighbour, link_index: int) -> Message:
    """Return the message that creates or replaces a permanent neighbour."""
    return Message(RTM_NEWNEIGH, _PUT, _neighbour_payload(neighbour.address, neighbour.mac, link_index))


def learned_neighbour(neighbour: Neighbour, link_index: int) -> Message:
    """Return the message that creates or replaces a neighbour that the kernel keeps, but checks and follows.

    It counts in no table's limit, is not collected, is probed when used, and takes what the neighbour
    announces.
    """
    size = len(neighbour.address)
    payload = _NEIGHBOUR[size].pack(
        family_of(neighbour.address),
        link_index,
        NUD_STALE,
        NTF_EXT_LEARNED,
        0,
        4 + size,
        _NDA_DST,
        neighbour.address,
        10,
        _NDA_LLADDR,
        neighbour.mac,
    )
    return Message(RTM_NEWNEIGH, _PUT, payload)


def del_neighbour(neighbour: Neighbour, link_index: int) -> Message:
    """Return the message that deletes a neighbour."""
    return Message(RTM_DELNEIGH, 0, _neighbour_payload(neighbour.address, neighbour.mac, link_index))


def get_neighbours(family: int, link_index: int = 0) -> Message:
    """Return the dump of one family's neighbours, with an index those of one link."""
    return Message(RTM_GETNEIGH, 0, _NDMSG.pack(family, 0, 0, 0, 0) + _link_filter(link_index))


def decode_neighbour(payload: bytes) -> NeighbourState:
    """Return the neighbour of an RTM_NEWNEIGH or RTM_DELNEIGH payload. Raises NetlinkFormatError."""
    _, link_index, state, _, _ = _NDMSG.unpack_from(payload)
    found = parse(payload, _NDMSG.size)
    return NeighbourState(link_index, found.get(_NDA_DST, b""), found.get(_NDA_LLADDR), state)


def new_fdb(entry: FdbEntry, link_index: int) -> Message:
    """Return the message that creates or replaces a permanent forwarding entry of the VXLAN link itself."""
    return Message(RTM_NEWNEIGH, _PUT, _fdb_payload(entry, link_index))


def del_fdb(entry: FdbEntry, link_index: int) -> Message:
    """Return the message that deletes a forwarding entry."""
    return Message(RTM_DELNEIGH, 0, _fdb_payload(entry, link_index))


def get_fdb(link_index: int) -> Message:
    """Return the dump of a link's forwarding entries."""
    return Message(RTM_GETNEIGH, 0, _NDMSG.pack(AF_BRIDGE, 0, 0, 0, 0) + _link_filter(link_index))


def decode_fdb(payload: bytes) -> FdbState:
    """Return the forwarding entry of a payload of AF_BRIDGE. Raises NetlinkFormatError."""
    _, link_index, state, _, _ = _NDMSG.unpack_from(payload)
    found = parse(payload, _NDMSG.size)
    return FdbState(link_index, found.get(_NDA_LLADDR, bytes(6)), found.get(_NDA_DST), state)


def _neighbour_payload(address: Address, mac: Mac, link_index: int) -> bytes:
    size = len(address)
    return _NEIGHBOUR[size].pack(
        family_of(address), link_index, NUD_PERMANENT, 0, 0, 4 + size, _NDA_DST, address, 10, _NDA_LLADDR, mac
    )


def _fdb_payload(entry: FdbEntry, link_index: int) -> bytes:
    size = len(entry.remote)
    return _NEIGHBOUR[size].pack(
        AF_BRIDGE,
        link_index,
        NUD_PERMANENT,
        NTF_SELF,
        0,
        4 + size,
        _NDA_DST,
        entry.remote,
        10,
        _NDA_LLADDR,
        entry.mac,
    )


def _link_filter(link_index: int) -> bytes:
    return u32(_NDA_IFINDEX, link_index) if link_index else b""
