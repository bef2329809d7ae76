"""Reads our tables back from the kernel, structure and elements. Owns the decoding of dumps.

What is read stays in the kernel's attributes: `plan` compares it with what `encode` would send. Only elements
are decoded, to the form of `datapath.nft.elements`. Nothing is ever read through `nft list`.
"""

from __future__ import annotations

import errno
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from datapath.errors import NetlinkDumpInterruptedError, NetlinkError
from datapath.netlink.attributes import big_endian, items, parse, string, text
from datapath.netlink.nfnetlink import HEADER_BYTES, header, nft_kind, read_generation
from datapath.netlink.transport import Message
from datapath.nft import encode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from datapath.netlink.transport import Socket
    from datapath.nft.rules import SetKey

ABSENT = errno.ENOENT
"""Code of the error for what does not exist."""

_ATTEMPTS = 8
_HEAD = 4
_LENGTH = struct.Struct("=H")
_RESIZED_ELEMENTS = 512
"""Hash sets below this are resized too quickly to be caught at it."""
_RESIZE_SECONDS = 0.005


class ObservedRule(NamedTuple):
    """A rule's expressions and user data as the kernel dumps them."""

    expressions: bytes
    user_data: bytes


@dataclass(frozen=True, slots=True)
class ObservedChain:
    """A chain's attributes and its rules in order."""

    declaration: bytes
    rules: tuple[ObservedRule, ...]


@dataclass(frozen=True, slots=True)
class ObservedSet:
    """A set's attributes and its elements, None when they make no sense (an end without a start)."""

    declaration: bytes
    elements: Mapping[bytes, bytes] | None


@dataclass(frozen=True, slots=True)
class ObservedTable:
    """A table's flags and user data, and all that it holds. A dormant table (flag 1) has no effect."""

    flags: int
    user_data: bytes
    sets: Mapping[str, ObservedSet]
    chains: Mapping[str, ObservedChain]


@dataclass(frozen=True, slots=True)
class ObservedRuleset:
    """Our tables by family and name, as they were at one generation of nftables."""

    generation: int
    tables: Mapping[tuple[int, str], ObservedTable]


def read(socket: Socket, names: frozenset[str]) -> ObservedRuleset:
    """Return all tables of these names, in whatever family, with all their elements.

    Raises:
        NetlinkDumpInterruptedError: others kept changing nftables during each of several readings.
        NetlinkError: the kernel refused a dump.
    """
    for _ in range(_ATTEMPTS):
        before = read_generation(socket)
        try:
            tables = {key: _table(socket, key, found) for key, found in _tables(socket, names)}
        except NetlinkDumpInterruptedError:
            continue
        except NetlinkError as error:
            if error.code == errno.ENOENT:  # a table or set that was listed is gone
                continue
            raise
        if read_generation(socket) == before:
            return ObservedRuleset(before, tables)
    raise NetlinkDumpInterruptedError(f"nftables changed during each of {_ATTEMPTS} readings; retry later")


def read_elements(socket: Socket, key: SetKey) -> Mapping[bytes, bytes] | None:
    """Return the elements of one set; None when they make no sense. Raises NetlinkError (ENOENT)."""
    family, table, name = key
    for found in _dump(socket, encode.GETSET, family, string(encode.SET_TABLE, table)):
        attributes = parse(found, HEADER_BYTES)
        if text(attributes[encode.SET_NAME]) == name:
            return _elements(socket, key, attributes)
    raise NetlinkError(errno.ENOENT, f"set {name} of table {table} can't be read")


def read_chains(socket: Socket, family: int, table: str) -> dict[str, ObservedChain]:
    """Return a table's chains with their rules; none where there is no such table. Raises as `read`."""
    try:
        return _chains(socket, family, table)
    except NetlinkError as error:
        if error.code != errno.ENOENT:
            raise
        return {}


def has_element(socket: Socket, key: SetKey, element: bytes) -> bool:
    """Return whether a set without ranges holds an encoded key, a set that is there. Raises NetlinkError."""
    try:
        socket.request(encode.get_element(key, element), "nftables could not be read")
    except NetlinkError as error:
        if error.code != errno.ENOENT:
            raise
        return False
    return True


