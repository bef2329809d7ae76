"""A Service of echo pods, and clients that use it all the while that a test changes things.

The clients remember what became of it. They run on the lab's loop. Nothing here decides what is right: the
test reads the records.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import socket
import struct
import time
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from lab import echo
from lab.echo import client_socket
from lab.namespaces import CLONE_NEWNET, apart, setns
from tests.functional.lab_cluster import NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

    from tests.functional.lab_cluster import LabCluster

PORT = 80
"""Of the Service, for TCP and UDP."""
PATIENCE = 5.0
"""A connection that is not answered for so many seconds has failed."""
_PAUSE = 0.02
_AT_ONCE = 50
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
    _sockets: dict[Client, list[socket.socket]] = field(default_factory=dict)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Go on until stopped; returns when the last connection has ended."""
        begin = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number, client in enumerate(itertools.cycle(self.clients)):
                group.create_task(self._connect(client, self._socket(client), begin))
                wait = begin + (number + 1) / self.rate - time.monotonic()
                await asyncio.sleep(max(wait, 0))
                if self._stop.is_set():
                    break
        for sock in itertools.chain.from_iterable(self._sockets.values()):
            sock.close()

    def _socket(self, client: Client) -> socket.socket:
        """A new socket; many are made at once, as each time costs a thread that enters the namespace."""
        ready = self._sockets.setdefault(client, [])
        if not ready:
            ready += _stream_sockets(client, _AT_ONCE)
        return ready.pop()

    def stop(self) -> None:
        """Begin no more connections; to be called on the loop."""
        self._stop.set()

    async def _connect(self, client: Client, sock: socket.socket, begin: float) -> None:
        loop = asyncio.get_running_loop()
        at = time.monotonic()
        words = f"{client.name} to {client.address} at {at - begin:.2f} s"
        with sock:
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
            self.repeated.append(f"{words}: answered after {time.monotonic() - at:.2f} s by {answer!r}")
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


def _stream_sockets(client: Client, count: int) -> list[socket.socket]:
    """Unconnected non-blocking TCP sockets of this client."""

    def make() -> list[socket.socket]:
        setns(client.net, CLONE_NEWNET)
        family = socket.AF_INET if client.version == 4 else socket.AF_INET6
        return [socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) for _ in range(count)]

    return apart(make)


class Load(Protocol):
    """What `going` lets run."""

    def run(self) -> Coroutine[Any, Any, None]:
        """Go on until stopped."""

    def stop(self) -> None:
        """To be called on the loop."""


@contextlib.contextmanager
def going(lab: LabCluster, *loads: Load) -> Iterator[None]:
    """Let these run all the while."""
    futures = [lab.start(load.run()) for load in loads]
    try:
        yield
    finally:
        for load in loads:
            lab.call(load.stop)
        for future in futures:
            future.result(30)


@contextlib.contextmanager
def offered(lab: LabCluster, name: str) -> Iterator[list[str]]:
    """A dual-stack Service and its ClusterIPs; it and its pods are deleted in the end."""
    storage = lab.cluster.storage
    services, pods = (storage.catalogue.named(plural) for plural in ("services", "pods"))
    ports = [
        {"name": protocol.lower(), "protocol": protocol, "port": PORT, "targetPort": echo.PORT}
        for protocol in ("TCP", "UDP")
    ]
    spec = {"selector": {"app": name}, "ipFamilyPolicy": "RequireDualStack", "ports": ports}
    item = {"metadata": {"name": name}, "spec": spec}
    made = lab.call(lambda: storage.create(services, NAMESPACE, item))

    def delete() -> None:
        storage.delete(services, NAMESPACE, name)
        for pod in storage.list(pods, NAMESPACE):
            if (pod["metadata"].get("labels") or {}).get("app") == name:
                storage.delete(pods, NAMESPACE, pod["metadata"]["name"], grace=0)

    try:
        yield made["spec"]["clusterIPs"]
    finally:
        lab.call(delete)


def add_backend(lab: LabCluster, service: str, name: str, node: str, drain: float = 0) -> None:
    """Create a pod of the Service and wait until it serves; once deleted it serves on for `drain` seconds."""
    hook = {"preStop": {"sleep": {"seconds": drain}}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": service}},
        "spec": {"nodeName": node, "containers": [{"name": "echo", "image": "echo", "lifecycle": hook}]},
    }
    lab.call(lambda: lab.cluster.apply(pod))
    lab.wait(lambda: serves(lab, name), f"{name} serves")


def serves(lab: LabCluster, name: str) -> bool:
    """Whether the pod is Ready; one that is being deleted may be."""
    conditions = lab.pods().get(name, {}).get("status", {}).get("conditions", [])
    return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions)


def clients(lab: LabCluster, names: Sequence[str], addresses: Sequence[str]) -> list[Client]:
    """Each of these pods and nodes as a client of each ClusterIP."""
    nets = {name: lab.call(lambda name=name: lab.cluster.network_of(name)) for name in names}  # type: ignore[misc]
    return [
        Client(name, nets[name], ip_address(address).version, address, PORT)
        for name in names
        for address in addresses
    ]


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error))
