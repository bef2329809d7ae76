"""One connection of a client."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from daemon.cni import http2
from daemon.cni.connections import Client, Listening

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HELLO = http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0)


@pytest.fixture
def pair() -> Iterator[tuple[Client, socket.socket]]:
    ours, theirs = socket.socketpair()
    client = Client(ours)
    with theirs:
        yield client, theirs
    client.close()


def test_nothing_is_waited_for(pair: tuple[Client, socket.socket]) -> None:
    client, theirs = pair
    assert client.receive() == []
    assert not client.flush()
    theirs.sendall(HELLO)
    assert client.receive() == []
    assert not client.flush()
    assert http2.frame(http2.SETTINGS, http2.ACK, 0) in theirs.recv(1000)
    assert not client.gone


def test_what_the_client_does_not_take_is_kept_and_nothing_is_taken_from_it(
    pair: tuple[Client, socket.socket],
) -> None:
    client, theirs = pair
    ping = http2.frame(http2.PING, 0, 0, bytes(8))
    theirs.sendall(HELLO)
    sent = 0
    while not client.blocked:
        theirs.sendall(ping * 100)
        sent += 100
        client.receive()
        assert not client.flush()
    theirs.sendall(ping)
    assert client.receive() == []
    theirs.settimeout(5)
    answers = b""
    while answers.count(http2.frame(http2.PING, http2.ACK, 0, bytes(8))) <= sent:
        answers += theirs.recv(1 << 20)
        assert not client.flush()
        client.receive()


@pytest.mark.parametrize("before", [b"", HELLO, HELLO[:10]])
def test_a_client_that_goes_is_to_be_closed(pair: tuple[Client, socket.socket], before: bytes) -> None:
    client, theirs = pair
    theirs.sendall(before)
    theirs.close()
    client.receive()
    while not client.gone:
        client.receive()
    assert client.flush()
    descriptor = client.descriptor
    client.close()
    assert client.descriptor == descriptor


def test_one_that_cannot_be_answered_any_more_is_gone(pair: tuple[Client, socket.socket]) -> None:
    client, theirs = pair
    theirs.sendall(HELLO)
    client.receive()
    theirs.close()
    assert client.flush()
    assert client.gone


def test_one_that_speaks_something_else_is_told_and_closed(pair: tuple[Client, socket.socket]) -> None:
    client, theirs = pair
    theirs.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert client.receive() == []
    assert client.flush()
    assert not client.gone
    assert theirs.recv(1000)[3] == http2.GOAWAY


def test_a_listening_socket_accepts_what_is_a_socket_like_others(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with Listening(socket.AF_UNIX, socket.SOCK_STREAM) as listening, socket.socket(socket.AF_UNIX) as other:
        listening.bind(path)
        listening.listen()
        other.connect(path)
        accepted, _ = listening.accept()
        with accepted:
            assert (accepted.family, accepted.type) == (socket.AF_UNIX, socket.SOCK_STREAM)
            other.sendall(b"x")
            assert accepted.recv(1) == b"x"
