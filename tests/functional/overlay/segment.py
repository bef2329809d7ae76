"""Nodes as network namespaces on one bridge, each with a real writer and reconciler, and their pods."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from typing import TYPE_CHECKING

from daemon.cluster.model import Node, Prefix
from daemon.cluster.store import Store
from daemon.findings import Findings
from daemon.metrics import Metrics
from daemon.reconcile import Reconciler
from daemon.serviceprogress import Progress
from daemon.services import Services
from datapath import text
from datapath.attachment import Attachment, AttachRequest
from datapath.kernel import attachment_fragment, attachment_key
from datapath.text import parse_address, parse_prefix
from datapath.writer import Writer
from tests.functional.nft.spaces import Space

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from daemon.config import Config

_numbers = itertools.count(1)
PING_SECONDS = 0.3
REMEMBERED = ("host_link", "netns", "ifname", "mac", "mtu", "addresses")


def space(purpose: str) -> Space:
    """A namespace of its own name."""
    return Space(f"weft-t-{os.getpid()}-{next(_numbers)}-{purpose}")


def node(name: str, *, ips: Iterable[str], cidrs: Iterable[str]) -> Node:
    """A Node object."""
    return Node(
        name=name,
        uid=f"uid-{name}",
        internal_ips=tuple(parse_address(each) for each in ips),
        pod_cidrs=tuple(Prefix(*parse_prefix(each)) for each in cidrs),
    )


class Pod:
    """A pod: its namespace and addresses by length."""

    def __init__(self, inside: Space, addresses: tuple[bytes, ...]) -> None:
        self.space = inside
        self.addresses = {len(each): each for each in addresses}


class Member:
    """One node with its writer and reconciler; the store is its own, as every daemon has one."""

    def __init__(self, name: str, config: Config) -> None:
        self.name = name
        self.space = space(name)
        self.store = Store()
        self.config = config
        self.pods: list[Pod] = []
        self.requests: list[AttachRequest] = []
        self.restart()

    def restart(self) -> None:
        """Make what a new process would; the kernel and the store stay."""
        self.findings = Findings()
        descriptor = self.space.descriptor
        self.writer = Writer(namespace=descriptor, report=lambda refused: self.reconciler.refused(refused))
        self.reconciler = Reconciler(
            store=self.store,
            writer=self.writer,
            config=self.config,
            node_name=self.name,
            findings=self.findings,
            namespace=descriptor,
        )
        self.services = Services(
            store=self.store,
            writer=self.writer,
            config=self.config,
            node_name=self.name,
            local=lambda: self.reconciler.local,
            findings=self.findings,
            progress=Progress(Metrics()),
        )
        self._stack = contextlib.AsyncExitStack()

    async def start(self, *, adopt: bool = True) -> None:
        """Run the writer and the reconciler until `stop`; returns when the kernel is in line."""
        await self._stack.enter_async_context(running(self.writer.run()))
        local = await self.reconciler.prepare()
        assert local is not None
        if adopt:
            known = [Attachment(*(getattr(each, name) for name in REMEMBERED)) for each in self.requests]
            await self.writer.adopt(
                {attachment_key(each.host_link): attachment_fragment(each, local.sources) for each in known}
            )
        await self.services.prepare(local)
        await self._stack.enter_async_context(running(self.reconciler.run()))
        await self._stack.enter_async_context(running(self.services.run()))
        async with asyncio.timeout(10):
            await self.reconciler.wait_synced()

    async def stop(self) -> None:
        """Stop as the daemon does: what is in the kernel stays."""
        await self._stack.aclose()

    def close(self) -> None:
        for pod in self.pods:
            pod.space.close()
        self.space.close()

    async def pod(self, number: int = 10) -> Pod:
        """Wire a pod that has this number in each podCIDR."""
        local = self.reconciler.local
        assert local is not None
        inside = space(f"{self.name}-pod")
        addresses = tuple(
            (int.from_bytes(cidr.address, "big") + number).to_bytes(len(cidr.address), "big")
            for cidr in local.pod_cidrs
        )
        request = AttachRequest(
            netns=f"/run/netns/{inside.name}",
            ifname="eth0",
            host_link=f"weft{number:011x}",
            mac=bytes((2, 0, 0, 0, 1, number)),
            mtu=local.mtu,
            addresses=addresses,
            sources=local.sources,
            alias=f"pod {number}",
        )
        await self.writer.attachment(lambda kernel: kernel.attach(request))
        self.requests.append(request)
        made = Pod(inside, addresses)
        self.pods.append(made)
        return made

    async def differences(self) -> list[str]:
        """What `weftctl diff` would show."""
        return [" ".join(each) for each in await self.writer.difference()]


class Segment:
    """Nodes on one bridge."""

    def __init__(self) -> None:
        self.bridge = space("bridge")
        self.bridge.ip("link add br0 type bridge", "link set br0 up")
        self.members: dict[str, Member] = {}

    def add(self, name: str, *, addresses: Iterable[str], config: Config, mtu: int = 1500) -> Member:
        """Make a node with addresses (with prefix lengths) on its eth0 and strict reverse path filtering."""
        member = Member(name, config)
        self.members[name] = member
        port = f"to-{name}"
        member.space.ip(f"link add eth0 type veth peer name {port} netns {self.bridge.name}")
        member.space.set(
            net__ipv4__conf__all__rp_filter="1",
            net__ipv4__conf__default__rp_filter="1",
            net__ipv4__conf__eth0__rp_filter="1",
            net__ipv6__conf__eth0__accept_dad="0",
        )
        self.bridge.ip(f"link set {port} master br0", f"link set {port} up mtu {mtu}")
        member.space.ip(f"link set eth0 up mtu {mtu}")
        self.address(member, addresses)
        return member

    @staticmethod
    def address(member: Member, addresses: Iterable[str]) -> None:
        member.space.ip(*(f"addr add {each} dev eth0 {'nodad' if ':' in each else ''}" for each in addresses))

    def publish(self, *nodes: Node) -> None:
        """Tell every member's store of these Nodes; all others are gone."""
        for member in self.members.values():
            member.store.nodes.replace({each.name: each for each in nodes})

    async def start(self) -> None:
        await asyncio.gather(*(member.start() for member in self.members.values()))

    async def stop(self) -> None:
        for member in self.members.values():
            await member.stop()

    def close(self) -> None:
        for member in self.members.values():
            member.close()
        self.bridge.close()


