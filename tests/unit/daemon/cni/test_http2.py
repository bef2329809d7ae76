"""HTTP/2 as the server sees it: requests in however many pieces, windows, violations."""

from __future__ import annotations

import struct

import pytest
from hpack import Decoder, Encoder
from hypothesis import given
from hypothesis import strategies as st

from daemon.cni import http2
from daemon.cni.http2 import (
    ACK,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_BYTES,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    NO_ERROR,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    Connection,
    Request,
    Reset,
    frame,
)

LIMIT = 100_000
FIELDS = [(b":method", b"POST"), (b":path", b"/a/b"), (b"te", b"trailers"), (b"x-long", b"v" * 30)]
HELLO = PREFACE + frame(SETTINGS, 0, 0)
OK_HEADERS, OK_TRAILERS = b"\x88", b"\x00\x01a\x01b"

Frame = tuple[int, int, int, bytes]


def number(value: int) -> bytes:
    return struct.pack(">I", value)


def setting(name: int, value: int) -> bytes:
    return frame(SETTINGS, 0, 0, struct.pack(">HI", name, value))


def opened(stream: int = 1, encoder: Encoder | None = None, flags: int = END_HEADERS) -> bytes:
    block = (encoder or Encoder()).encode(FIELDS)
    return frame(HEADERS, flags, stream, block)


def whole(stream: int, body: bytes, encoder: Encoder | None = None) -> bytes:
    return opened(stream, encoder) + frame(DATA, END_STREAM, stream, body)


def frames(data: bytes) -> list[Frame]:
    found = []
    while data:
        word, flags, stream = struct.unpack_from(">IBI", data)
        length = word >> 8
        found.append((word & 0xFF, flags, stream, data[9 : 9 + length]))
        data = data[9 + length :]
    return found


def greeted(limit: int = LIMIT) -> Connection:
    connection = Connection(limit)
    assert connection.receive(HELLO) == []
    kinds = [(kind, flags) for kind, flags, _, _ in frames(connection.take())]
    assert kinds == [(SETTINGS, 0), (WINDOW_UPDATE, 0), (SETTINGS, ACK)]
    return connection


def fault(connection: Connection) -> int:
    """The code that the client is told as the last word."""
    assert connection.fault
    kind, _, _, payload = frames(connection.take())[-1]
    assert kind == GOAWAY
    code: int = struct.unpack(">II", payload)[1]
    return code


def test_a_request_is_told_when_it_is_whole() -> None:
    connection = greeted()
    assert connection.receive(opened()) == []
    assert connection.receive(frame(DATA, 0, 1, b"ab")) == []
    assert connection.receive(frame(DATA, END_STREAM, 1, b"c")) == [Request(1, dict(FIELDS), b"abc", False)]


def test_a_request_tells_when_its_headers_came() -> None:
    for _ in range(2):  # the second time the opening is remembered
        connection = Connection(LIMIT)
        assert connection.receive(HELLO + opened(), 5.0) == []
        (event,) = connection.receive(frame(DATA, END_STREAM, 1, b"c"), 7.0)
        assert isinstance(event, Request)
        assert event.began == 5.0
    (event,) = connection.receive(whole(3, b"x"), 9.0)
    assert isinstance(event, Request)
    assert event.began == 9.0


def test_the_opening_can_wait_while_a_request_is_under_way_and_nothing_else_can() -> None:
    connection = Connection(LIMIT)
    connection.receive(HELLO)
    assert not connection.patient, "who waits for our settings is told them"
    connection = Connection(LIMIT)
    found = []
    for data in (HELLO + opened(), frame(PING, 0, 0, bytes(8))):
        connection.receive(data)
        found.append(connection.patient)
    connection.take()
    assert (*found, connection.patient) == (True, False, False)
    connection = Connection(LIMIT)
    connection.receive(HELLO + opened() + frame(DATA, 0, 1, bytes(100)))
    assert not connection.patient, "more than fits into the first window has to be let in"


