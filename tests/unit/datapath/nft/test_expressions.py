from __future__ import annotations

import struct

import pytest

from datapath.netlink.attributes import parse, text
from datapath.nft.expressions import expressions, register
from datapath.nft.rules import (
    IIFNAME,
    IP_DADDR,
    IP_SADDR,
    L4PROTO,
    TCP_DPORT,
    TH_DPORT,
    UDP_DPORT,
    Equals,
    Family,
    InSet,
    Starts,
    rule,
)

PORT = struct.pack("!H", 4789)


def names(*statements: object) -> list[str]:
    encoded = expressions(rule(*statements), Family.IPV4)  # type: ignore[arg-type]
    return [text(parse(each)[1]) for each in encoded]


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
