"""Which flows are meant, how few messages are sent, and that others' bits and flows are left alone."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, cast

import pytest

from datapath import marking
from datapath.errors import NetlinkError
from datapath.marking import Ends, Found, read, write
from datapath.netlink.attributes import be32
from datapath.netlink.ctnetlink import CT_NEW, get_flows
from tests.unit.datapath.netlink.test_ctnetlink import UDP, V4, V6, listed
from tests.unit.datapath.netlink.test_ctnetlink import read as decoded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from datapath.netlink.transport import Message, Socket

BIT = 0x100
CLIENT, VIP, BACKEND = V4[1]
ENDS = Ends(CLIENT, BACKEND, UDP, 5353)
PLAIN = listed(*V4)
MARKED = PLAIN.replace(be32(8, 0x4000), be32(8, 0x4000 | BIT))
EXPECTED = PLAIN.replace(be32(3, 0x18E), be32(3, 0x18F))


class Kernel:
    """Lists what it is given, and notes what it is sent."""

    def __init__(self, *payloads: bytes, refuse: int = 0) -> None:
        self.payloads = payloads
        self.asked: list[Message] = []
        self.sent: list[list[Message]] = []
        self.refuse = refuse

    def stream(self, message: Message, action: str) -> Iterator[bytes]:  # noqa: ARG002
        self.asked.append(message)
        yield from self.payloads

    def batch_collect(self, messages: Sequence[Message], action: str) -> list[NetlinkError]:
        self.sent.append(list(messages))
        return [NetlinkError(self.refuse, action, index=0)] if self.refuse and messages else []

    @property
    def socket(self) -> Socket:
        return cast("Socket", self)


@pytest.mark.parametrize(
    ("payloads", "addresses", "found"),
    [
        ((PLAIN,), {CLIENT}, {ENDS: Found(False, True)}),
        ((PLAIN,), {BACKEND}, {ENDS: Found(False, True)}),
        ((MARKED,), {BACKEND}, {ENDS: Found(True, False)}),
        ((PLAIN, MARKED, PLAIN), {BACKEND}, {ENDS: Found(True, True)}),
        ((PLAIN,), {VIP}, {}),
        ((PLAIN,), V6[1], {}),
        ((EXPECTED,), {BACKEND}, {}),
        ((PLAIN, MARKED), None, {ENDS: Found(True, False)}),
    ],
)
def test_flows_are_told_apart_by_their_ends(
    payloads: tuple[bytes, ...], addresses: set[bytes] | None, found: dict[Ends, Found]
) -> None:
    kernel = Kernel(*payloads)
    assert read(kernel.socket, addresses, BIT) == found
    assert kernel.asked == [get_flows() if addresses is not None else get_flows(mark=(BIT, BIT))]


def test_only_what_differs_is_written_and_only_that_bit() -> None:
    kernel = Kernel(PLAIN, MARKED, listed(*V6))
    assert write(kernel.socket, kernel.socket, {BACKEND}, BIT, {ENDS: True}) == (1, 0)
    ((message,),) = kernel.sent
    assert (message.kind, message.flags) == (CT_NEW, 0), "none is made"
    change = decoded(message)
    assert (change.get_attr("CTA_MARK"), change.get_attr("CTA_MARK_MASK")) == (BIT, BIT)
    assert change.get_attr("CTA_TUPLE_ORIG") is not None
    assert write(kernel.socket, kernel.socket, {BACKEND}, BIT, {ENDS: False}) == (0, 1)
    assert decoded(kernel.sent[-1][0]).get_attr("CTA_MARK") == 0
    assert write(kernel.socket, kernel.socket, {BACKEND}, BIT, {ENDS._replace(port=1): True}) == (0, 0)


def test_many_are_written_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marking, "MOST_AT_ONCE", 2)
    kernel = Kernel(*[PLAIN] * 5)
    assert write(kernel.socket, kernel.socket, {BACKEND}, BIT, {ENDS: True}) == (5, 0)
    assert [len(each) for each in kernel.sent] == [2, 2, 1]


def test_what_went_meanwhile_is_no_failure_and_everything_else_is() -> None:
    gone, full = Kernel(PLAIN, refuse=errno.ENOENT), Kernel(PLAIN, refuse=errno.ENOMEM)
    write(gone.socket, gone.socket, {BACKEND}, BIT, {ENDS: True})
    with pytest.raises(NetlinkError):
        write(full.socket, full.socket, {BACKEND}, BIT, {ENDS: True})