def test_a_request_without_a_body_and_one_that_ends_with_trailers() -> None:
    connection = greeted()
    (event,) = connection.receive(opened(flags=END_HEADERS | END_STREAM))
    assert isinstance(event, Request)
    assert event.body == b""
    trailers = frame(HEADERS, END_HEADERS | END_STREAM, 3, Encoder().encode([(b"a", b"b")]))
    (event,) = connection.receive(opened(3) + frame(DATA, 0, 3, b"x") + trailers)
    assert event == Request(3, dict(FIELDS), b"x", False)


def test_later_requests_use_the_table_that_the_first_one_filled() -> None:
    encoder = Encoder()
    connection = greeted()
    for stream in (1, 3, 5):
        data = whole(stream, b"x", encoder)
        (event,) = connection.receive(data)
        assert event == Request(stream, dict(FIELDS), b"x", False)
    assert len(data) < 40
    # The same first block on another connection is remembered, and its table is this connection's own.
    other, encoder = greeted(), Encoder()
    assert [other.receive(whole(stream, b"y", encoder)) for stream in (1, 3)] == [
        [Request(1, dict(FIELDS), b"y", False)],
        [Request(3, dict(FIELDS), b"y", False)],
    ]


@given(st.lists(st.integers(1, 400), min_size=1, max_size=30))
def test_pieces_do_not_matter(sizes: list[int]) -> None:
    encoder = Encoder()
    data = HELLO + whole(1, b"one" * 99, encoder) + frame(PING, 0, 0, b"12345678") + whole(3, b"two", encoder)
    connection, events, at = Connection(LIMIT), [], 0
    for size in [*sizes, len(data)]:
        events += connection.receive(data[at : at + size])
        at += size
    assert [event.body for event in events if isinstance(event, Request)] == [b"one" * 99, b"two"]
    assert frames(connection.take())[-1] == (PING, ACK, 0, b"12345678")


def settings(entries: list[tuple[int, int]]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *entry) for entry in entries))


@given(
    entries=st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 9]), st.integers(0, 1 << 17)), max_size=4),
    between=st.lists(
        st.sampled_from(
            [
                frame(WINDOW_UPDATE, 0, 0, number(70_000)),
                frame(PING, 0, 0, bytes(8)),
                frame(PRIORITY, 0, 1, bytes(5)),
                frame(SETTINGS, 0, 0),
                frame(0xBE, 0, 0, b"extension"),
                frame(WINDOW_UPDATE, 0, 0, number(0)),
            ]
        ),
        max_size=2,
    ),
    stream=st.sampled_from([1, 3]),
    flags=st.sampled_from([END_HEADERS, END_HEADERS | END_STREAM]),
    rest=st.sampled_from([b"", frame(DATA, END_STREAM, 1, b"body"), frame(RST_STREAM, 0, 1, number(8))]),
    leaving=st.booleans(),
)
def test_an_opening_that_is_known_leads_to_the_same(
    entries: list[tuple[int, int]],
    between: list[bytes],
    stream: int,
    flags: int,
    rest: bytes,
    leaving: bool,
) -> None:
    data = PREFACE + settings(entries) + b"".join(between) + opened(stream, flags=flags) + rest
    later = opened(stream + 2) + frame(DATA, END_STREAM, stream + 2, b"later")

    def found() -> tuple[object, ...]:
        connection = Connection(LIMIT)
        if leaving:
            connection.leave()
        said: list[object] = []
        for piece in (data, later):
            for event in connection.receive(piece):
                said.append(event)
                connection.respond(event.stream, OK_HEADERS, b"x" * 50_000, OK_TRAILERS)
            said.append(connection.take())
        return (*said, connection.fault)

    http2._OPENINGS.clear()
    first = found()
    assert found() == first
    assert len(http2._OPENINGS) <= 2


