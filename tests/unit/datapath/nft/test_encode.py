from __future__ import annotations

from datapath.netlink.attributes import attribute, big_endian, items, parse
from datapath.netlink.nfnetlink import HEADER_BYTES
from datapath.nft import encode
from datapath.nft.elements import key, verdict
from datapath.nft.rules import (
    ACCEPT,
    IPV4_ADDR,
    VERDICT,
    Chain,
    Family,
    Hook,
    HookPoint,
    Set,
    Table,
    goto,
    rule,
)
from datapath.nft.tables import TableOptions, node_tables

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


def listed(payload: bytes) -> list[dict[int, bytes]]:
    elements = parse(payload, HEADER_BYTES)[encode.ELEMENTS_LIST]
    return [parse(item) for _, item in items(elements)]


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


def test_elements_without_ranges_and_verdicts_are_lists_of_padded_attributes() -> None:
    nested = 0x8000
    for declared in (each for table in node_tables(TableOptions()) for each in table.sets):
        if declared.interval or declared.data == (VERDICT,):
            continue
        size, data_size = encode.width(declared.key), encode.width(declared.data) if declared.data else 0
        encoded = key(bytes(range(1, size + 1)))
        data = key(bytes(range(101, 101 + data_size)))
        inner = attribute(encode.ELEMENT_KEY | nested, attribute(1, encoded[:size]))
        (deletion,) = encode.delete_elements(TABLE, declared, [encoded])
        assert deletion.payload.endswith(attribute(1 | nested, inner))
        if data:
            inner += attribute(encode.ELEMENT_DATA | nested, attribute(1, data[:data_size]))
        (addition,) = encode.add_elements(TABLE, declared, {encoded: data})
        assert addition.payload.endswith(attribute(1 | nested, inner))


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
