"""Packs and parses netlink attributes: a 16-bit length, a 16-bit type, the payload, padding to 4 bytes.

Owns the layout (linux/netlink.h, struct nlattr) and nothing else: it knows no message and no socket.
Integers without a prefix are in the machine's order, `be16`, `be32` and `be64` in network order.
"""

from __future__ import annotations

import socket
import sys
from socket import htonl, htons
from struct import Struct
from typing import TYPE_CHECKING

from datapath.errors import NetlinkFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF
LARGEST = 0xFFFF
"""Bytes of the largest attribute, header included: its length field has 16 bits."""

_HEADER = Struct("=HH")
_U8 = Struct("=HHB3x")
_U16 = Struct("=HHH2x")
_U32 = Struct("=HHI")
_U64 = Struct("=HHQ")
_BE64 = Struct(">Q")
# Packing a member of an enumeration takes twice the time.
_AF_INET, _AF_INET6 = int(socket.AF_INET), int(socket.AF_INET6)
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


def attribute(kind: int, payload: bytes) -> bytes:
    """Return one attribute, padded. Raises NetlinkFormatError when the payload is over 65,531 bytes."""
    length = 4 + len(payload)
    if length > LARGEST:
        message = (
            f"attribute {kind} would have {length} bytes, and no attribute may have over {LARGEST}: split it"
        )
        raise NetlinkFormatError(message)
    return _HEADER.pack(length, kind) + payload + _PADDING[length & 3]


def nest(kind: int, *parts: bytes) -> bytes:
    """Return an attribute that holds other attributes, marked as nested."""
    return attribute(kind | NLA_F_NESTED, b"".join(parts))


def string(kind: int, text: str) -> bytes:
    """Return a text attribute, terminated by NUL."""
    return attribute(kind, text.encode() + b"\0")


def flag(kind: int) -> bytes:
    """Return an attribute without payload: its presence is its meaning."""
    return _HEADER.pack(4, kind)


def u8(kind: int, value: int) -> bytes:
    """Return an attribute of one byte."""
    return _U8.pack(5, kind, value)


def u16(kind: int, value: int) -> bytes:
    """Return a 16-bit attribute in the machine's order."""
    return _U16.pack(6, kind, value)


def u32(kind: int, value: int) -> bytes:
    """Return a 32-bit attribute in the machine's order."""
    return _U32.pack(8, kind, value)


def u64(kind: int, value: int) -> bytes:
    """Return a 64-bit attribute in the machine's order."""
    return _U64.pack(12, kind, value)


def be16(kind: int, value: int) -> bytes:
    """Return a 16-bit attribute in network order."""
    return _U16.pack(6, kind, htons(value))


def be32(kind: int, value: int) -> bytes:
    """Return a 32-bit attribute in network order."""
    return _U32.pack(8, kind, htonl(value))


def be64(kind: int, value: int) -> bytes:
    """Return a 64-bit attribute in network order."""
    return _HEADER.pack(12, kind) + _BE64.pack(value)


def items(buffer: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield type (without its flag bits) and payload of each attribute from `offset` to the end, in order.

    Raises NetlinkFormatError when an attribute is shorter than its header or longer than the buffer.
    """
    end = len(buffer)
    while offset + 4 <= end:
        length, kind = _HEADER.unpack_from(buffer, offset)
        if length < 4 or offset + length > end:
            message = f"attribute {kind} at byte {offset} claims {length} bytes of a message of {end}"
            raise NetlinkFormatError(message)
        yield kind & NLA_TYPE_MASK, buffer[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def parse(buffer: bytes, offset: int = 0) -> dict[int, bytes]:
    """Return payloads by type; of a repeated attribute the last (lists are read with `items`)."""
    return dict(items(buffer, offset))


def text(payload: bytes) -> str:
    """Return the text of a string attribute, with or without its NUL."""
    return payload.rstrip(b"\0").decode(errors="replace")


def integer(payload: bytes) -> int:
    """Return an unsigned integer of any width in the machine's order."""
    return int.from_bytes(payload, sys.byteorder)


def big_endian(payload: bytes) -> int:
    """Return an unsigned integer of any width in network order."""
    return int.from_bytes(payload, "big")


def family_of(address: bytes) -> int:
    """Return AF_INET or AF_INET6, as plain integers, by the length of a packed address."""
    return _AF_INET if len(address) == 4 else _AF_INET6
