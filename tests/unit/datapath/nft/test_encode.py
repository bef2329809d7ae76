from __future__ import annotations

import struct

import pytest

from datapath.netlink.attributes import big_endian, items, parse, text
from datapath.netlink.nfnetlink import HEADER_BYTES
from datapath.nft import encode
from datapath.nft.elements import key, verdict
from datapath.nft.expressions import expressions, register
from datapath.nft.rules import (
    ACCEPT,
    IIFNAME,
    IP_DADDR,
    IP_SADDR,
    IPV4_ADDR,
    L4PROTO,
    TCP_DPORT,
    TH_DPORT,
    UDP_DPORT,
    VERDICT,
    Chain,
    Equals,
    Family,
    Hook,
    HookPoint,
    InSet,
    Set,
    Starts,
    Table,
    goto,
    rule,
)
from datapath.nft.tables import TableOptions, node_tables

PORT = struct.pack("!H", 4789)
TABLE = Table(
    Family.IPV4,
    "t",
    1,
    (
        Set("hosts", (IPV4_ADDR,)),
        Set("ranges", (IPV4_ADDR,), interval=True),
        Set("map", (IPV4_ADDR,), (VERDICT,)),
    ),
    (Chain("base", (rule(ACCEPT, comment="why"),), Hook("filter", HookPoint.INPUT, -300)), Chain("leaf", ())),
)


def names(*statements: object) -> list[str]:
    encoded = expressions(rule(*statements), Family.IPV4)  # type: ignore[arg-type]
    return [text(parse(each)[1]) for each in encoded]


def listed(payload: bytes) -> list[dict[int, bytes]]:
    elements = parse(payload, HEADER_BYTES)[encode.ELEMENTS_LIST]
    return [parse(item) for _, item in items(elements)]


def test_registers_are_written_as_the_kernel_dumps_them() -> None:
    assert [register(word) for word in (0, 1, 2, 3, 4, 5, 8, 12, 15)] == [1, 9, 10, 11, 2, 13, 3, 4, 23]


def test_a_port_asks_for_its_protocol_once() -> None:
    expected = ["meta", "cmp", "payload", "cmp", "payload", "cmp"]
    assert names(Equals(UDP_DPORT, PORT), Equals(UDP_DPORT, PORT)) == expected
    assert names(Equals(UDP_DPORT, PORT), Equals(TCP_DPORT, PORT)).count("meta") == 2
    assert names(InSet((IP_SADDR, UDP_DPORT), "s")) == ["meta", "cmp", "payload", "payload", "lookup"]
    assert names(InSet((IP_SADDR, L4PROTO, TH_DPORT), "s")) == ["payload", "meta", "payload", "lookup"]


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (Equals(UDP_DPORT, b"\x01"), "udp dport is 2 bytes wide, not 1"),
        (Starts(IP_DADDR, bytes(4), 32), "32 is no prefix"),
        (Starts(IIFNAME, b"weft", 0), "0 is no prefix"),
        (InSet((UDP_DPORT, TCP_DPORT), "s"), "two transport protocols"),
    ],
)
def test_statements_that_make_no_sense_are_refused(statement: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        names(statement)


def test_many_elements_are_split_below_an_attributes_limit() -> None:
    elements = {key(number.to_bytes(4, "big")): b"" for number in range(9000)}
    messages = list(encode.add_elements(TABLE, TABLE.set("hosts"), elements))
    assert len(messages) > 1
    assert all(len(message.payload) < 0xFFFF for message in messages)
    assert sum(len(listed(message.payload)) for message in messages) == 9000


def test_a_range_is_a_start_and_an_end_behind_its_last_key() -> None:
    closed = key(bytes([10, 0, 0, 0])) + key(bytes([10, 0, 0, 255]))
    opened = key(bytes([240, 0, 0, 0])) + b"\xff" * 4
    (message,) = encode.add_elements(TABLE, TABLE.set("ranges"), {closed: b"", opened: b""})
    found = [
        (parse(each[encode.ELEMENT_KEY])[1], big_endian(each.get(encode.ELEMENT_FLAGS, b"")))
        for each in listed(message.payload)
    ]
    assert found == [(bytes([10, 0, 0, 0]), 0), (bytes([10, 0, 1, 0]), 1), (bytes([240, 0, 0, 0]), 0)]


def test_a_deletion_names_keys_only() -> None:
    (message,) = encode.delete_elements(TABLE, TABLE.set("map"), [key(bytes(4))])
    assert [list(each) for each in listed(message.payload)] == [[encode.ELEMENT_KEY]]
    (message,) = encode.add_elements(TABLE, TABLE.set("map"), {key(bytes(4)): verdict(goto("leaf"))})
    assert [list(each) for each in listed(message.payload)] == [[encode.ELEMENT_KEY, encode.ELEMENT_DATA]]


def test_each_message_is_described_for_errors() -> None:
    messages = [
        encode.new_table(TABLE),
        encode.delete_table(10, "t"),
        encode.new_chain(TABLE, "base"),
        encode.delete_chain(2, "t", "c"),
        *encode.new_rules(TABLE, "base"),
        encode.flush_chain(2, "t", "base"),
        encode.new_set(TABLE, "map"),
        encode.delete_set(2, "t", "map"),
        *encode.add_elements(TABLE, TABLE.set("hosts"), {key(bytes(4)): b""}),
        encode.flush_set((2, "t", "hosts")),
    ]
    assert [encode.describe(message) for message in messages] == [
        "add table ip t",
        "delete table ip6 t",
        "add chain ip t base",
        "delete chain ip t c",
        "add rule of chain ip t base",
        "delete rules of chain ip t base",
        "add set ip t map",
        "delete set ip t map",
        "add elements of set ip t hosts",
        "delete elements of set ip t hosts",
    ]


def test_no_two_sets_of_the_skeleton_share_a_transaction_id() -> None:
    messages = [
        encode.new_set(table, each.name) for table in node_tables(TableOptions()) for each in table.sets
    ]
    ids = [parse(message.payload, HEADER_BYTES)[encode.SET_ID] for message in messages]
    assert len(set(ids)) == len(ids)
