"""Packets that rules log, as nfnetlink_log messages (linux/netfilter/nfnetlink_log.h). Owns their layout.

A group belongs to whoever bound it first, until that socket is closed; what is logged while nobody is bound
is lost, which costs nothing.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from datapath.errors import NetlinkFormatError
from datapath.netlink.attributes import attribute, be32, parse, text, u8
from datapath.netlink.nfnetlink import HEADER_BYTES, header
from datapath.netlink.transport import Message

NFNL_SUBSYS_ULOG = 4
ULOG_PACKET = NFNL_SUBSYS_ULOG << 8
ULOG_CONFIG = NFNL_SUBSYS_ULOG << 8 | 1

_CFG_COMMAND, _CFG_MODE, _CFG_THRESHOLD = 1, 2, 5
_BIND = 1
_COPY_PACKET = 2
_PAYLOAD, _PREFIX = 9, 10
_MODE = struct.Struct("!IBx")


class LoggedPacket(NamedTuple):
    """One packet: the prefix of the rule that logged it, and its first bytes, from the IP header on."""

    prefix: str
    packet: bytes


def bind(group: int, size: int) -> Message:
    """Have packets of a group sent to this socket at once, `size` bytes of each; EBUSY when it is taken."""
    content = u8(_CFG_COMMAND, _BIND) + attribute(_CFG_MODE, _MODE.pack(size, _COPY_PACKET))
    return Message(ULOG_CONFIG, 0, header(0, group) + content + be32(_CFG_THRESHOLD, 1))


def decode_packet(payload: bytes) -> LoggedPacket:
    """Decode an ULOG_PACKET message. Raises NetlinkFormatError when it has no packet."""
    found = parse(payload, HEADER_BYTES)
    if _PAYLOAD not in found:
        raise NetlinkFormatError("a logged packet has no content")
    return LoggedPacket(text(found.get(_PREFIX, b"")), found[_PAYLOAD])
