from __future__ import annotations

import pytest

from datapath.nft.elements import Range, disjoint, interface, intervals, key, parse_verdict, prefix, verdict
from datapath.nft.rules import ACCEPT, DROP, RETURN, goto, jump


def ip(text: str) -> bytes:
    return bytes(int(part) for part in text.split("."))


def test_fields_are_padded_to_words() -> None:
    assert key(ip("10.0.0.1"), b"\x06", b"\x00\x50") == ip("10.0.0.1") + b"\x06\0\0\0" + b"\x00\x50\0\0"
    assert key() == b""


def test_interface_names_fill_sixteen_bytes() -> None:
    assert interface("weft0123456789a") == b"weft0123456789a\0"
    assert interface("lo") == b"lo" + bytes(14)


def test_an_overlong_interface_name_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 15 bytes"):
        interface("weft0123456789ab")


@pytest.mark.parametrize("value", [ACCEPT, DROP, RETURN, jump("a"), goto("lb-12")])
def test_verdicts_survive_encoding(value: object) -> None:
    assert parse_verdict(verdict(value)) == value  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "length", "first", "last"),
    [
        ("10.1.2.3", 24, "10.1.2.0", "10.1.2.255"),
        ("10.1.2.3", 32, "10.1.2.3", "10.1.2.3"),
        ("10.1.2.3", 0, "0.0.0.0", "255.255.255.255"),
        ("10.1.2.3", 31, "10.1.2.2", "10.1.2.3"),
    ],
)
def test_prefixes_become_ranges(address: str, length: int, first: str, last: str) -> None:
    assert prefix(ip(address), length) == Range(ip(first), ip(last))


def test_ranges_that_overlap_are_joined_and_ranges_that_touch_are_not() -> None:
    ranges = [
        prefix(ip("10.0.1.0"), 24),
        prefix(ip("10.0.0.0"), 24),
        prefix(ip("10.0.1.128"), 25),
        Range(ip("10.0.1.200"), ip("10.0.2.9")),
    ]
    assert disjoint(ranges) == (
        Range(ip("10.0.0.0"), ip("10.0.0.255")),
        Range(ip("10.0.1.0"), ip("10.0.2.9")),
    )


def test_interval_elements_carry_both_ends() -> None:
    assert intervals([prefix(ip("10.0.0.0"), 8)]) == {ip("10.0.0.0") + ip("10.255.255.255"): b""}
