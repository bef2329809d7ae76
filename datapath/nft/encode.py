"""Encodes rule values and set elements to nfnetlink messages (linux/netfilter/nf_tables.h). Pure.

Attributes stand as the kernel dumps them, so what it holds can be compared with what would be sent (`plan`).
Comments are user data in nft's own form, so `nft list` shows them.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from datapath.netlink.attributes import attribute, be32, nest, parse, string, text
from datapath.netlink.nfnetlink import HEADER_BYTES, header, nft_kind
from datapath.netlink.transport import NLM_F_APPEND, NLM_F_CREATE, Message
from datapath.nft.expressions import expressions
from datapath.nft.rules import VERDICT, Family

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from datapath.nft.rules import Chain, DataType, Rule, Set, SetKey, Table

NEWTABLE, GETTABLE, DELTABLE = 0, 1, 2
NEWCHAIN, GETCHAIN, DELCHAIN = 3, 4, 5
NEWRULE, GETRULE, DELRULE = 6, 7, 8
NEWSET, GETSET, DELSET = 9, 10, 11
NEWSETELEM, GETSETELEM, DELSETELEM = 12, 13, 14

TABLE_NAME, TABLE_FLAGS, TABLE_USERDATA = 1, 2, 6
CHAIN_TABLE, CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE = 1, 3, 4, 5, 7
HOOK_NUMBER, HOOK_PRIORITY = 1, 2
RULE_TABLE, RULE_CHAIN, RULE_HANDLE, RULE_EXPRESSIONS, RULE_USERDATA = 1, 2, 3, 4, 7
SET_TABLE, SET_NAME, SET_FLAGS, SET_KEY_TYPE, SET_KEY_LENGTH = 1, 2, 3, 4, 5
SET_DATA_TYPE, SET_DATA_LENGTH, SET_DESCRIPTION, SET_ID, SET_EXPRESSION, SET_COUNT = 6, 7, 9, 10, 17, 20
SET_DESCRIPTION_SIZE, SET_DESCRIPTION_CONCAT, SET_FIELD_LENGTH = 1, 2, 1
ELEMENTS_TABLE, ELEMENTS_SET, ELEMENTS_LIST = 1, 2, 3
ELEMENT_KEY, ELEMENT_DATA, ELEMENT_FLAGS, ELEMENT_KEY_END = 1, 2, 3, 10
ELEMENT_EXPRESSION = 7
EXPRESSION_NAME, EXPRESSION_DATA = 1, 2
COUNTER_BYTES, COUNTER_PACKETS = 1, 2
LIST_ITEM = 1
DATA_VALUE, DATA_VERDICT = 1, 2
VERDICT_CODE, VERDICT_CHAIN = 1, 2

SET_INTERVAL, SET_MAP, SET_TIMEOUT, SET_EVAL, SET_CONCAT = 0x4, 0x8, 0x10, 0x20, 0x80
ELEMENT_INTERVAL_END = 1

DYNAMIC_ELEMENTS = 65_535
"""Elements that rules may add to a dynamic set; the kernel's own choice once a rule does."""

_POLICY_ACCEPT = 1
_KEY_TYPE_BITS = 6
_VERDICT_TYPE = 0xFFFFFF00
_COMMENT = 0
_LIST_BYTES = 60_000
"""Elements of one message: an attribute ends at 65,535 bytes."""

_HEAD_BYTES = 4
"""Of an attribute's header."""

_ADD, _DELETE = nft_kind(NEWSETELEM), nft_kind(DELSETELEM)
_set_ids = count(1)


class EncodedSet(NamedTuple):
    """A set's declaration: its attributes but for table and transaction id."""

    declaration: bytes


class EncodedChain(NamedTuple):
    """A chain's own attributes (none without hook), and its rules' attributes but for table and chain."""

    declaration: bytes
    rules: tuple[bytes, ...]


class EncodedTable(NamedTuple):
    """A table as the kernel should dump it."""

    user_data: bytes
    sets: dict[str, EncodedSet]
    chains: dict[str, EncodedChain]


@lru_cache(maxsize=16)
def encode_table(table: Table) -> EncodedTable:
    """Return the attributes of a table and of all that it declares."""
    return EncodedTable(
        comment(f"layout {table.layout}"),
        {each.name: _set(each) for each in table.sets},
        {each.name: encode_chain(each, table.family) for each in table.chains},
    )


