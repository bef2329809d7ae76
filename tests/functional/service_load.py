"""Clients that use a Service all the while that a test changes things, and remember what became of it.

They run on the lab's loop. Nothing here decides what is right: the test reads the records.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from lab.echo import client_socket

if TYPE_CHECKING:
    from collections.abc import Sequence

PATIENCE = 5.0
"""A connection that is not answered for so many seconds has failed."""
_PAUSE = 0.02
_RETRANSMITS = struct.Struct("=100xI")
"""tcpi_total_retrans in struct tcp_info of include/uapi/linux/tcp.h."""


class Client(NamedTuple):
    """Who asks whom: a name for reports, the network namespace that asks, and the Service's address."""

    name: str
    net: int
    version: int
    address: str
    port: int


class Served(NamedTuple):
    """An answer: when (monotonic seconds), and whose."""

    at: float
    by: str


@dataclass(slots=True)
class Connections:
    """New TCP connections at a steady rate, each asking once; the clients take turns."""

    clients: Sequence[Client]
    rate: float
    """Connections a second."""
    served: list[Served] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """In words: which, when and how."""
    repeated: list[str] = field(default_factory=list)
    """Those of which packets had to be sent again: some were dropped on the way."""
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Go on until stopped; returns when the last connection has ended."""
        begin = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number, client in enumerate(itertools.cycle(self.clients)):
                group.create_task(self._connect(client, begin))
                wait = begin + (number + 1) / self.rate - time.monotonic()
                await asyncio.sleep(max(wait, 0))
                if self._stop.is_set():
                    return

    def stop(self) -> None:
        """Begin no more connections; to be called on the loop."""
        self._stop.set()

    async def _connect(self, client: Client, begin: float) -> None:
        loop = asyncio.get_running_loop()
        at = time.monotonic()
        words = f"{client.name} to {client.address} at {at - begin:.2f} s"
        with client_socket(client.net, client.version, "tcp") as sock:
            try:
                async with asyncio.timeout(PATIENCE):
                    await loop.sock_connect(sock, (client.address, client.port))
                    await loop.sock_sendall(sock, b"?\n")
                    answer = await loop.sock_recv(sock, 100)
            except TimeoutError:
                self.failed.append(f"{words}: no answer")
                return
            except OSError as error:
                self.failed.append(f"{words}: {_name(error)}")
                return
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RETRANSMITS.size)
        if not answer:
            self.failed.append(f"{words}: closed without an answer")
            return
        if _RETRANSMITS.unpack(info)[0]:
            self.repeated.append(f"{words}: answered after {time.monotonic() - at:.2f} s")
        self.served.append(Served(at, answer.decode().split()[0]))


@dataclass(slots=True)
class Datagrams:
    """A UDP client that keeps its port and asks again and again, answered or not."""

    client: Client
    served: list[Served] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    """When, in monotonic seconds, it was refused."""
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Go on until stopped."""
        loop = asyncio.get_running_loop()
        with client_socket(self.client.net, self.client.version, "udp") as sock:
            sock.connect((self.client.address, self.client.port))
            while not self._stop.is_set():
                try:
                    await loop.sock_sendall(sock, b"?")
                    async with asyncio.timeout(_PAUSE):
                        answer = await loop.sock_recv(sock, 100)
                    self.served.append(Served(time.monotonic(), answer.decode().split()[0]))
                    await asyncio.sleep(_PAUSE)
                except TimeoutError:
                    continue
                except (ConnectionRefusedError, PermissionError):  # the latter in the node that refuses
                    self.refused.append(time.monotonic())
                    await asyncio.sleep(_PAUSE)

    def stop(self) -> None:
        """Ask no more; to be called on the loop."""
        self._stop.set()

    def last(self) -> str:
        """Who answered last."""
        return self.served[-1].by if self.served else ""


@dataclass(slots=True)
class Conversation:
    """One long-lived TCP connection that exchanges a line every few milliseconds."""

    client: Client
    exchanged: int = 0
    broken: str = ""
    """Why it broke, if it did."""
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Go on until stopped or broken."""
        loop = asyncio.get_running_loop()
        with client_socket(self.client.net, self.client.version, "tcp") as sock:
            try:
                await loop.sock_connect(sock, (self.client.address, self.client.port))
                while not self._stop.is_set():
                    async with asyncio.timeout(PATIENCE):
                        await loop.sock_sendall(sock, b"?\n")
                        if not await loop.sock_recv(sock, 100):
                            self.broken = "closed"
                            return
                    self.exchanged += 1
                    await asyncio.sleep(_PAUSE)
            except TimeoutError:
                self.broken = "no answer"
            except OSError as error:
                self.broken = _name(error)

    def stop(self) -> None:
        """Exchange no more; to be called on the loop."""
        self._stop.set()


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error))