@contextlib.asynccontextmanager
async def running(body: Awaitable[None]) -> AsyncIterator[None]:
    """Run something that never ends beside the body; its failure ends the body."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(_await(body))
        try:
            yield
        finally:
            task.cancel()


async def _await(body: Awaitable[None]) -> None:
    await body


async def ping(pod: Space, address: bytes, *, source: bytes | None = None, size: int = 0) -> bool:
    """Whether one echo is answered."""
    command = ["ip", "netns", "exec", pod.name, "ping", "-n", "-c1", f"-W{PING_SECONDS}", "-q"]
    if source is not None:
        command += ["-I", text.address(source)]
    if size:
        command += ["-M", "do", "-s", str(size)]
    process = await asyncio.create_subprocess_exec(
        *command, text.address(address), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    return await process.wait() == 0


async def reaches(inside: Space, address: bytes, *, size: int = 0) -> bool:
    """Whether one of several echoes is answered: a machine that is busy drops one now and then."""
    for _ in range(5):
        if await ping(inside, address, size=size):
            return True
    return False


async def until(condition: Callable[[], Awaitable[bool]], *, within: float) -> float:
    """Wait until something holds; returns after how many seconds it did."""
    started = time.monotonic()
    while not await condition():
        assert time.monotonic() - started < within, f"not within {within} s"
        await asyncio.sleep(0.02)
    return time.monotonic() - started
