from __future__ import annotations

import errno
from typing import TYPE_CHECKING, cast

import pytest

from datapath.errors import NetlinkError, TransactionOutdatedError
from datapath.netlink.attributes import be32
from datapath.netlink.nfnetlink import (
    header,
    nft_kind,
    read_generation,
    transact,
)
from datapath.netlink.transport import Message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapath.netlink.transport import Socket


class FakeSocket:
    def __init__(self, *errors: NetlinkError) -> None:
        self.errors = list(errors)
        self.sent: list[Message] = []
        self.acknowledge = -1

    def exchange(
        self,
        messages: Sequence[Message],
        action: str,  # noqa: ARG002
        *,
        acknowledge: int,
    ) -> tuple[list[object], list[NetlinkError]]:
        self.sent, self.acknowledge = list(messages), acknowledge
        return [], self.errors

    def request(self, message: Message, action: str) -> bytes:  # noqa: ARG002
        assert message.kind == nft_kind(16)
        return header(0) + be32(1, 77) + be32(2, 4242)


MESSAGES = [Message(nft_kind(0), 0, header(2)), Message(nft_kind(12), 0, header(10))]


def send(fake: FakeSocket, **options: int) -> None:
    transact(
        cast("Socket", fake),
        MESSAGES,
        "it failed",
        describe=lambda message: f"kind {message.kind}",
        **options,
    )


def test_a_transaction_is_framed_and_its_last_real_message_acknowledged() -> None:
    fake = FakeSocket()
    send(fake)
    assert [message.kind for message in fake.sent] == [16, nft_kind(0), nft_kind(12), 17]
    assert fake.sent[0].payload == bytes((0, 0, 0, 10))
    assert fake.acknowledge == 2


def test_the_expected_generation_goes_with_the_begin() -> None:
    fake = FakeSocket()
    send(fake, generation=0x01020304)
    assert fake.sent[0].payload.endswith(be32(1, 0x01020304))


@pytest.mark.parametrize(
    ("index", "words", "expected"),
    [
        (2, f"it failed: kind {nft_kind(12)}: No such file or directory [ENOENT] (why)", 1),
        (0, "it failed: No such file or directory [ENOENT] (why)", None),
        (3, "it failed: No such file or directory [ENOENT] (why)", None),
        (None, "it failed: No such file or directory [ENOENT] (why)", None),
    ],
)
def test_a_refusal_names_its_object(index: int | None, words: str, expected: int | None) -> None:
    fake = FakeSocket(NetlinkError(errno.ENOENT, "it failed", index=index, detail="why"))
    with pytest.raises(NetlinkError) as caught:
        send(fake)
    assert str(caught.value) == words
    assert caught.value.index == expected


def test_a_stale_generation_is_its_own_error() -> None:
    fake = FakeSocket(NetlinkError(errno.ERESTART, "it failed", index=0))
    with pytest.raises(TransactionOutdatedError, match="changed meanwhile"):
        send(fake, generation=1)


def test_the_generation_is_read() -> None:
    assert read_generation(cast("Socket", FakeSocket())) == 77