def test_openings_are_remembered_up_to_a_limit() -> None:
    http2._OPENINGS.clear()
    for window in range(1, 100):
        connection = Connection(LIMIT)
        connection.receive(PREFACE + setting(INITIAL_WINDOW_SIZE, window) + opened())
        assert 0 < len(http2._OPENINGS) <= http2._OPENINGS_LIMIT
        connection.respond(1, OK_HEADERS, b"x" * 200, OK_TRAILERS)
        assert frames(connection.take())[4][3] == b"x" * window


@given(st.binary(max_size=300))
def test_whatever_comes_is_taken_or_named(data: bytes) -> None:
    for connection in (Connection(LIMIT), greeted()):
        connection.receive(data)
        connection.receive(data)
        assert not connection.fault or fault(connection) != NO_ERROR


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 255), st.integers(0, 5), st.binary(max_size=40)))
)
def test_whatever_frames_come_are_taken_or_named(given_frames: list[Frame]) -> None:
    connection = greeted()
    connection.receive(opened())
    for each in given_frames:
        for event in connection.receive(frame(*each)):
            connection.respond(event.stream, OK_HEADERS, b"x" * 10, OK_TRAILERS)
    assert not connection.fault or fault(connection) != NO_ERROR


def test_padding_and_priority_are_taken_off() -> None:
    connection = greeted()
    block = b"\x02" + bytes(5) + Encoder().encode(FIELDS) + bytes(2)
    connection.receive(frame(HEADERS, END_HEADERS | PADDED | WITH_PRIORITY, 1, block))
    (event,) = connection.receive(frame(DATA, END_STREAM | PADDED, 1, b"\x03abc" + bytes(3)))
    assert event == Request(1, dict(FIELDS), b"abc", False)
    assert frames(connection.take()) == [(WINDOW_UPDATE, 0, 1, number(4))]


def test_a_header_block_in_pieces() -> None:
    block = Encoder().encode(FIELDS)
    connection = greeted()
    connection.receive(frame(HEADERS, END_STREAM, 1, block[:5]) + frame(CONTINUATION, 0, 1, block[5:9]))
    (event,) = connection.receive(frame(CONTINUATION, END_HEADERS, 1, block[9:]))
    assert event == Request(1, dict(FIELDS), b"", False)


def test_an_answer() -> None:
    connection = greeted()
    connection.receive(whole(1, b"x"))
    connection.respond(1, OK_HEADERS, b"answer", OK_TRAILERS)
    assert frames(connection.take()) == [
        (HEADERS, END_HEADERS, 1, OK_HEADERS),
        (DATA, 0, 1, b"answer"),
        (HEADERS, END_HEADERS | END_STREAM, 1, OK_TRAILERS),
    ]
    connection.respond(1, OK_HEADERS, b"again", OK_TRAILERS)
    assert connection.take() == b""


def test_an_answer_leaves_as_the_windows_let_it() -> None:
    connection = greeted()
    connection.receive(setting(INITIAL_WINDOW_SIZE, 10) + whole(1, b"x"))
    connection.take()
    connection.respond(1, OK_HEADERS, bytes(70_000), OK_TRAILERS)
    assert [len(part) for kind, _, _, part in frames(connection.take()) if kind == DATA] == [10]
    connection.receive(frame(WINDOW_UPDATE, 0, 1, number(20)))
    assert [len(part) for _, _, _, part in frames(connection.take())] == [20]
    connection.receive(setting(INITIAL_WINDOW_SIZE, 100_000))
    sizes = [len(part) for kind, _, _, part in frames(connection.take()) if kind == DATA]
    assert sizes[0] == FRAME_BYTES
    assert sum(sizes) == 65535 - 30, "the connection's window"
    connection.receive(frame(WINDOW_UPDATE, 0, 0, number(100_000)))
    last = frames(connection.take())
    assert [kind for kind, *_ in last] == [DATA, HEADERS]
    assert len(last[0][3]) == 70_000 - 65535


