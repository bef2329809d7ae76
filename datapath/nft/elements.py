"""Set and map elements as bytes: keys, ranges, verdicts. Pure.

An encoded key is the concatenation of its fields, each padded with zeros to a multiple of 4 bytes, as the
kernel's registers hold them. The key of an interval is the first key followed by the last (both belong to
it), so twice as long. Encoded data is b"" in a set, the padded fields in a map, `verdict(...)` in a verdict
map.

Ranges that overlap are refused by the kernel, so whatever goes into an interval set passes through
`disjoint`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from datapath.nft.rules import Code, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

_CODE = struct.Struct("!i")
_IFNAME_BYTES = 16


class Range(NamedTuple):
    """Keys from `first` to `last`, both included, in network order and of one length."""

    first: bytes
    last: bytes


def key(*fields: bytes) -> bytes:
    """Return an encoded key or encoded data of these fields, each of its type's full width and byte order."""
    return b"".join(field + bytes(-len(field) % 4) for field in fields)


def interface(name: str) -> bytes:
    """Return an interface name as a field. Raises ValueError when it has more than 15 bytes."""
    encoded = name.encode()
    if len(encoded) >= _IFNAME_BYTES:
        raise ValueError(f"interface name {name!r} has more than {_IFNAME_BYTES - 1} bytes")
    return encoded.ljust(_IFNAME_BYTES, b"\0")


def verdict(value: Verdict) -> bytes:
    """Return a verdict as encoded data: the code in network order, then the chain's name."""
    return _CODE.pack(value.code) + value.chain.encode()


def parse_verdict(data: bytes) -> Verdict:
    """Return what `verdict` encoded. Raises ValueError when the code is none that rules know."""
    return Verdict(Code(_CODE.unpack_from(data)[0]), data[_CODE.size :].decode())


def prefix(address: bytes, length: int) -> Range:
    """Return the addresses of a prefix; host bits of `address` don't matter."""
    bits = len(address) * 8
    host = (1 << (bits - length)) - 1
    first = int.from_bytes(address, "big") & ~host
    return Range(first.to_bytes(len(address), "big"), (first | host).to_bytes(len(address), "big"))


def disjoint(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Return ranges that cover the same keys, sorted, none overlapping another.

    Neighbours that merely touch stay apart, so that one prefix more or less changes one element.
    """
    result: list[Range] = []
    for each in sorted(ranges):
        if result and each.first <= result[-1].last:
            if each.last > result[-1].last:
                result[-1] = Range(result[-1].first, each.last)
        else:
            result.append(each)
    return tuple(result)


def intervals(ranges: Iterable[Range]) -> dict[bytes, bytes]:
    """Return the elements of an interval set with one key type that hold exactly these keys.

    Only for keys whose width is a multiple of 4 bytes (addresses, marks).
    """
    return {each.first + each.last: b"" for each in disjoint(ranges)}
