"""HTTP/2 frames by hand, to answer the shim with what no decent server sends; and servers made of them."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    0, 1, 3, 4, 5, 6, 7, 8, 9,
)  # fmt: skip
END_STREAM, END_HEADERS = 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
STREAM = 1  # the first stream that a client opens


def frame(kind: int, flags: int, stream: int, payload: bytes, length: int | None = None) -> bytes:
    """One frame; `length` overrides the truth about the payload. RFC 9113, section 4.1."""
    claimed = len(payload) if length is None else length
    return struct.pack(">I", claimed)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def header(name: str, value: bytes) -> bytes:
    """A header field as HPACK literal without indexing and without Huffman. RFC 7541, section 6.2.2."""
    return b"\0" + _integer(len(name)) + name.encode() + _integer(len(value)) + value


def _integer(value: int) -> bytes:
    if value < 127:
        return bytes([value])
    encoded, value = b"\x7f", value - 127
    while value >= 128:
        encoded, value = encoded + bytes([value % 128 | 128]), value // 128
    return encoded + bytes([value])


def preamble() -> bytes:
    return frame(SETTINGS, 0, 0, b"")


def response_headers() -> bytes:
    fields = header(":status", b"200") + header("content-type", b"application/grpc")
    return frame(HEADERS, END_HEADERS, STREAM, fields)


def message(payload: bytes) -> bytes:
    """A gRPC message, cut into DATA frames of the largest size that needs no leave."""
    body = b"\0" + struct.pack(">I", len(payload)) + payload
    return b"".join(frame(DATA, 0, STREAM, body[at : at + 16384]) for at in range(0, len(body), 16384))


def trailers(status: bytes = b"0", text: bytes = b"") -> bytes:
    fields = header("grpc-status", status) + (header("grpc-message", text) if text else b"")
    return frame(HEADERS, END_HEADERS | END_STREAM, STREAM, fields)


def reply(payload: bytes) -> bytes:
    """A complete and proper answer."""
    return preamble() + response_headers() + message(payload) + trailers()


@contextlib.contextmanager
def listening(path: Path, backlog: int = 64) -> Iterator[socket.socket]:
    """A listening unix socket that nobody accepts from."""
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(backlog)
        yield server


@contextlib.contextmanager
def answering(path: Path, talk: Callable[[socket.socket], None]) -> Iterator[None]:
    """A server that lets `talk` have each connection, one after the other, and closes it thereafter."""

    def serve(server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(15)
                talk(connection)

    with listening(path) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(20)
            assert not thread.is_alive()


def saying(answer: bytes, *, wait_for_end: bool = True) -> Callable[[socket.socket], None]:
    """Says it at once, then reads until the shim is gone, or closes right away."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(answer)
        if wait_for_end:
            while connection.recv(65536):
                pass

    return talk
