"""The transport against a socket that answers what the test says: what a real kernel does seldom or never."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, TypeAlias

import pytest

from datapath.errors import (
    DatapathError,
    NetlinkDumpInterruptedError,
    NetlinkError,
    NetlinkFormatError,
    NetlinkOverrunError,
    NetlinkTimeoutError,
)
from datapath.netlink import transport
from datapath.netlink.template import Template
from datapath.netlink.transport import Message, Reply, Socket

if TYPE_CHECKING:
    from collections.abc import Callable

INTERRUPTED = 0x10
DONE, ERROR = 3, 2


class Scripted:
    """A socket whose answers are functions of what was sent."""

    def __init__(self, *answers: Callable[[list[tuple[int, int, int]]], bytes | OSError]) -> None:
        self._answers = list(answers)
        self.sent: list[tuple[int, int, int]] = []
        self.sends = 0

    def send(self, data: bytes) -> int:
        self.sent, self.sends, offset = [], self.sends + 1, 0
        while offset < len(data):
            length, kind, flags, sequence, _ = struct.unpack_from("=IHHII", data, offset)
            self.sent.append((kind, flags, sequence))
            offset += length
        return len(data)

    def recv_into(self, buffer: memoryview, _size: int, _flags: int) -> int:
        if not self._answers:
            raise BlockingIOError
        answer = self._answers.pop(0)(self.sent)
        if isinstance(answer, OSError):
            raise answer
        cut = answer[: len(buffer)]
        buffer[: len(cut)] = cut
        return len(answer)


def packed(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, flags, sequence, 0) + payload


def ack(sequence: int, code: int = 0, tail: bytes = b"") -> bytes:
    return packed(ERROR, 0x100 | (0x200 if tail else 0), sequence, struct.pack("=i16x", -code) + tail)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Socket, Scripted]]:
    def make(*answers: Callable[[list[tuple[int, int, int]]], bytes | OSError]) -> tuple[Socket, Scripted]:
        fake = Scripted(*answers)
        monkeypatch.setattr(transport, "_open", lambda *_, **__: fake)
        return Socket(), fake

    return make


Make: TypeAlias = "Callable[..., tuple[Socket, Scripted]]"
REQUEST = Message(18, 0, bytes(16))


FILLED = Template(lambda word: [REQUEST, Message(19, 0x400, word)], ("4s",))


def test_a_filled_template_is_sent_behind_what_leads(scripted: Make) -> None:
    sock, fake = scripted(lambda sent: ack(sent[-1][2]), lambda sent: ack(sent[-1][2]))
    assert sock.batch_filled(FILLED, (b"word",), "try", (REQUEST,)) == []
    assert fake.sent == [(18, 1, 1), (18, 1, 2), (19, 0x405, 3)]
    assert sock.batch_filled(FILLED, (b"more",), "try") == []
    assert fake.sent == [(18, 1, 4), (19, 0x405, 5)]


def test_what_is_refused_of_a_filled_template_has_its_place(scripted: Make) -> None:
    sock, _ = scripted(
        lambda sent: packed(16, 0, sent[0][2], b"answer00") + ack(sent[1][2], errno.EPERM),
        lambda sent: ack(sent[2][2]),
    )
    with pytest.raises(NetlinkError, match=r"^try: .*EPERM") as caught:
        sock.batch_filled(FILLED, (b"word",), "try", (REQUEST,))
    assert caught.value.index == 1
    sock, _ = scripted(lambda sent: packed(16, 0, sent[0][2], b"answer00"), lambda sent: ack(sent[1][2]))
    assert sock.batch_filled(FILLED, (b"word",), "try") == [Reply(16, b"answer00", 0)]


def test_only_the_last_message_is_acknowledged(scripted: Make) -> None:
    sock, fake = scripted(lambda sent: ack(sent[-1][2]))
    assert sock.batch([REQUEST] * 3, "try") == []
    assert [flags for _, flags, _ in fake.sent] == [1, 1, 5]
    assert [sequence for _, _, sequence in fake.sent] == [1, 2, 3]


def test_another_message_can_be_acknowledged(scripted: Make) -> None:
    sock, fake = scripted(lambda sent: ack(sent[1][2]))
    assert sock.exchange([REQUEST] * 3, "try", acknowledge=1) == ([], [])
    assert [flags for _, flags, _ in fake.sent] == [1, 5, 1]


def test_errors_and_answers_carry_their_place(scripted: Make) -> None:
    sock, _ = scripted(
        lambda sent: ack(sent[2][2], errno.EEXIST) + packed(16, 0, sent[0][2], b"answer00"),
        lambda sent: ack(sent[1][2], errno.EPERM),
        lambda sent: ack(sent[3][2]),
    )
    replies, errors = sock.exchange([REQUEST] * 4, "try")
    assert replies == [Reply(16, b"answer00", 0)]
    assert [(error.index, error.code) for error in errors] == [(1, errno.EPERM), (2, errno.EEXIST)]


def test_the_first_error_of_a_batch_is_raised_with_the_kernels_words(scripted: Make) -> None:
    words = b"\x0a\x00\x01\x00bad 1\x00\x00\x00"
    sock, _ = scripted(lambda sent: ack(sent[1][2], errno.EINVAL, words), lambda sent: ack(sent[2][2]))
    with pytest.raises(NetlinkError, match=r"^try: Invalid argument \[EINVAL\] \(bad 1\)$") as caught:
        sock.batch([REQUEST] * 3, "try")
    assert (caught.value.index, caught.value.detail) == (1, "bad 1")


def test_a_missing_attribute_is_named(scripted: Make) -> None:
    sock, _ = scripted(lambda sent: ack(sent[0][2], errno.EINVAL, b"\x08\x00\x05\x00\x07\x00\x00\x00"))
    with pytest.raises(NetlinkError, match=r"\(missing: attribute 7\)"):
        sock.batch([REQUEST], "try")


def test_answers_to_earlier_requests_are_passed_over(scripted: Make) -> None:
    sock, _ = scripted(lambda sent: ack(sent[0][2] - 1, errno.EPERM), lambda sent: ack(sent[0][2]))
    sock._sequence = 50
    assert sock.batch([REQUEST], "try") == []


def test_silence_is_an_error_but_a_refused_transaction_ends_without_ack(scripted: Make) -> None:
    sock, _ = scripted()
    with pytest.raises(NetlinkError, match="did not acknowledge"):
        sock.batch([REQUEST], "try")
    sock, _ = scripted(lambda sent: ack(sent[0][2], errno.ERESTART))
    assert [error.code for error in sock.batch_collect([REQUEST] * 3, "try")] == [errno.ERESTART]


def test_large_batches_are_split_and_indexes_go_on(scripted: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "BATCH_BYTES", 70)
    sock, fake = scripted(
        lambda sent: ack(sent[0][2], errno.EPERM),
        lambda sent: ack(sent[1][2]),
        lambda sent: ack(sent[1][2]),
        lambda sent: ack(sent[0][2], errno.EEXIST),
    )
    errors = sock.batch_collect([REQUEST] * 5, "try")
    assert fake.sends == 3
    assert [error.index for error in errors] == [0, 4]
    assert sock.batch_collect([], "try") == []


def test_a_message_larger_than_a_batch_goes_alone(scripted: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "BATCH_BYTES", 40)
    sock, fake = scripted(*(lambda sent: ack(sent[-1][2]),) * 3)
    sock.batch([REQUEST, Message(18, 0, bytes(100)), REQUEST], "try")
    assert fake.sends == 3


def test_sequence_numbers_start_again_before_they_overflow(scripted: Make) -> None:
    sock, fake = scripted(lambda sent: ack(sent[-1][2]))
    sock._sequence = 0xFFFFFFFE
    sock.batch([REQUEST] * 3, "try")
    assert [sequence for _, _, sequence in fake.sent] == [1, 2, 3]


def test_a_dump_gathers_its_parts(scripted: Make) -> None:
    sock, fake = scripted(
        lambda _: BlockingIOError(),
        lambda sent: packed(16, 2, sent[0][2], b"one.") + packed(16, 2, sent[0][2], b"two."),
        lambda sent: packed(16, 2, sent[0][2] - 1, b"old.") + packed(DONE, 2, sent[0][2], bytes(4)),
    )
    assert sock.dump(REQUEST, "try") == [b"one.", b"two."]
    assert fake.sent[0][1] == 0x301


def test_an_interrupted_dump_is_repeated(scripted: Make) -> None:
    def part(flags: int) -> Callable[[list[tuple[int, int, int]]], bytes]:
        return lambda sent: packed(16, flags, sent[0][2], b"data") + packed(DONE, 2, sent[0][2], bytes(4))

    empty = lambda _: BlockingIOError()  # noqa: E731
    sock, fake = scripted(empty, part(INTERRUPTED), empty, part(2))
    assert sock.dump(REQUEST, "try") == [b"data"]
    assert fake.sends == 2
    sock, fake = scripted(*(empty, part(INTERRUPTED)) * 5)
    with pytest.raises(NetlinkDumpInterruptedError, match="try: the table changed"):
        sock.dump(REQUEST, "try")
    assert fake.sends == 5


def test_a_stream_yields_while_it_reads_and_is_not_repeated(scripted: Make) -> None:
    sock, fake = scripted(
        lambda _: BlockingIOError(),
        lambda sent: packed(16, INTERRUPTED, sent[0][2], b"one.") + packed(16, 2, sent[0][2], b"two."),
        lambda sent: packed(16, 2, sent[0][2], b"end.") + packed(DONE, INTERRUPTED, sent[0][2], bytes(4)),
    )
    stream = sock.stream(REQUEST, "try")
    assert fake.sends == 0
    assert next(stream) == b"one."
    assert list(stream) == [b"two.", b"end."]
    assert fake.sends == 1


def test_a_refused_stream(scripted: Make) -> None:
    sock, _ = scripted(lambda _: BlockingIOError(), lambda sent: ack(sent[0][2], errno.EOPNOTSUPP))
    with pytest.raises(NetlinkError, match="ENOTSUP"):
        list(sock.stream(REQUEST, "try"))


def test_a_refused_dump(scripted: Make) -> None:
    empty = lambda _: BlockingIOError()  # noqa: E731
    sock, _ = scripted(empty, lambda sent: ack(sent[0][2], errno.EOPNOTSUPP))
    with pytest.raises(NetlinkError, match="ENOTSUP"):
        sock.dump(REQUEST, "try")
    words = b"\x08\x00\x01\x00no \x00"
    end = struct.pack("=i", -errno.ENOENT) + words
    sock, _ = scripted(empty, lambda sent: packed(DONE, 2, sent[0][2], end))
    with pytest.raises(NetlinkError, match=r"ENOENT\] \(no \)"):
        sock.dump(REQUEST, "try")


def test_a_dump_without_end_times_out(scripted: Make) -> None:
    sock, _ = scripted()
    with pytest.raises(NetlinkTimeoutError, match="sent nothing"):
        sock.dump(REQUEST, "try")


def test_what_is_lost_or_cut_is_an_overrun(scripted: Make) -> None:
    sock, _ = scripted(lambda _: OSError(errno.ENOBUFS, "full"))
    with pytest.raises(NetlinkOverrunError, match="dropped"):
        sock.batch([REQUEST], "try")
    sock, _ = scripted(lambda _: bytes(100_000))
    with pytest.raises(NetlinkOverrunError, match="100000 bytes"):
        sock.batch([REQUEST], "try")
    sock, _ = scripted(lambda _: OSError(errno.EBADF, "closed"))
    with pytest.raises(DatapathError, match="closed"):
        sock.receive()


def test_a_message_that_lies_about_its_length(scripted: Make) -> None:
    sock, _ = scripted(lambda _: struct.pack("=IHHII", 400, 16, 0, 1, 0))
    with pytest.raises(NetlinkFormatError, match="claims 400 of the 16 bytes"):
        sock.batch([REQUEST], "try")


def test_one_request_one_answer(scripted: Make) -> None:
    sock, _ = scripted(lambda sent: packed(16, 0, sent[0][2], b"data"), lambda sent: ack(sent[0][2]))
    assert sock.request(REQUEST, "try") == b"data"
    sock, _ = scripted(lambda sent: ack(sent[0][2]))
    with pytest.raises(NetlinkError, match="ENODATA"):
        sock.request(REQUEST, "try")


def test_notifications_name_their_cause(scripted: Make) -> None:
    told = struct.pack("=IHHII", 20, 16, 0, 0, 77) + b"data"
    sock, _ = scripted(lambda _: told, lambda _: BlockingIOError())
    assert sock.receive() == [(16, b"data", 77)]
    assert sock.receive() == []


def test_a_socket_that_can_not_be_opened_is_an_error() -> None:
    with pytest.raises(DatapathError, match="can't be opened"):
        Socket(99)
    with Socket() as plain:
        assert plain.port > 0
        assert plain.fileno() > 0


def test_messages_are_framed_in_order_and_one_is_acknowledged() -> None:
    messages = [Message(16, 0x400, b"data"), REQUEST, Message(17, 0, b"")]
    framed = transport.frame(messages, 7, 1)
    assert framed == (
        struct.pack("=IHHII", 20, 16, 0x401, 7, 0)
        + b"data"
        + struct.pack("=IHHII", 32, 18, 0x005, 8, 0)
        + bytes(16)
        + struct.pack("=IHHII", 16, 17, 0x001, 9, 0)
    )
    assert transport.frame((REQUEST,), 1, None) == packed(18, 1, 1, bytes(16))
