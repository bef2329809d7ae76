"""A gRPC client that costs next to nothing: many unary calls at once on one connection.

Real clients are shims, in C; with grpc.aio's client a burst would measure the client as well, on a machine of
two cores. Requests are encoded before the clock starts, answers are decoded after it.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import TYPE_CHECKING

from hpack import Decoder, Encoder

if TYPE_CHECKING:
    from collections.abc import Sequence

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_WINDOW = 1 << 24


def call_all(path: str, method: str, messages: Sequence[bytes]) -> tuple[float, list[bytes]]:
    """Call a method with each message, all at once.

    Args:
        path: of the unix socket.
        method: its path, `/package.Service/Method`.
        messages: serialized requests.

    Returns:
        Seconds from the first byte sent to the last one received, and the serialized answers in order.

    Raises:
        RuntimeError: a call ended without an answer.
    """
    requests = _requests(method, messages)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        # The connection is there before the calls, as it is with a channel that is ready.
        hello = _frame(_SETTINGS, 0, 0, struct.pack(">HI", 4, _WINDOW))
        hello += _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _WINDOW))
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + hello)
        answers = _Answers()
        while not answers.settled:
            answers.take(connection.recv(1 << 16))
        connection.sendall(_frame(_SETTINGS, _ACK, 0))
        began = time.perf_counter()
        connection.sendall(requests)
        while answers.ended < len(messages):
            answers.take(connection.recv(1 << 18))
        seconds = time.perf_counter() - began
    return seconds, answers.messages()


class _Answers:
    """What came back; frames are counted as they come and looked into in the end."""

    def __init__(self) -> None:
        self.ended = 0
        self.settled = False
        self._buffer = b""
        self._frames: list[tuple[int, int, bytes]] = []

    def take(self, data: bytes) -> None:
        if not data:
            raise RuntimeError("the server closed the connection")
        self._buffer += data
        while len(self._buffer) >= 9:
            word, flags, stream = struct.unpack_from(">IBI", self._buffer)
            length, kind = word >> 8, word & 0xFF
            if len(self._buffer) < 9 + length:
                return
            payload, self._buffer = self._buffer[9 : 9 + length], self._buffer[9 + length :]
            if kind in (_RST_STREAM, _GOAWAY):
                raise RuntimeError(f"stream {stream} was broken off")
            self.settled |= kind == _SETTINGS and bool(flags & _ACK)
            if kind in (_DATA, _HEADERS):
                self.ended += flags & _END_STREAM
                self._frames.append((kind, stream, payload))

    def messages(self) -> list[bytes]:
        decoder, bodies = Decoder(), dict[int, bytes]()
        for kind, stream, payload in self._frames:
            if kind == _DATA:
                bodies[stream] = bodies.get(stream, b"") + payload
                continue
            status = dict(decoder.decode(payload, raw=True)).get(b"grpc-status", b"0")
            if status != b"0":
                raise RuntimeError(f"a call ended with grpc-status {status.decode()}")
        return [bodies[stream][5:] for stream in sorted(bodies)]


def _requests(method: str, messages: Sequence[bytes]) -> bytes:
    encoder = Encoder()
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ]
    parts = []
    for number, message in enumerate(messages):
        stream = 2 * number + 1
        parts.append(_frame(_HEADERS, _END_HEADERS, stream, encoder.encode(fields)))
        parts.append(_frame(_DATA, _END_STREAM, stream, struct.pack(">?I", False, len(message)) + message))
    return b"".join(parts)


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload
