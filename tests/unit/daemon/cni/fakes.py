"""A kernel in memory and a writer over it, with the interfaces of datapath's, for tests of daemon.cni."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from datapath.attachment import DOOMED_GROUP, Attached, Detached
from datapath.errors import AttachError, InterfaceExistsError, NamespaceGoneError
from datapath.nft.hostports import host_port_elements, read_host_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from datapath.attachment import Attachment, AttachRequest
    from datapath.desired import SetElements, SetKey
    from datapath.nft.hostports import HostPort

T = TypeVar("T")


@dataclass
class FakeLink:
    """A host veth; `peer` is namespace path and interface of its other end."""

    name: str
    peer: tuple[str, str]
    mtu: int = 1450
    alias: str = ""
    group: int = 0
    kind: str = "veth"
    addresses: tuple[bytes, ...] = ()
    ports: tuple[SetElements, ...] = ()


@dataclass
class FakeKernel:
    """Namespaces and links. `step` is called between any two changes and may raise."""

    namespaces: set[str] = field(default_factory=set)
    table: dict[str, FakeLink] = field(default_factory=dict)
    step: Callable[[], None] = lambda: None
    faults: tuple[str, ...] = ()
    broken: str = ""
    calls: list[str] = field(default_factory=list)
    unsettled: int = 0

    def expect(self, requests: Sequence[AttachRequest]) -> None:
        self.calls.append(f"expect {len(requests)}")
        self.step()

    def attach(self, request: AttachRequest) -> Attached:
        self.calls.append(f"attach {request.host_link}")
        self.step()
        if request.netns not in self.namespaces:
            raise NamespaceGoneError(f"there is no network namespace at {request.netns}")
        peer = (request.netns, request.ifname)
        if any(link.peer == peer and link.group != DOOMED_GROUP for link in self.table.values()):
            raise InterfaceExistsError(f"{request.netns} has an interface {request.ifname} already")
        # A kill at any of these steps leaves what was done before it. What ends the wiring is one send, alias
        # first: no kill comes in between, but the kernel may refuse the rest of it.
        ports = host_port_elements(request.addresses, request.ports)
        link = self.table[request.host_link] = FakeLink(request.host_link, peer, request.mtu, ports=ports)
        self.step()
        link.alias = request.alias
        if self.broken:
            self.step()
            del self.table[request.host_link]
            raise AttachError(self.broken)
        link.addresses = request.addresses
        self.step()
        self.unsettled += 1
        return Attached(1, 2, 0.001, 0.002, 0.003)

    def settle(self) -> None:
        self.unsettled = 0

    def detach(self, attachment: Attachment) -> Detached:
        self.calls.append(f"detach {attachment.host_link}")
        self.step()
        link = self.table.get(attachment.host_link)
        if link is None:
            return Detached(False, 0.0)
        if self.broken:
            raise AttachError(self.broken)
        link.group, link.alias, link.addresses, link.ports = DOOMED_GROUP, "", (), ()
        self.step()
        del self.table[attachment.host_link]
        self.step()
        return Detached(True, 0.0)

    def inspect(self, attachment: Attachment) -> tuple[str, ...]:
        self.calls.append(f"inspect {attachment.host_link}")
        return self.faults

    def links(self) -> Sequence[FakeLink]:
        return tuple(self.table.values())

    def host_ports(self) -> dict[bytes, tuple[HostPort, ...]]:
        found: dict[SetKey, dict[bytes, bytes]] = {}
        for link in self.table.values():
            for each in link.ports:
                held = found.setdefault(each.key, {})
                assert held.keys().isdisjoint(each.elements), "two pods hold one host port"
                held.update(each.elements)
        return read_host_ports(found)

    def lives(self, path: str) -> bool:
        return path in self.namespaces

    def remove_namespace(self, path: str) -> None:
        """As the kernel does it: the veths of a namespace go with it, and so do their other ends."""
        self.namespaces.discard(path)
        for name in [link.name for link in self.table.values() if link.peer[0] == path]:
            del self.table[name]


class FakeWriter:
    """Runs jobs on one thread, in the order in which they come, to their end."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self._thread = ThreadPoolExecutor(1)

    async def attachment(self, job: Callable[[FakeKernel], T]) -> T:
        future = asyncio.get_running_loop().run_in_executor(self._thread, job, self.kernel)
        return await asyncio.shield(future)

    def close(self) -> None:
        self._thread.shutdown()