@lru_cache(maxsize=16_384)
def encode_chain(chain: Chain, family: Family) -> EncodedChain:
    """Encode a chain, once: tables that differ in a few chains share the others."""
    return EncodedChain(_hook(chain), tuple(_rule(rule, family) for rule in chain.rules))


def comment(words: str) -> bytes:
    """Return user data that `nft list` shows as a comment (libnftnl, NFTNL_UDATA_*_COMMENT)."""
    encoded = words.encode() + b"\0"
    return bytes((_COMMENT, len(encoded))) + encoded


def new_table(table: Table) -> Message:
    """Declare a table; it may exist."""
    attributes = string(TABLE_NAME, table.name) + attribute(TABLE_USERDATA, encode_table(table).user_data)
    return _message(NEWTABLE, table.key[0], NLM_F_CREATE, attributes)


def delete_table(family: int, name: str) -> Message:
    """Delete a table with all that it holds."""
    return _message(DELTABLE, family, 0, string(TABLE_NAME, name))


def new_chain(table: Table, name: str) -> Message:
    """Declare a chain; it may exist with the same hook."""
    attributes = string(CHAIN_TABLE, table.name) + string(CHAIN_NAME, name)
    declaration = encode_table(table).chains[name].declaration
    return _message(NEWCHAIN, table.key[0], NLM_F_CREATE, attributes + declaration)


def delete_chain(family: int, table: str, name: str) -> Message:
    """Delete a chain, which no rule may refer to any more."""
    return _message(DELCHAIN, family, 0, string(CHAIN_TABLE, table) + string(CHAIN_NAME, name))


def new_rules(table: Table, chain: str) -> list[Message]:
    """Append all rules of a chain."""
    head = string(RULE_TABLE, table.name) + string(RULE_CHAIN, chain)
    flags = NLM_F_CREATE | NLM_F_APPEND
    rules = encode_table(table).chains[chain].rules
    return [_message(NEWRULE, table.key[0], flags, head + each) for each in rules]


def flush_chain(family: int, table: str, chain: str) -> Message:
    """Delete all rules of a chain."""
    return _message(DELRULE, family, 0, string(RULE_TABLE, table) + string(RULE_CHAIN, chain))


def new_set(table: Table, name: str) -> Message:
    """Declare a set or map; it may exist with the same declaration."""
    attributes = (
        string(SET_TABLE, table.name) + string(SET_NAME, name) + be32(SET_ID, next(_set_ids) & 0xFFFF)
    )
    declaration = encode_table(table).sets[name].declaration
    return _message(NEWSET, table.key[0], NLM_F_CREATE, attributes + declaration)


def delete_set(family: int, table: str, name: str) -> Message:
    """Delete a set, which no rule may refer to any more."""
    return _message(DELSET, family, 0, string(SET_TABLE, table) + string(SET_NAME, name))


def flush_set(key: SetKey) -> Message:
    """Delete all elements of a set."""
    family, table, name = key
    return _message(DELSETELEM, family, 0, string(ELEMENTS_TABLE, table) + string(ELEMENTS_SET, name))


def add_elements(table: Table, declared: Set, elements: Mapping[bytes, bytes]) -> list[Message]:
    """Add elements (encoded key to encoded data); one that exists with the same data is left as it is."""
    items = _elements(declared, sorted(elements.items()))
    return _element_messages(_ADD, NLM_F_CREATE, (*table.key, declared.name), items)


def delete_elements(table: Table, declared: Set, keys: Iterable[bytes]) -> list[Message]:
    """Delete elements by encoded key. All must exist: one that does not fails the whole transaction."""
    bare = [(key, b"") for key in sorted(keys)]
    items = _elements(declared, bare, keys_only=True)
    return _element_messages(_DELETE, 0, (*table.key, declared.name), items)


def get_element(key: SetKey, element: bytes) -> Message:
    """Ask for one element of a set without ranges by its encoded key; ENOENT where there is none."""
    family, table, name = key
    listed = nest(ELEMENTS_LIST, nest(LIST_ITEM, _value(ELEMENT_KEY, element)))
    return Message(nft_kind(GETSETELEM), 0, _elements_head(family, table, name) + listed)


