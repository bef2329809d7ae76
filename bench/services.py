"""Services from the API to what a new connection sees, Weft and the real kube-proxy beside each other.

One API server, the lab's, with the same objects for both; each has a node of its own. A change is timed from
its write to the start of the first connection from the node that reaches the new backend, connections being
made all the time. While Weft is measured kube-proxy is stopped (SIGSTOP), for it would take the processor;
Weft goes on while kube-proxy is measured. Rounds alternate.

At 1,000 and 10,000 Services; other numbers: `SERVICES=30000 python -m bench services` (kube-proxy then needs
minutes for a change).
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench import service_objects as objects
from bench.figures import Figure, table
from bench.kube_proxy import KubeProxy
from bench.lab_node import one_node, processor_seconds, resident_kibibytes
from bench.service_changes import counts_wanted
from bench.tables import percentile
from lab.namespaces import descriptor_path
from lab.underlay import ip_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from typing import Any

    from bench.tables import Table
    from lab.cluster import Cluster
    from lab.node import Node

COUNTS = (1000, 10_000)
ROUNDS, CHANGES_EACH = 3, 40
"""Rounds of single changes: so many of Weft's, then one of each kind of kube-proxy's."""
CHURN_PART, CHURN_SECONDS = 0.01, 15.0
BACKENDS = ("192.0.2.10", "192.0.2.11")
"""The two live backends, outside of the cluster."""
PROGRAM = Path(__file__).with_name("service_probe.py")
CHANGE_BOUND, LOAD_BOUND, CHURN_BOUND_MS = 100.0, 10.0, 20.0


@dataclass(slots=True)
class Seen:
    """What was measured of one of the two; seconds, but for memory in MiB."""

    load: float = 0.0
    moved: list[float] = field(default_factory=list)
    added: list[float] = field(default_factory=list)
    churn: list[float] = field(default_factory=list)
    load_processor: float = 0.0
    churn_processor: float = 0.0
    memory: float = 0.0


def run() -> Iterator[Table]:
    """Measure at each number of Services in a lab of its own."""
    from tests.e2e.cluster.build import kubernetes

    program = kubernetes() / "kube-proxy"
    for count in counts_wanted(COUNTS):
        yield compared(count, *asyncio.run(_measure(count, program)))


def compared(count: int, weft: Seen, proxy: Seen) -> Table:
    """Return all figures of one number of Services."""

    def both(
        what: str, of: Callable[[Seen], float], unit: str = "s", scale: float = 1.0, **bounds: float
    ) -> Figure:
        return Figure(what, scale * of(weft), unit, "kube-proxy", scale * of(proxy), **bounds)

    figures = [both("first load, from the program's start", lambda it: it.load, at_least=LOAD_BOUND)]
    for what, times in (
        ("one endpoint moved", (weft.moved, proxy.moved)),
        ("one Service added", (weft.added, proxy.added)),
        ("endpoint moved in 1 % churn a second", (weft.churn, proxy.churn)),
    ):
        middles, lates = ([1e3 * percentile(each, part) for each in times] for part in (0.5, 0.99))
        figures += [
            Figure(f"{what}, median", middles[0], "ms", "kube-proxy", middles[1], at_least=CHANGE_BOUND),
            Figure(f"{what}, p99", lates[0], "ms", "kube-proxy", lates[1]),
        ]
    late = 1e3 * percentile(weft.churn, 0.99)
    figures += [
        Figure("that p99 against its bound", late, "ms", at_most=CHURN_BOUND_MS),
        both("processor time of the first load", lambda it: it.load_processor),
        both("processor share in churn", lambda it: it.churn_processor, "%", 100.0),
        both("memory afterwards", lambda it: it.memory, "MiB"),
    ]
    kinds = (f"{len(weft.moved)}, {len(weft.added)}, {len(weft.churn)}", f"{len(proxy.moved)}")
    remark = f"Weft changed {kinds[0]} times (moved, added, in churn), kube-proxy {kinds[1]} times"
    return table(f"{count} Services with {objects.ENDPOINTS} endpoints each", figures, remark)


async def _measure(count: int, program: Path) -> tuple[Seen, Seen]:
    options = {
        "family": "ipv4",
        "underlay_family": "ipv4",
        "routes": "default",
        "service_cidrs": {4: objects.SERVICE_CIDR},
    }
    async with AsyncExitStack() as stack:
        cluster, node = await stack.enter_async_context(one_node(**options))
        other = await cluster.add_node("proxied", daemon=False)
        proxy = KubeProxy(program, other, cluster.options.state)
        stack.push_async_callback(proxy.stop)
        bench = _Bench(cluster, count)
        # What a node does not translate is lost: no other node may do it instead.
        await ip_batch(cluster.underlay.path, [f"route del {objects.SERVICE_CIDR}"])
        await _outside(stack, cluster)
        bench.fill()
        return await _alternate(stack, bench, node, other, proxy)


async def _alternate(
    stack: AsyncExitStack, bench: _Bench, node: Node, other: Node, proxy: KubeProxy
) -> tuple[Seen, Seen]:
    ours, theirs = Seen(), Seen()
    our_probe, their_probe = await _Probe.start(stack, node), await _Probe.start(stack, other)
    await node.daemon.stop()
    await node.run("nft", "delete", "table", "ip", "weft")
    ours.load = await bench.loaded(our_probe, node.start_daemon)
    ours.load_processor = processor_seconds(node.daemon.pid)
    theirs.load = await bench.loaded(their_probe, proxy.start)
    theirs.load_processor = processor_seconds(proxy.pid)
    for _ in range(ROUNDS):
        proxy.pause()
        for _ in range(CHANGES_EACH):
            ours.moved.append(await bench.move(our_probe))
            ours.added.append(await bench.add(our_probe))
        proxy.resume()
        await proxy.idle()
        theirs.moved.append(await bench.move(their_probe))
        theirs.added.append(await bench.add(their_probe, proxy.idle))
        await proxy.idle()
    proxy.pause()
    ours.churn, ours.churn_processor = await bench.churn(our_probe, node.daemon.pid)
    proxy.resume()
    await proxy.idle()
    theirs.churn, theirs.churn_processor = await bench.churn(their_probe, proxy.pid)
    ours.memory, theirs.memory = (resident_kibibytes(pid) / 1024 for pid in (node.daemon.pid, proxy.pid))
    return ours, theirs


class _Bench:
    """The objects, and the changes of them."""

    def __init__(self, cluster: Cluster, count: int) -> None:
        self._cluster = cluster
        self._count = count
        self._next = count
        self._at = 0
        self._choice = random.Random(count)

    def fill(self) -> None:
        """Make all objects: the first, the middle and the last Service have a live backend."""
        for number in range(self._count):
            addresses = self._live() if number in self._probed() else objects.endpoints_of(number)
            self._cluster.apply(objects.endpoint_slice(number, addresses))
            self._cluster.apply(objects.service(number))
        gc.collect()
        gc.freeze()

    def _probed(self) -> tuple[int, ...]:
        return 0, self._count // 2, self._count - 1

    def _live(self) -> list[str]:
        return [BACKENDS[self._at]]

    async def loaded(self, probe: _Probe, start: Callable[[], Coroutine[Any, Any, None]]) -> float:
        """Start a program; returns after how long all probed Services are served."""
        began = time.monotonic()
        await start()
        return max([await probe.reaches(number, BACKENDS[0]) for number in self._probed()]) - began

    async def move(self, probe: _Probe) -> float:
        """Move the endpoint of Service 0; returns how long it takes."""
        self._at = 1 - self._at
        addresses = self._live()
        async with asyncio.TaskGroup() as group:
            seen = group.create_task(probe.reaches(0, addresses[0]))
            await asyncio.sleep(0.01)
            began = time.monotonic()
            self._replace(0, addresses)
        return max(0.0, seen.result() - began)

    async def add(self, probe: _Probe, idle: Callable[[], Coroutine[Any, Any, None]] | None = None) -> float:
        """Add a Service; returns how long it takes.

        Its slice is there before, and taken note of where `idle` waits for that: two changes at once would
        cost kube-proxy a pause between two rounds.
        """
        number, self._next = self._next, self._next + 1
        self._cluster.apply(objects.endpoint_slice(number, [BACKENDS[0]]))
        if idle is not None:
            await idle()
        async with asyncio.TaskGroup() as group:
            seen = group.create_task(probe.reaches(number, BACKENDS[0]))
            await asyncio.sleep(0.01)
            began = time.monotonic()
            self._cluster.apply(objects.service(number))
        return max(0.0, seen.result() - began)

    async def churn(self, probe: _Probe, pid: int) -> tuple[list[float], float]:
        """Change many Services each second; returns how long moves take then, and a processor share."""
        times: list[float] = []
        began, used = time.monotonic(), processor_seconds(pid)
        async with asyncio.TaskGroup() as group:
            changing = group.create_task(self._change_on())
            while time.monotonic() < began + CHURN_SECONDS:
                times.append(await self.move(probe))
                await asyncio.sleep(self._choice.uniform(0.01, 0.04))
            changing.cancel()
        share = (processor_seconds(pid) - used) / (time.monotonic() - began)
        return times, share

    async def _change_on(self) -> None:
        began, done = time.monotonic(), 0
        while True:
            await asyncio.sleep(0.005)
            due = int((time.monotonic() - began) * CHURN_PART * self._count)
            while done < due:
                done += 1
                number = self._choice.randrange(1, self._count)
                if number not in self._probed():
                    self._replace(number, objects.endpoints_of(number, replaced=done))

    def _replace(self, number: int, addresses: list[str]) -> None:
        storage = self._cluster.storage
        item = objects.endpoint_slice(number, addresses)
        metadata = item["metadata"]
        storage.update(
            storage.catalogue.named("endpointslices"),
            metadata["namespace"],
            metadata["name"],
            lambda _: item,
        )


class _Probe:
    """A process in a node that makes connections."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, stack: AsyncExitStack, node: Node) -> _Probe:
        """Start it; it ends with the stack."""
        command = node.namespaces.command(sys.executable, str(PROGRAM), "watch")
        return cls(await _program(stack, command))

    async def reaches(self, number: int, backend: str) -> float:
        """Return when the first connection to a Service that reached a backend began, by time.monotonic()."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{objects.cluster_ip(number)} {objects.PORT} {backend}\n".encode())
        answer = (await process.stdout.readline()).decode().strip()
        if not answer or answer == "never":
            raise TimeoutError(f"Service {number} never reached {backend}")
        return float(answer)


async def _outside(stack: AsyncExitStack, cluster: Cluster) -> None:
    """Have the live backends answer in the world outside."""
    space = descriptor_path(cluster.underlay.outside)
    await ip_batch(space, [f"addr add {address}/24 dev eth0" for address in BACKENDS])
    command = [
        "nsenter",
        f"--net={space}",
        *("setpriv", "--pdeathsig", "KILL", "--"),
        *(sys.executable, str(PROGRAM), "serve", str(objects.TARGET_PORT)),
    ]
    await _program(stack, command)


async def _program(stack: AsyncExitStack, command: list[str]) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)

    async def end() -> None:
        process.kill()
        await process.wait()

    stack.push_async_callback(end)
    return process
