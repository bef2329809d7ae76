"""Reading back, against a kernel that answers what the test says."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, cast

import pytest

from datapath.errors import NetlinkDumpInterruptedError, NetlinkError
from datapath.netlink.attributes import attribute, be32, nest, string
from datapath.netlink.nfnetlink import header
from datapath.nft import encode, observe
from datapath.nft.elements import verdict
from datapath.nft.rules import goto

if TYPE_CHECKING:
    from collections.abc import Callable

    from datapath.netlink.transport import Message, Socket

FLAG_END = be32(encode.ELEMENT_FLAGS, 1)
RANGES = (2, "weft", "ranges")


def item(value: bytes, *more: bytes) -> bytes:
    return nest(1, nest(encode.ELEMENT_KEY, attribute(1, value)), *more)


def host(last: int) -> bytes:
    return bytes([10, 0, 0, last])


class FakeSocket:
    """One table with one set; each reading of elements takes the next of `listings`, or the last again."""

    def __init__(self, listings: list[list[bytes]], *declaration: bytes) -> None:
        self.listings = listings
        self.declaration = b"".join(declaration)
        self.generation = 5
        self.moves = 0
        self.refuse: Callable[[int], object] = bool
        self.readings = 0

    def request(self, message: Message, action: str) -> bytes:  # noqa: ARG002
        if self.moves:
            self.moves -= 1
            self.generation += 1
        return header(0) + be32(1, self.generation)

    def dump(self, message: Message, action: str) -> list[bytes]:  # noqa: ARG002
        kind = message.kind & 0xFF
        self.refuse(kind)
        if kind == encode.GETTABLE:
            return [header(2) + string(1, name) + attribute(6, b"layout") for name in ("weft", "foreign")]
        if kind == encode.GETSET:
            return [header(2) + string(1, "weft") + string(2, "ranges") + self.declaration]
        if kind == encode.GETSETELEM:
            self.readings += 1
            listing = self.listings.pop(0) if len(self.listings) > 1 else self.listings[0]
            return [header(2) + string(1, "weft") + string(2, "ranges") + nest(3, *listing)]
        return []


def elements(listing: list[bytes], *declaration: bytes) -> object:
    fake = FakeSocket([listing], *declaration)
    return observe.read_elements(cast("Socket", fake), RANGES)


def intervals(*listing: bytes) -> object:
    return elements(list(listing), be32(encode.SET_FLAGS, encode.SET_INTERVAL))


def test_plain_elements_have_their_key() -> None:
    assert elements([item(host(1)), item(host(2))]) == {host(1): b"", host(2): b""}


def test_elements_of_unlike_form_are_told_apart() -> None:
    listing = [
        item(host(1)),
        item(host(2), FLAG_END),
        item(b"\x07"),
        item(host(3), attribute(99, b"wxyz")),
        item(host(4)),
    ]
    found = elements(listing)
    assert found == dict.fromkeys((host(1), host(2), b"\x07\0\0\0", host(3), host(4)), b"")


def test_maps_have_padded_data_or_verdicts() -> None:
    port = nest(encode.ELEMENT_DATA, attribute(1, b"\x00\x50"))
    chain = nest(2, attribute(1, (-4 & 0xFFFFFFFF).to_bytes(4, "big")), string(2, "leaf"))
    listing = [item(host(1), port), item(host(2), nest(encode.ELEMENT_DATA, chain))]
    assert elements(listing) == {host(1): b"\x00\x50\0\0", host(2): verdict(goto("leaf"))}


def test_data_of_maps_are_told_from_all_else_that_an_element_may_have() -> None:
    def data(value: bytes) -> bytes:
        return nest(encode.ELEMENT_DATA, attribute(1, value))

    listing = [
        item(host(1), data(b"abcd")),
        item(host(2), data(b"efgh")),
        item(host(3), data(b"ij")),
        item(host(4), attribute(99, b"12345678")),
        item(host(5), data(b"qrst"), FLAG_END),
        item(host(6), data(b"uvwx")),
        item(host(7), data(b"yz")),
    ]
    values = [b"abcd", b"efgh", b"ij\0\0", b"", b"qrst", b"uvwx", b"yz\0\0"]
    assert elements(listing) == {host(place): value for place, value in enumerate(values, 1)}


def test_starts_and_ends_become_ranges() -> None:
    found = intervals(item(host(9), FLAG_END), item(host(5)), item(host(5), FLAG_END), item(host(1)))
    assert found == {host(1) + host(4): b"", host(5) + host(8): b""}


def test_an_open_range_reaches_the_last_key() -> None:
    assert intervals(item(host(5))) == {host(5) + b"\xff" * 4: b""}


def test_the_end_at_zero_that_nft_writes_says_nothing() -> None:
    assert intervals(item(bytes(4), FLAG_END), item(host(1)), item(host(2), FLAG_END)) == {
        host(1) + host(1): b""
    }


@pytest.mark.parametrize("listing", [[item(host(1), FLAG_END)], [item(host(1)), item(host(2))]])
def test_ends_and_starts_that_do_not_pair_make_no_sense(listing: list[bytes]) -> None:
    assert intervals(*listing) is None


def test_a_listing_short_of_the_count_is_read_again() -> None:
    full = [item(host(last)) for last in range(9)]
    fake = FakeSocket([full[:5], full[3:], full], be32(encode.SET_COUNT, 9))
    found = observe.read_elements(cast("Socket", fake), RANGES)
    assert found is not None
    assert len(found) == 9
    assert fake.readings == 3


def test_without_a_count_a_big_listing_is_read_until_it_repeats() -> None:
    full = [item(number.to_bytes(4, "big")) for number in range(600)]
    fake = FakeSocket([full[:550], full, full])
    found = observe.read_elements(cast("Socket", fake), RANGES)
    assert found is not None
    assert len(found) == 600
    assert fake.readings == 3


def test_tables_of_other_names_are_not_read() -> None:
    fake = FakeSocket([[item(host(1))]])
    found = observe.read(cast("Socket", fake), frozenset({"weft"}))
    assert found.generation == 5
    assert list(found.tables) == [(2, "weft")]
    assert found.tables[2, "weft"].sets["ranges"].elements == {host(1): b""}


def test_a_change_during_the_reading_has_it_read_again() -> None:
    fake = FakeSocket([[item(host(1))]])
    fake.moves = 3
    assert observe.read(cast("Socket", fake), frozenset({"weft"})).generation == 8
    assert fake.readings == 2


def test_endless_changes_are_an_error() -> None:
    fake = FakeSocket([[item(host(1))]])
    fake.moves = 1000
    with pytest.raises(NetlinkDumpInterruptedError, match="retry later"):
        observe.read(cast("Socket", fake), frozenset({"weft"}))


@pytest.mark.parametrize(
    "error", [NetlinkDumpInterruptedError("it changed"), NetlinkError(errno.ENOENT, "the set is gone")]
)
def test_what_goes_away_during_the_reading_has_it_read_again(error: Exception) -> None:
    fake = FakeSocket([[item(host(1))]])
    failures = [error]

    def refuse(kind: int) -> None:
        if kind == encode.GETSETELEM and failures:
            raise failures.pop()

    fake.refuse = refuse
    assert observe.read(cast("Socket", fake), frozenset({"weft"})).tables
    assert not failures


def test_other_refusals_are_passed_on() -> None:
    fake = FakeSocket([[]])

    def refuse(kind: int) -> None:
        raise NetlinkError(errno.EPERM, f"kind {kind}")

    fake.refuse = refuse
    with pytest.raises(NetlinkError, match="EPERM"):
        observe.read(cast("Socket", fake), frozenset({"weft"}))
