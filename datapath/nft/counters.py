"""Reads what nftables counted, by rule and by element of a set. Owns the decoding of these dumps.

A counter lives as long as its rule or element. Whoever wants to add up over changes tells them apart by the
handle that the kernel gives each rule, and a counter that went back by its value.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

from datapath.errors import NetlinkError
from datapath.netlink.attributes import big_endian, items, parse, string, text
from datapath.netlink.nfnetlink import HEADER_BYTES, header, nft_kind
from datapath.netlink.transport import Message
from datapath.nft import encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datapath.netlink.transport import Socket
    from datapath.nft.rules import SetKey

_COUNTER = b"counter\0"


class Count(NamedTuple):
    """What a counter says."""

    packets: int
    octets: int


class RuleCount(NamedTuple):
    """The first counter of a rule; `handle` is the rule's for as long as its table lives."""

    chain: str
    handle: int
    counted: Count


def rule_counts(socket: Socket, family: int, table: str) -> list[RuleCount]:
    """Return the counters of a table's rules, none where there is no such table.

    Raises:
        NetlinkDumpInterruptedError: nftables changed again and again.
        NetlinkError: the kernel refused.
    """
    found = []
    for payload in _dump(socket, encode.GETRULE, family, string(encode.RULE_TABLE, table)):
        rule = parse(payload, HEADER_BYTES)
        count = _first_counter(rule.get(encode.RULE_EXPRESSIONS, b""))
        if count is not None:
            chain, handle = text(rule[encode.RULE_CHAIN]), big_endian(rule[encode.RULE_HANDLE])
            found.append(RuleCount(chain, handle, count))
    return found


def element_counts(socket: Socket, key: SetKey) -> dict[bytes, Count]:
    """Return the counters of a counted set's elements by encoded key. Raises as `rule_counts`."""
    family, table, name = key
    target = string(encode.ELEMENTS_TABLE, table) + string(encode.ELEMENTS_SET, name)
    found: dict[bytes, Count] = {}
    for payload in _dump(socket, encode.GETSETELEM, family, target):
        for _, item in items(parse(payload, HEADER_BYTES).get(encode.ELEMENTS_LIST, b"")):
            element = parse(item)
            count = _counter(element.get(encode.ELEMENT_EXPRESSION, b""))
            if count is not None:
                value = parse(element[encode.ELEMENT_KEY])[encode.DATA_VALUE]
                found[value + bytes(-len(value) % 4)] = count
    return found


def _dump(socket: Socket, kind: int, family: int, attributes: bytes) -> Iterator[bytes]:
    try:
        yield from socket.dump(
            Message(nft_kind(kind), 0, header(family) + attributes), "counters can't be read"
        )
    except NetlinkError as error:
        if error.code != errno.ENOENT:
            raise


def _first_counter(expressions: bytes) -> Count | None:
    for _, expression in items(expressions):
        count = _counter(expression)
        if count is not None:
            return count
    return None


def _counter(expression: bytes) -> Count | None:
    attributes = parse(expression)
    if attributes.get(encode.EXPRESSION_NAME) != _COUNTER:
        return None
    data = parse(attributes.get(encode.EXPRESSION_DATA, b""))
    packets, size = data.get(encode.COUNTER_PACKETS, b""), data.get(encode.COUNTER_BYTES, b"")
    return Count(big_endian(packets), big_endian(size))