def test_a_shrunk_window_may_be_negative() -> None:
    connection = greeted()
    connection.receive(whole(1, b"x") + setting(INITIAL_WINDOW_SIZE, 100))
    connection.respond(1, OK_HEADERS, bytes(200), OK_TRAILERS)
    connection.receive(setting(INITIAL_WINDOW_SIZE, 10) + frame(WINDOW_UPDATE, 0, 1, number(50)))
    assert sum(len(part) for kind, _, _, part in frames(connection.take()) if kind == DATA) == 100
    connection.receive(frame(WINDOW_UPDATE, 0, 1, number(50)))
    assert [kind for kind, *_ in frames(connection.take())] == [DATA]


def test_the_clients_windows_are_kept_open() -> None:
    connection = greeted(1 << 20)
    sent = granted = 0
    for stream in range(1, 81, 2):
        connection.receive(opened(stream))
        for _ in range(40):
            connection.receive(frame(DATA, 0, stream, bytes(FRAME_BYTES)))
            sent += FRAME_BYTES
        connection.receive(frame(DATA, END_STREAM, stream))
        connection.respond(stream, OK_HEADERS, b"", OK_TRAILERS)
        grants = [part for kind, _, on, part in frames(connection.take()) if (kind, on) == (WINDOW_UPDATE, 0)]
        granted += sum(struct.unpack(">I", part)[0] for part in grants)
        assert sent - granted <= http2.CONNECTION_WINDOW
    assert sent > http2.CONNECTION_WINDOW


def test_a_body_above_the_limit_is_cut_and_the_rest_not_wanted() -> None:
    connection = greeted(10)
    events = connection.receive(opened() + frame(DATA, 0, 1, bytes(8)) + frame(DATA, 0, 1, bytes(8)))
    assert events == [Request(1, dict(FIELDS), bytes(16), True)]
    connection.take()
    connection.respond(1, b"", b"", OK_TRAILERS)
    end = frames(connection.take())
    assert [kind for kind, *_ in end] == [HEADERS, RST_STREAM]
    assert end[1][3] == number(NO_ERROR)
    assert connection.receive(frame(DATA, END_STREAM, 1, bytes(8))) == []
    assert not connection.fault


def test_a_reset_is_told_once() -> None:
    connection = greeted()
    connection.receive(whole(1, b"x") + opened(3))
    assert connection.receive(frame(RST_STREAM, 0, 1, number(8))) == [Reset(1)]
    assert connection.receive(frame(RST_STREAM, 0, 1, number(8)) + frame(RST_STREAM, 0, 3, number(8))) == []
    connection.respond(1, OK_HEADERS, b"x", OK_TRAILERS)
    assert connection.take() == b""


def test_who_leaves_takes_no_more_requests() -> None:
    connection = greeted()
    connection.receive(whole(1, b"x"))
    connection.leave()
    connection.leave()
    assert frames(connection.take()) == [(GOAWAY, 0, 0, number(1) + number(NO_ERROR))]
    assert connection.receive(whole(3, b"x")) == []
    assert frames(connection.take()) == [(RST_STREAM, 0, 3, number(REFUSED_STREAM))]
    connection.respond(1, OK_HEADERS, b"x", OK_TRAILERS)
    assert len(frames(connection.take())) == 3


def test_too_many_streams_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "STREAMS", 2)
    connection = greeted()
    assert len(connection.receive(b"".join(whole(stream, b"x") for stream in (1, 3, 5)))) == 2
    assert frames(connection.take())[-1] == (RST_STREAM, 0, 5, number(REFUSED_STREAM))


