"""SCTP as far as a network sees it: the first two packets of an association (RFC 9260), by raw sockets.

Many kernels have no SCTP sockets but track and translate its connections all the same. A server answers INIT
with INIT ACK, and with ABORT at other ports; its words travel in the state cookie. Nothing follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from lab.namespaces import CLONE_NEWNET, apart, setns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PROTOCOL = 132
_INIT, _INIT_ACK, _ABORT = 1, 2, 6
_STATE_COOKIE = 7
_HEADER = struct.Struct("!HHII")
_CHUNK = struct.Struct("!BBH")
_INIT_FIELDS = struct.Struct("!IIHHI")
_PARAMETER = struct.Struct("!HH")
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_WINDOW, _STREAMS = 65536, 1
_ASK_SECONDS = 0.7
_EPHEMERAL = range(32768, 61000)


def _crc_table() -> tuple[int, ...]:
    """The reflected table of CRC32c (RFC 9260, appendix A)."""
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC = _crc_table()


def crc32c(data: bytes) -> int:
    """CRC32c of the data."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _CRC[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


class Chunk(NamedTuple):
    """The one chunk of a packet, as far as anybody here cares; `tag` is the verification tag before it."""

    source_port: int
    destination_port: int
    tag: int
    kind: int
    initiate_tag: int = 0
    cookie: bytes = b""


def encode(chunk: Chunk) -> bytes:
    """A packet with a right checksum."""
    body = b""
    if chunk.kind != _ABORT:
        body = _INIT_FIELDS.pack(chunk.initiate_tag, _WINDOW, _STREAMS, _STREAMS, 1)
    if chunk.cookie:
        body += _PARAMETER.pack(_STATE_COOKIE, _PARAMETER.size + len(chunk.cookie)) + chunk.cookie
    content = _CHUNK.pack(chunk.kind, 0, _CHUNK.size + len(body)) + body + bytes(-len(body) % 4)
    ports = (chunk.source_port, chunk.destination_port, chunk.tag)
    # The checksum is stored with its lowest byte first.
    checksum = crc32c(_HEADER.pack(*ports, 0) + content)
    return _HEADER.pack(*ports, int.from_bytes(checksum.to_bytes(4, "little"), "big")) + content


def decode(packet: bytes) -> Chunk | None:
    """What `encode` made; None for anything else, a wrong checksum included."""
    if len(packet) < _HEADER.size + _CHUNK.size:
        return None
    source, destination, tag, checksum = _HEADER.unpack_from(packet)
    zeroed = packet[:8] + bytes(4) + packet[12:]
    if crc32c(zeroed).to_bytes(4, "little") != checksum.to_bytes(4, "big"):
        return None
    kind, _, length = _CHUNK.unpack_from(packet, _HEADER.size)
    body = packet[_HEADER.size + _CHUNK.size : _HEADER.size + length]
    if kind == _ABORT:
        return Chunk(source, destination, tag, kind)
    if kind not in (_INIT, _INIT_ACK) or len(body) < _INIT_FIELDS.size:
        return None
    parameters = body[_INIT_FIELDS.size :]
    cookie = parameters[_PARAMETER.size :] if len(parameters) > _PARAMETER.size else b""
    return Chunk(source, destination, tag, kind, _INIT_FIELDS.unpack_from(body)[0], cookie)


def _payload(family: int, packet: bytes) -> bytes:
    """What a raw socket received, without the IPv4 header."""
    return packet[(packet[0] & 0xF) * 4 :] if family == socket.AF_INET else packet


class Server:
    """Answers in one network namespace until it is closed.

    Args:
        words: what it says to a client, by the source address that it sees.
        ports: where it listens.
    """

    def __init__(self, words: Callable[[str], bytes], ports: Iterable[int]) -> None:
        self._words = words
        self._ports = frozenset(ports)
        self._sockets: list[socket.socket] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, net: int) -> None:
        """Listen in the network namespace `net`."""

        def make() -> list[socket.socket]:
            setns(net, CLONE_NEWNET)
            return [socket.socket(family, socket.SOCK_RAW, PROTOCOL) for family in _FAMILIES]

        self._sockets = apart(make)
        self._loop = asyncio.get_running_loop()
        for sock in self._sockets:
            sock.setblocking(False)
            self._loop.add_reader(sock.fileno(), self._read, sock)

    def _read(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            packet, source = sock.recvfrom(65536)
            chunk = decode(_payload(sock.family, packet))
            if chunk is not None and chunk.kind == _INIT:
                sock.sendto(encode(self._answer(chunk, source[0])), (source[0], 0))

    def _answer(self, init: Chunk, source: str) -> Chunk:
        back = (init.destination_port, init.source_port, init.initiate_tag)
        if init.destination_port not in self._ports:
            return Chunk(*back, _ABORT)
        return Chunk(*back, _INIT_ACK, 1, self._words(source.partition("%")[0]))

    def close(self) -> None:
        """Stop answering and let go of the namespace."""
        for sock in self._sockets:
            if self._loop is not None:
                self._loop.remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()


async def ask(sock: socket.socket, destination: str, port: int) -> bytes:
    """Ask a server and return its words; asks again until somebody answers.

    Errors that ICMP reports reach every raw socket with the same peer: one question after the other, please.

    Args:
        sock: a non-blocking raw socket in the namespace that asks.
        destination: the server's address.
        port: the server's port.

    Raises:
        ConnectionRefusedError: the answer was ABORT, or ICMP port unreachable.
    """
    loop = asyncio.get_running_loop()
    own = _EPHEMERAL[int.from_bytes(os.urandom(4), "big") % len(_EPHEMERAL)]
    tag = int.from_bytes(os.urandom(4), "big") | 1
    init = encode(Chunk(own, port, 0, _INIT, tag))
    sock.connect((str(ip_address(destination)), 0))
    while True:
        with contextlib.suppress(PermissionError):  # dropped by a packet filter here, which may refuse it too
            await loop.sock_sendall(sock, init)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ASK_SECONDS):
                return await _await_answer(sock, own, tag)


async def _await_answer(sock: socket.socket, own: int, tag: int) -> bytes:
    loop = asyncio.get_running_loop()
    while True:
        chunk = decode(_payload(sock.family, await loop.sock_recv(sock, 65536)))
        if chunk is None or (chunk.destination_port, chunk.tag) != (own, tag):
            continue
        if chunk.kind == _ABORT:
            raise ConnectionRefusedError(111, "the server answers ABORT")
        return chunk.cookie