def set_flags(declared: Set) -> int:
    """Return NFT_SET_* of a declaration."""
    flags = SET_INTERVAL if declared.interval else 0
    if declared.data:
        flags |= SET_MAP
    if declared.dynamic:
        flags |= SET_TIMEOUT | SET_EVAL
    if declared.interval and len(declared.key) > 1:
        flags |= SET_CONCAT
    return flags


def padded(size: int) -> int:
    """Return a field's width in registers and concatenations."""
    return (size + 3) & ~3


def width(types: tuple[DataType, ...]) -> int:
    """Return the bytes of a key of these types: a concatenation pads its fields, one alone is not padded."""
    return types[0].size if len(types) == 1 else sum(padded(each.size) for each in types)


def describe(message: Message) -> str:
    """Name the object that a message of this module is about, for errors."""
    family = {each.value: each.text for each in Family}.get(message.payload[0], str(message.payload[0]))
    found = parse(message.payload, HEADER_BYTES)
    action, noun, name = _DESCRIPTIONS.get(message.kind & 0xFF, ("change", "object", 2))
    names = [text(found[each]) for each in sorted({1, name}) if each in found]
    return " ".join((action, noun, family, *names))


_DESCRIPTIONS = {
    NEWTABLE: ("add", "table", 1),
    DELTABLE: ("delete", "table", 1),
    NEWCHAIN: ("add", "chain", CHAIN_NAME),
    DELCHAIN: ("delete", "chain", CHAIN_NAME),
    NEWRULE: ("add", "rule of chain", RULE_CHAIN),
    DELRULE: ("delete", "rules of chain", RULE_CHAIN),
    NEWSET: ("add", "set", SET_NAME),
    DELSET: ("delete", "set", SET_NAME),
    NEWSETELEM: ("add", "elements of set", ELEMENTS_SET),
    DELSETELEM: ("delete", "elements of set", ELEMENTS_SET),
}


def _message(kind: int, family: int, flags: int, attributes: bytes) -> Message:
    return Message(nft_kind(kind), flags, header(family) + attributes)


def _hook(chain: Chain) -> bytes:
    if chain.hook is None:
        return b""
    place = be32(HOOK_NUMBER, chain.hook.point) + be32(HOOK_PRIORITY, chain.hook.priority & 0xFFFFFFFF)
    policy = be32(CHAIN_POLICY, _POLICY_ACCEPT)
    return nest(CHAIN_HOOK, place) + policy + string(CHAIN_TYPE, chain.hook.type)


def _rule(rule: Rule, family: Family) -> bytes:
    encoded = nest(RULE_EXPRESSIONS, *(nest(LIST_ITEM, each) for each in expressions(rule, family)))
    return encoded + attribute(RULE_USERDATA, comment(rule.comment)) if rule.comment else encoded


@lru_cache(maxsize=16_384)
def _set(declared: Set) -> EncodedSet:
    """Encode a set's declaration once, as a chain."""
    flags = set_flags(declared)
    # The kernel dumps no flags when there are none.
    parts = [
        be32(SET_FLAGS, flags) if flags else b"",
        be32(SET_KEY_TYPE, _type_number(declared.key)),
        be32(SET_KEY_LENGTH, width(declared.key)),
    ]
    if declared.data:
        verdicts = declared.data == (VERDICT,)
        parts += [
            be32(SET_DATA_TYPE, _VERDICT_TYPE if verdicts else _type_number(declared.data)),
            be32(SET_DATA_LENGTH, 16 if verdicts else width(declared.data)),
        ]
    if declared.dynamic:
        parts.append(nest(SET_DESCRIPTION, be32(SET_DESCRIPTION_SIZE, DYNAMIC_ELEMENTS)))
    if declared.interval and len(declared.key) > 1:
        fields = (nest(LIST_ITEM, be32(SET_FIELD_LENGTH, each.size)) for each in declared.key)
        parts.append(nest(SET_DESCRIPTION, nest(SET_DESCRIPTION_CONCAT, *fields)))
    if declared.counted:
        # Each element gets a counter of its own, though nobody says so when it is added.
        parts.append(nest(SET_EXPRESSION, string(EXPRESSION_NAME, "counter")))
    return EncodedSet(b"".join(parts))


