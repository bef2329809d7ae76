"""The tiny server in every pod and node, and the probe that asks it: who are you, and whom do you see?

One line of text answers everything: "NAME SOURCE-ADDRESS". Over UDP the answer is padded to the length of the
question, so that a full-size datagram tests the path both ways. All sockets of the lab live in one process: a
socket belongs to the network namespace it was made in, wherever it is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from lab.namespaces import CLONE_NEWNET, apart, setns

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lab.underlay import IpAddress

PORT = 8080
_PATIENCE = 4.0
_UDP_WAITS = (0.3, 0.7, 1.5, 1.5)
# include/uapi/linux/in.h and in6.h; not in Python's socket module before 3.14
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_DO = 10, 23, 2
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


class Bind(NamedTuple):
    """Where a server listens; the address "" is every address of both families."""

    protocol: str
    address: str
    port: int


def sockets_in(net: int, binds: Iterable[Bind]) -> list[socket.socket]:
    """Bound server sockets in the network namespace `net`; TCP ones listen already."""

    def make() -> list[socket.socket]:
        setns(net, CLONE_NEWNET)
        with contextlib.ExitStack() as undo:
            made = [undo.enter_context(_bound(bind)) for bind in binds]
            undo.pop_all()
        return made

    return apart(make)


def _bound(bind: Bind) -> socket.socket:
    version = ip_address(bind.address).version if bind.address else 6
    kind = socket.SOCK_STREAM if bind.protocol == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(_FAMILY[version], kind)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if version == 6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(bool(bind.address)))
    try:
        sock.bind((bind.address or "::", bind.port))
        if kind == socket.SOCK_STREAM:
            sock.listen(128)
    except OSError:
        sock.close()
        raise
    return sock


def _plain(source: str) -> str:
    address = ip_address(source.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, name: str) -> None:
        self.name = name
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self.transport is not None
        answer = f"{self.name} {_plain(addr[0])}\n".encode()
        self.transport.sendto(answer.ljust(len(data)), addr)


class Server:
    """Answers on some sockets until it is closed; `name` is what it answers with."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._servers: list[asyncio.Server] = []
        self._transports: list[asyncio.DatagramTransport] = []

    async def start(self, net: int, binds: Iterable[Bind]) -> None:
        """Listen in the network namespace `net`."""
        loop = asyncio.get_running_loop()
        for sock in sockets_in(net, binds):
            if sock.type == socket.SOCK_STREAM:
                self._servers.append(await asyncio.start_server(self._converse, sock=sock))
            else:
                transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self.name), sock=sock)
                self._transports.append(transport)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source = _plain(writer.get_extra_info("peername")[0])
        with contextlib.suppress(ConnectionError):
            while await reader.readline():
                writer.write(f"{self.name} {source}\n".encode())
                await writer.drain()
            writer.close()
            await writer.wait_closed()

    def close(self) -> None:
        """Stop answering and let go of the namespace."""
        for server in self._servers:
            server.close()
        for transport in self._transports:
            transport.close()
        self._servers.clear()
        self._transports.clear()


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a probe: the server's name and the source it saw, or the fault in words."""

    name: str = ""
    source: str = ""
    fault: str = ""


async def ask(
    net: int,
    destination: IpAddress,
    protocol: str,
    *,
    port: int = PORT,
    size: int = 0,
    patience: float = _PATIENCE,
) -> Answer:
    """Ask the server at `destination` from inside the network namespace `net`.

    Args:
        net: descriptor of the namespace that asks.
        destination: the server's address.
        protocol: "tcp" or "udp".
        port: the server's port.
        size: for UDP the length of the whole IP packet both ways, sent with fragmentation forbidden; 0 is
        small.
        patience: seconds after which there is no answer.
    """
    try:
        sock = client_socket(net, destination.version, protocol, exact=size > 0)
    except OSError as error:
        return Answer(fault=f"cannot make a socket: {error}")
    with sock:
        try:
            async with asyncio.timeout(patience):
                if protocol == "tcp":
                    line = await _ask_tcp(sock, str(destination), port)
                else:
                    line = await _ask_udp(sock, str(destination), port, _payload(destination.version, size))
        except TimeoutError:
            return Answer(fault="no answer")
        except OSError as error:
            return Answer(fault=errno.errorcode.get(error.errno or 0, str(error)))
    name, _, source = line.decode().strip().partition(" ")
    return Answer(name, source) if source else Answer(fault=f"strange answer {line!r}")


def _payload(version: int, size: int) -> int:
    """UDP payload of an IP packet of `size` bytes."""
    return max(1, size - (28 if version == 4 else 48))


def client_socket(net: int, version: int, protocol: str, *, exact: bool = False) -> socket.socket:
    """An unconnected non-blocking socket in the network namespace `net`; `exact` forbids fragmentation."""

    def make() -> socket.socket:
        setns(net, CLONE_NEWNET)
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        return socket.socket(_FAMILY[version], kind)

    sock = apart(make)
    sock.setblocking(False)
    if exact:
        level, option = (
            (socket.IPPROTO_IP, _IP_MTU_DISCOVER)
            if version == 4
            else (socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER)
        )
        sock.setsockopt(level, option, _PMTUDISC_DO)
    return sock


async def _ask_tcp(sock: socket.socket, destination: str, port: int) -> bytes:
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, (destination, port))
    await loop.sock_sendall(sock, b"?\n")
    return await loop.sock_recv(sock, 4096)


async def _ask_udp(sock: socket.socket, destination: str, port: int, length: int) -> bytes:
    """Ask, and ask again after growing waits: UDP may lose, and the first packet may wait for an address."""
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, (destination, port))
    for wait in _UDP_WAITS:
        # A packet filter of this host may drop it, which is no answer: it may refuse it by ICMP as well.
        with contextlib.suppress(PermissionError):
            await loop.sock_sendall(sock, b"?".ljust(length))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                answer = await loop.sock_recv(sock, 65536)
            if len(answer) < length:
                raise OSError(errno.EMSGSIZE, "the answer was cut")
            return answer
    raise TimeoutError
