"""Connections to services: who answers, what source address the answering side sees, or how it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple
from typing import Protocol as Interface

from datapath.nft.frontends import Backend
from datapath.nft.rules import Protocol
from datapath.text import parse_address
from tests.functional.nft.world import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.functional.nft.spaces import Inside, Space

PATIENCE = 2.0
"""For what should come; it comes in less than a millisecond."""
SILENCE = 0.3
"""For what should not come. A refusal comes as fast as an answer."""
KINDS = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}


class Fate(Enum):
    """How a connection ends that nobody answers."""

    REFUSED = "refused"
    DROPPED = "dropped"


class Met(NamedTuple):
    """Who answered, and the address that it saw."""

    server: Server
    source: str


class Place(Interface):
    """Where servers may be: a pod, or something like it."""

    @property
    def space(self) -> Space: ...

    def address(self, family: int) -> str: ...


class Server:
    """A port of a pod."""

    def __init__(self, place: Place, port: int, protocol: int, family: int) -> None:
        self.address, self.port, self.protocol = place.address(family), port, protocol
        self.socket = place.space.socket(FAMILIES[family], KINDS[Protocol(protocol)])
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind((self.address, port))
        if protocol == Protocol.TCP:
            self.socket.listen(256)

    def __repr__(self) -> str:
        return f"{self.address}:{self.port}"

    @property
    def backend(self) -> Backend:
        return Backend(parse_address(self.address), self.port)


def backends(servers: Sequence[Server]) -> tuple[Backend, ...]:
    """The servers as a balance wants them: sorted."""
    return tuple(sorted(each.backend for each in servers))


class Servers:
    """Servers by where they are, closed in the end."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.all: list[Server] = []

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, place: Place, family: int, *ports: int, protocol: int = Protocol.TCP) -> list[Server]:
        """Start servers in a pod, at these ports."""
        made = [Server(place, port, protocol, family) for port in ports]
        for each in made:
            self._stack.callback(each.socket.close)
        self.all += made
        return made

    def call(
        self,
        client: Inside,
        target: str,
        port: int,
        *,
        protocol: int = Protocol.TCP,
        source: str = "",
        patience: float = PATIENCE,
        mark: int = 0,
    ) -> Met | Fate:
        """Connect from somewhere to somewhere; an answer has to come back too."""
        family = socket.AF_INET6 if ":" in target else socket.AF_INET
        with client.socket(family, KINDS[Protocol(protocol)]) as caller:
            if mark:
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            if source:
                caller.bind((source, 0))
            caller.settimeout(patience)
            if protocol == Protocol.TCP:
                return self._tcp(caller, (target, port))
            return self._udp(caller, (target, port), patience)

    def _tcp(self, caller: socket.socket, target: tuple[str, int]) -> Met | Fate:
        began = time.monotonic()
        try:
            caller.connect(target)
        except ConnectionRefusedError:
            # A SYN is repeated after a second: this answers the first one.
            assert time.monotonic() - began < 1
            return Fate.REFUSED
        except TimeoutError:
            return Fate.DROPPED
        (server,) = self._ready(PATIENCE, Protocol.TCP)
        connection, peer = server.socket.accept()
        with connection:
            connection.settimeout(PATIENCE)
            caller.sendall(b"question")
            assert connection.recv(100) == b"question"
            connection.sendall(b"answer")
            assert caller.recv(100) == b"answer"
            # Reset, so that nothing lingers: ports are used again and again.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        return Met(server, peer[0])

    def _udp(self, caller: socket.socket, target: tuple[str, int], patience: float) -> Met | Fate:
        token = os.urandom(8)
        caller.connect(target)
        try:
            caller.send(token)
        except ConnectionRefusedError:
            return Fate.REFUSED
        except PermissionError:
            # Refused or dropped on its way out; an error that was sent back is there already.
            return Fate.REFUSED if _error(caller) == errno.ECONNREFUSED else Fate.DROPPED
        deadline = time.monotonic() + patience
        while (left := deadline - time.monotonic()) > 0:
            found = self._ready(left, Protocol.UDP, caller)
            for server in found:
                data, peer = server.socket.recvfrom(100)
                if data == token:
                    server.socket.sendto(b"answer", peer)
                    assert caller.recv(100) == b"answer"
                    return Met(server, peer[0])
            if not found and _error(caller) == errno.ECONNREFUSED:
                return Fate.REFUSED
        return Fate.DROPPED

    def _ready(self, seconds: float, protocol: int, caller: socket.socket | None = None) -> list[Server]:
        poll = select.poll()
        watched = {each.socket.fileno(): each for each in self.all if each.protocol == protocol}
        for descriptor in watched:
            poll.register(descriptor, select.POLLIN)
        if caller is not None:
            poll.register(caller, 0)
        ready = poll.poll(1000 * seconds)
        return [watched[descriptor] for descriptor, _ in ready if descriptor in watched]


def _error(caller: socket.socket) -> int:
    return caller.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