def _type_number(types: tuple[DataType, ...]) -> int:
    number = 0
    for each in types:
        number = number << _KEY_TYPE_BITS | each.number
    return number


def _elements(
    declared: Set, elements: Iterable[tuple[bytes, bytes]], *, keys_only: bool = False
) -> list[bytes]:
    """Encode elements as list items."""
    verdicts = declared.data == (VERDICT,)
    if not declared.interval and (keys_only or not verdicts):
        # They differ in key and data alone, which come padded, as attributes are.
        head, between = _plain_frame(declared, keys_only)
        if between:
            return [head + encoded + between + value for encoded, value in elements]
        return [head + encoded for encoded, _ in elements]
    length = width(declared.key)
    stored = len(declared.key) == 1 and declared.interval
    concatenated = len(declared.key) > 1 and declared.interval
    items: list[bytes] = []
    for encoded, data in elements:
        key, last = encoded[:length], encoded[padded(length) :]
        item = _value(ELEMENT_KEY, key)
        if concatenated:
            item += _value(ELEMENT_KEY_END, last)
        if declared.data and not keys_only:
            item += _verdict(data) if verdicts else _value(ELEMENT_DATA, data[: width(declared.data)])
        if not stored:
            items.append(nest(LIST_ITEM, item))
            continue
        # One item of two: a message never separates start and end. All ones has no successor: an open end.
        end = int.from_bytes(last, "big") + 1
        item = nest(LIST_ITEM, item)
        if end >> (length * 8) == 0:
            closing = _value(ELEMENT_KEY, end.to_bytes(length, "big"))
            item += nest(LIST_ITEM, closing, be32(ELEMENT_FLAGS, ELEMENT_INTERVAL_END))
        items.append(item)
    return items


@lru_cache(maxsize=4096)
def _plain_frame(declared: Set, keys_only: bool) -> tuple[bytes, bytes]:
    """Return what stands before the key of an element, and between it and its data."""
    key, data = bytes(width(declared.key)), bytes(width(declared.data)) if declared.data else b""
    behind = _value(ELEMENT_DATA, data) if data and not keys_only else b""
    head = nest(LIST_ITEM, _value(ELEMENT_KEY, key), behind)[: 3 * _HEAD_BYTES]
    return head, behind[: 2 * _HEAD_BYTES]


def _value(kind: int, value: bytes) -> bytes:
    return nest(kind, attribute(DATA_VALUE, value))


def _verdict(data: bytes) -> bytes:
    code = attribute(VERDICT_CODE, data[:4])
    chain = attribute(VERDICT_CHAIN, data[4:] + b"\0") if data[4:] else b""
    return nest(ELEMENT_DATA, nest(DATA_VERDICT, code, chain))


@lru_cache(maxsize=64)
def _elements_head(family: int, table: str, name: str) -> bytes:
    return header(family) + string(ELEMENTS_TABLE, table) + string(ELEMENTS_SET, name)


@lru_cache(maxsize=256)
def _head_of_one(family: int, table: str, name: str, length: int) -> bytes:
    """Return what stands before a list's only item of so many bytes, a multiple of 4."""
    return _elements_head(family, table, name) + nest(ELEMENTS_LIST, bytes(length))[:_HEAD_BYTES]


def _element_messages(kind: int, flags: int, key: SetKey, items: Sequence[bytes]) -> list[Message]:
    if len(items) == 1:
        return [Message(kind, flags, _head_of_one(*key, len(items[0])) + items[0])]
    head = _elements_head(*key)
    listed = b"".join(items)
    if len(listed) <= _LIST_BYTES:
        return [Message(kind, flags, head + nest(ELEMENTS_LIST, listed))] if listed else []
    messages: list[Message] = []
    pending: list[bytes] = []
    size = 0
    for item in items:
        if size + len(item) > _LIST_BYTES:
            messages.append(Message(kind, flags, head + nest(ELEMENTS_LIST, *pending)))
            pending, size = [], 0
        pending.append(item)
        size += len(item)
    messages.append(Message(kind, flags, head + nest(ELEMENTS_LIST, *pending)))
    return messages