def _dump(socket: Socket, kind: int, family: int, attributes: bytes = b"") -> list[bytes]:
    message = Message(nft_kind(kind), 0, header(family) + attributes)
    return socket.dump(message, "nftables could not be read")


def _tables(socket: Socket, names: frozenset[str]) -> Iterator[tuple[tuple[int, str], Mapping[int, bytes]]]:
    for payload in _dump(socket, encode.GETTABLE, 0):
        attributes = parse(payload, HEADER_BYTES)
        name = text(attributes[encode.TABLE_NAME])
        if name in names:
            yield (payload[0], name), attributes


def _table(socket: Socket, key: tuple[int, str], declaration: Mapping[int, bytes]) -> ObservedTable:
    family, name = key
    chains = _chains(socket, family, name)
    sets: dict[str, ObservedSet] = {}
    for payload in _dump(socket, encode.GETSET, family, string(encode.SET_TABLE, name)):
        found = parse(payload, HEADER_BYTES)
        each = text(found[encode.SET_NAME])
        sets[each] = ObservedSet(payload[HEADER_BYTES:], _elements(socket, (family, name, each), found))
    flags = big_endian(declaration.get(encode.TABLE_FLAGS, b""))
    return ObservedTable(flags, declaration.get(encode.TABLE_USERDATA, b""), sets, chains)


def _chains(socket: Socket, family: int, table: str) -> dict[str, ObservedChain]:
    rules: dict[str, list[ObservedRule]] = {}
    for payload in _dump(socket, encode.GETRULE, family, string(encode.RULE_TABLE, table)):
        found = parse(payload, HEADER_BYTES)
        rule = ObservedRule(found.get(encode.RULE_EXPRESSIONS, b""), found.get(encode.RULE_USERDATA, b""))
        rules.setdefault(text(found[encode.RULE_CHAIN]), []).append(rule)
    chains: dict[str, ObservedChain] = {}
    for payload in _dump(socket, encode.GETCHAIN, family):
        found = parse(payload, HEADER_BYTES)
        if text(found[encode.CHAIN_TABLE]) == table:
            chain = text(found[encode.CHAIN_NAME])
            chains[chain] = ObservedChain(payload[HEADER_BYTES:], tuple(rules.get(chain, ())))
    return chains


def _elements(socket: Socket, key: SetKey, declaration: Mapping[int, bytes]) -> Mapping[bytes, bytes] | None:
    """Return a set's elements, read again while the kernel's listing can't be complete.

    A hash set that is just being resized lists some elements twice and others not at all.
    """
    flags = big_endian(declaration.get(encode.SET_FLAGS, b""))
    if flags & encode.SET_TIMEOUT:  # rules fill it: nothing to compare
        return {}
    if flags & encode.SET_INTERVAL:
        found = _list(socket, key)
        if flags & encode.SET_CONCAT:
            return {each: data for each, data, _ in found}
        return _ranges(found)
    counted = declaration.get(encode.SET_COUNT)
    expected = None if counted is None else big_endian(counted)
    elements = {each: data for each, data, _ in _list(socket, key)}
    for _ in range(_ATTEMPTS):
        if len(elements) == expected or (expected is None and len(elements) < _RESIZED_ELEMENTS):
            break
        time.sleep(_RESIZE_SECONDS)
        before, elements = elements, {each: data for each, data, _ in _list(socket, key)}
        # Kernels before 6.16 don't count for us: two equal readings are taken as complete.
        if expected is None and elements == before:
            break
    return elements


def _list(socket: Socket, key: SetKey) -> list[tuple[bytes, bytes, int]]:
    """Return key (with the last key of a concatenated range), data and flags of each element listed."""
    family, table, name = key
    target = string(encode.ELEMENTS_TABLE, table) + string(encode.ELEMENTS_SET, name)
    found: list[tuple[bytes, bytes, int]] = []
    for payload in _dump(socket, encode.GETSETELEM, family, target):
        listed = parse(payload, HEADER_BYTES).get(encode.ELEMENTS_LIST)
        if listed is not None:
            found += _items(listed)
    return found


