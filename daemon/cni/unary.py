"""Unary gRPC on HTTP/2: what a request asks for, and answers as header blocks and body. Pure.

Source: gRPC over HTTP/2 (PROTOCOL-HTTP2.md of the grpc repository), HPACK literals of RFC 7541, 6.2.2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from daemon.cni.http2 import Request

_PREFIX = Struct(">?I")
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_TEXT_BYTES = 1024
"""Of a failure's text: more of it would help nobody."""


class Status(IntEnum):
    """What a call can end with here."""

    OK = 0
    UNKNOWN = 2
    DEADLINE_EXCEEDED = 4
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13


class RefusedError(Exception):
    """A request that gets a status instead of an answer; `is_grpc` is False for what is no gRPC at all."""

    def __init__(self, status: Status, text: str, *, is_grpc: bool = True) -> None:
        super().__init__(text)
        self.status = status
        self.is_grpc = is_grpc


@dataclass(frozen=True, slots=True)
class Call:
    """What a request asks for: its message, and within how many seconds it wants an answer (None: any)."""

    message: bytes
    timeout: float | None


class Answer(NamedTuple):
    """The parts of an answer as `daemon.cni.http2.Connection.respond` takes them."""

    headers: bytes
    body: bytes
    trailers: bytes


def read(request: Request, path: bytes) -> Call:
    """Return the call of a request for the one method there is, at `path`.

    Raises:
        RefusedError: it is none that can be served.
    """
    timeout, plain = _asked_for(tuple(request.headers.items()), path)
    if request.cut:
        raise RefusedError(Status.RESOURCE_EXHAUSTED, "the request is too large")
    body = request.body
    if len(body) < _PREFIX.size:
        raise RefusedError(Status.INTERNAL, "the request has no message")
    compressed, length = _PREFIX.unpack_from(body)
    if compressed and plain:
        raise RefusedError(Status.INTERNAL, "the message is compressed in no known way")
    if compressed:
        raise RefusedError(Status.UNIMPLEMENTED, "compressed messages are not understood")
    if length != len(body) - _PREFIX.size:
        raise RefusedError(Status.INTERNAL, "a unary request is one whole message")
    return Call(body[_PREFIX.size :], timeout)


@lru_cache(maxsize=64)
def _asked_for(fields: tuple[tuple[bytes, bytes], ...], path: bytes) -> tuple[float | None, bool]:
    """Return the timeout that headers give, and whether they name no compression; they hardly ever differ."""
    headers = dict(fields)
    kind = headers.get(b"content-type", b"")
    if not kind.startswith(b"application/grpc") or headers.get(b":method") != b"POST":
        raise RefusedError(Status.UNKNOWN, "not a gRPC request", is_grpc=False)
    if headers.get(b":path") != path:
        raise RefusedError(Status.UNIMPLEMENTED, "there is no such method")
    return _timeout(headers.get(b"grpc-timeout")), headers.get(b"grpc-encoding", b"identity") == b"identity"


def answer(message: bytes) -> Answer:
    """Return the answer that carries a message."""
    return Answer(_HEADERS, _PREFIX.pack(False, len(message)) + message, _GOOD_END)


def failure(error: RefusedError) -> Answer:
    """Return the answer that tells why there is no message."""
    if not error.is_grpc:
        return Answer(b"", b"", _literal(b":status", b"415"))
    text = _percent_encoded(str(error).encode()[:_TEXT_BYTES])
    status = _literal(b"grpc-status", b"%d" % error.status) + _literal(b"grpc-message", text)
    return Answer(b"", b"", _HEADERS + status + _literal(b"grpc-accept-encoding", b"identity"))


def _timeout(text: bytes | None) -> float | None:
    if text is None:
        return None
    found = _TIMEOUT.fullmatch(text)
    if found is None:
        raise RefusedError(Status.INTERNAL, "grpc-timeout is no time")
    return int(found[1]) * _UNITS[found[2]]


def _literal(name: bytes, value: bytes) -> bytes:
    """Encode a header that enters no table."""
    return b"\0" + _length(len(name)) + name + _length(len(value)) + value


def _length(value: int) -> bytes:
    if value < 127:
        return bytes((value,))
    encoded = bytearray(b"\x7f")
    value -= 127
    while value >= 128:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _percent_encoded(text: bytes) -> bytes:
    return b"".join(b"%c" % byte if 32 <= byte < 127 and byte != 37 else b"%%%02X" % byte for byte in text)


_STATUS_200 = b"\x88"
_HEADERS = _STATUS_200 + _literal(b"content-type", b"application/grpc")
_GOOD_END = _literal(b"grpc-status", b"0")