def test_another_table_size_is_acknowledged_in_the_next_block() -> None:
    connection = greeted()
    connection.receive(setting(HEADER_TABLE_SIZE, 0) + whole(1, b"x") + whole(3, b"y"))
    connection.take()
    for stream in (1, 3):
        connection.respond(stream, OK_HEADERS, b"", OK_TRAILERS)
    blocks = [block for kind, _, _, block in frames(connection.take()) if kind == HEADERS]
    decoder = Decoder()
    decoder.max_allowed_table_size = 0
    assert decoder.decode(blocks[0], raw=True) == [(b":status", b"200")]
    assert [block[:1] == b"\x20" for block in blocks] == [True, False, False, False]


def test_what_is_unknown_is_ignored() -> None:
    connection = greeted()
    connection.receive(
        frame(77, 0, 0, b"x")
        + frame(PRIORITY, 0, 1, bytes(5))
        + setting(99, 5)
        + frame(GOAWAY, 0, 0, bytes(8))
    )
    assert not connection.fault
    assert len(connection.receive(whole(1, b"x"))) == 1


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(DATA, 0, 1, b"x"), PROTOCOL_ERROR),
        (frame(DATA, 0, 0, b"x"), PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS, 2, OK_HEADERS), PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS | WITH_PRIORITY, 1, b"\0"), FRAME_SIZE_ERROR),
        (frame(HEADERS, 0, 1, b"") + frame(PING, 0, 0, bytes(8)), PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff"), COMPRESSION_ERROR),
        (frame(HEADERS, 0, 1, b"") + 5 * frame(CONTINUATION, 0, 1, bytes(16000)), ENHANCE_YOUR_CALM),
        (frame(CONTINUATION, END_HEADERS, 1, b""), PROTOCOL_ERROR),
        (opened() + opened(), PROTOCOL_ERROR),
        (whole(1, b"x") + frame(DATA, 0, 1, b"x"), STREAM_CLOSED),
        (opened() + frame(DATA, PADDED, 1, b"\x05abc"), PROTOCOL_ERROR),
        (opened() + frame(DATA, PADDED, 1), FRAME_SIZE_ERROR),
        (frame(RST_STREAM, 0, 1, number(8)), PROTOCOL_ERROR),
        (opened() + frame(RST_STREAM, 0, 1, b"x"), FRAME_SIZE_ERROR),
        (frame(SETTINGS, 0, 1), PROTOCOL_ERROR),
        (frame(SETTINGS, 0, 0, b"x"), FRAME_SIZE_ERROR),
        (frame(SETTINGS, ACK, 0, b"x"), FRAME_SIZE_ERROR),
        (setting(INITIAL_WINDOW_SIZE, 1 << 31), FLOW_CONTROL_ERROR),
        (setting(MAX_FRAME_SIZE, 5), PROTOCOL_ERROR),
        (frame(PUSH_PROMISE, 0, 1, bytes(4)), PROTOCOL_ERROR),
        (frame(PING, 0, 0, b"x"), FRAME_SIZE_ERROR),
        (frame(GOAWAY, 0, 0, b"x"), FRAME_SIZE_ERROR),
        (frame(WINDOW_UPDATE, 0, 0, number(0)), PROTOCOL_ERROR),
        (frame(WINDOW_UPDATE, 0, 0, number((1 << 31) - 1)), FLOW_CONTROL_ERROR),
        (frame(WINDOW_UPDATE, 0, 1, number(1)), PROTOCOL_ERROR),
        (frame(PRIORITY, 0, 1, b"x"), FRAME_SIZE_ERROR),
        (frame(DATA, 0, 1, bytes(FRAME_BYTES + 1)), FRAME_SIZE_ERROR),
    ],
)
def test_violations_are_named(data: bytes, code: int) -> None:
    connection = greeted()
    connection.receive(data)
    assert fault(connection) == code
    assert connection.receive(whole(1, b"x")) == [], "nothing is heard after a violation"


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", PREFACE[:-1] + b"x", PREFACE + opened()])
def test_what_does_not_begin_as_http2_is_none(data: bytes) -> None:
    connection = Connection(LIMIT)
    connection.receive(data)
    assert fault(connection) == PROTOCOL_ERROR