class _Form(NamedTuple):
    """What elements of one length have in common: all but the key, and the data of a map.

    These stand between `head` and `between` (at `behind_key`) and between that and `tail`.
    """

    head: bytes
    behind_key: int
    between: bytes
    tail: bytes
    flags: int


def _items(listed: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    # Elements of a set differ in key and data alone, so one is parsed and the others are compared.
    forms: dict[int, _Form] = {}
    offset, end = 0, len(listed)
    while offset + _HEAD <= end:
        (length,) = _LENGTH.unpack_from(listed, offset)
        item = listed[offset + _HEAD : offset + length]
        offset += (length + 3) & ~3
        form = forms.get(length)
        if form is not None:
            head, behind, between, tail, flags = form
            if item.startswith(head) and item.startswith(between, behind) and item.endswith(tail):
                yield item[len(head) : behind], item[behind + len(between) : len(item) - len(tail)], flags
                continue
        attributes = parse(item)
        value = parse(attributes[encode.ELEMENT_KEY])[encode.DATA_VALUE]
        key = value + bytes(-len(value) % 4)
        if encode.ELEMENT_KEY_END in attributes:
            key += parse(attributes[encode.ELEMENT_KEY_END])[encode.DATA_VALUE]
        flags = big_endian(attributes.get(encode.ELEMENT_FLAGS, b""))
        data = _data(attributes.get(encode.ELEMENT_DATA))
        if len(value) % 4 == 0 and (found := _form(item, attributes, len(value), flags)) is not None:
            forms[length] = found
        yield key, data, flags


def _form(item: bytes, attributes: Mapping[int, bytes], key: int, flags: int) -> _Form | None:
    """Return the form of elements like this one; None for those that have verdicts or more attributes."""
    # The key comes first, behind its own header and that of the value in it; the data are built alike.
    behind = 2 * _HEAD + key
    head = item[: 2 * _HEAD]
    if attributes.keys() <= {encode.ELEMENT_KEY, encode.ELEMENT_FLAGS}:
        return _Form(head, behind, b"", item[behind:], flags)
    data = attributes.get(encode.ELEMENT_DATA, b"")
    if list(attributes) != [encode.ELEMENT_KEY, encode.ELEMENT_DATA] or len(data) % 4:
        return None
    if [kind for kind, _ in items(data)] != [encode.DATA_VALUE]:
        return None
    return _Form(head, behind, item[behind : behind + 2 * _HEAD], b"", flags)


def _data(encoded: bytes | None) -> bytes:
    if encoded is None:
        return b""
    for kind, value in items(encoded):
        if kind == encode.DATA_VERDICT:
            verdict = parse(value)
            return verdict[encode.VERDICT_CODE] + verdict.get(encode.VERDICT_CHAIN, b"").rstrip(b"\0")
        return value + bytes(-len(value) % 4)
    return b""


def _ranges(found: list[tuple[bytes, bytes, int]]) -> Mapping[bytes, bytes] | None:
    """Join starts and ends, which the kernel lists apart; an end is the key behind the last."""
    result: dict[bytes, bytes] = {}
    start: tuple[bytes, bytes] | None = None
    # At one key the end of a range comes before the start of the next.
    for key, data, flags in sorted(
        found, key=lambda each: (each[0], not each[2] & encode.ELEMENT_INTERVAL_END)
    ):
        if not flags & encode.ELEMENT_INTERVAL_END:
            if start is not None:
                return None
            start = (key, data)
        elif start is not None:
            last = (int.from_bytes(key, "big") - 1).to_bytes(len(key), "big")
            result[start[0] + last] = start[1]
            start = None
        elif any(key):  # nft opens a set with an end at key 0, which says nothing
            return None
    if start is not None:
        result[start[0] + b"\xff" * len(start[0])] = start[1]
    return result
