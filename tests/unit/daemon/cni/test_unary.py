"""gRPC's part of a request and of an answer."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hpack import Decoder
from hypothesis import given
from hypothesis import strategies as st

from daemon.cni import unary
from daemon.cni.http2 import Request
from daemon.cni.unary import RefusedError, Status

PATH = b"/s/m"
HEADERS = {b":method": b"POST", b":path": PATH, b"content-type": b"application/grpc"}
MESSAGE = b"\0\0\0\0\x03abc"


def decoded(block: bytes) -> dict[bytes, bytes]:
    decoder = Decoder()
    fields = dict(decoder.decode(block, raw=True))
    assert not decoder.header_table.dynamic_entries
    return fields


def request(body: bytes = MESSAGE, *, cut: bool = False, **headers: bytes) -> Request:
    given_headers = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    return Request(1, HEADERS | given_headers, body, cut)


def test_a_call() -> None:
    assert unary.read(request(), PATH) == unary.Call(b"abc", None)
    assert (
        unary.read(request(content_type=b"application/grpc+proto", grpc_encoding=b"gzip"), PATH).message
        == b"abc"
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(b"2H", 7200), (b"3M", 180), (b"4S", 4), (b"89500m", 89.5), (b"10u", 1e-5), (b"10n", 1e-8)],
)
def test_a_deadline(text: bytes, seconds: float) -> None:
    assert unary.read(request(grpc_timeout=text), PATH).timeout == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        (Request(1, HEADERS | {b":path": b"/s/n"}, MESSAGE, False), Status.UNIMPLEMENTED),
        (request(cut=True), Status.RESOURCE_EXHAUSTED),
        (request(b""), Status.INTERNAL),
        (request(MESSAGE + MESSAGE), Status.INTERNAL),
        (request(MESSAGE[:-1]), Status.INTERNAL),
        (request(b"\1" + MESSAGE[1:]), Status.INTERNAL),
        (request(b"\1" + MESSAGE[1:], grpc_encoding=b"gzip"), Status.UNIMPLEMENTED),
        (request(grpc_timeout=b"123456789S"), Status.INTERNAL),
        (request(grpc_timeout=b"soon"), Status.INTERNAL),
    ],
)
def test_what_cannot_be_served_gets_a_status(wrong: Request, status: Status) -> None:
    with pytest.raises(RefusedError) as refused:
        unary.read(wrong, PATH)
    assert refused.value.status is status
    told = decoded(unary.failure(refused.value).trailers)
    assert told[b":status"] == b"200"
    assert int(told[b"grpc-status"]) == status


@pytest.mark.parametrize(
    "other", [request(content_type=b"text/html"), Request(1, HEADERS | {b":method": b"GET"}, MESSAGE, False)]
)
def test_what_is_no_grpc_gets_a_status_of_http(other: Request) -> None:
    with pytest.raises(RefusedError) as refused:
        unary.read(other, PATH)
    assert unary.failure(refused.value)[:2] == (b"", b"")
    assert decoded(unary.failure(refused.value).trailers) == {b":status": b"415"}


def test_an_answer() -> None:
    headers, body, trailers = unary.answer(b"x" * 300)
    assert decoded(headers) == {b":status": b"200", b"content-type": b"application/grpc"}
    assert body == b"\0\0\0\x01\x2c" + b"x" * 300
    assert decoded(trailers) == {b"grpc-status": b"0"}


@given(st.text(max_size=600))
def test_a_failures_text_arrives(text: str) -> None:
    told = decoded(unary.failure(RefusedError(Status.UNKNOWN, text)).trailers)[b"grpc-message"]
    assert all(32 <= byte < 127 for byte in told)
    if len(text.encode()) <= 1024:
        assert unquote(told.decode()) == text
