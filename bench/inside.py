"""ADD and DEL inside the daemon, from the handler's entry to its reply, against the kernel's floor.

The daemon's own CNI service, IPAM and writer with the node's tables run in this process, in a network
namespace of their own, and requests are answered where they always are, on the writer's thread; no gRPC and
no runtime. Target: an ADD within 2.5 times the floor. Beside it, an ADD of a pod that is born closed in both
directions, on a node where policies isolate another pod already.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvloop

from bench.tables import comparison
from bench.wiring import NODE, PODS, WORKERS, Floor, node_and_pods, parallel_batches, request
from daemon import logs
from daemon.cluster.model import Prefix
from daemon.cni.attachments import Attachments
from daemon.cni.deletions import Deletions
from daemon.cni.server import GROUP, Asked
from daemon.cni.service import CniService
from daemon.collection import settle, slow_down
from daemon.config import Config
from daemon.metrics import Metrics
from datapath.desired import Fragment
from datapath.netlink.links import del_link
from datapath.netlink.transport import Socket
from datapath.nft.policy import closed_fragment
from datapath.nft.tables import TableOptions, node_tables
from datapath.policy import Direction
from datapath.text import parse_address
from datapath.writer import Writer
from ipam.allocator import Allocator
from ipam.store import Store
from weft_rpc.cni_pb2 import ExecuteRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from bench.tables import Table
    from daemon.cni.attachments import Kernel
    from datapath.desired import Address, FragmentKey

ROUNDS, BURSTS = 120, 7
SETTLE_SECONDS = 0.15
"""After each measurement: the reaper gathers and destroys meanwhile, and must not do so during the next."""
CLOSED = "ADD, closed by policies"
_MEMORY = "/dev/shm"
"""A file system in memory, as /run is."""
_CONFIG = b'{"cniVersion":"1.0.0","name":"weft","type":"weft"}'
_ARGS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=bench;K8S_POD_INFRA_CONTAINER_ID=x"


@dataclass(frozen=True, slots=True)
class _Local:
    """The node's network as the service wants to know it."""

    pod_cidrs: tuple[Prefix, ...] = (
        Prefix(parse_address("10.0.0.0"), 24),
        Prefix(parse_address("fd00::"), 64),
    )
    sources: tuple[Address, ...] = NODE
    mtu: int = 1450


def run() -> Iterator[Table]:
    """Measure one at a time and fifty at once."""
    logs.configure("error", "json")
    with node_and_pods() as (node, spaces):
        alone, together = uvloop.run(_measure(node, spaces))
    adds = {name: alone[name] for name in ("floor", "ADD", CLOSED)}
    yield comparison("One ADD, handler entry to reply", adds, "floor", remark="target: 2.5 times the floor")
    yield comparison("One DEL, handler entry to reply", {"DEL": alone["DEL"]}, "DEL")
    name = f"ip -batch, {WORKERS} at once"
    yield comparison(f"{PODS} at once, handler entry to last reply", together, name)


async def _measure(node: int, spaces: list[str]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    requests = [request(space, number) for number, space in enumerate(spaces, 1)]
    alone: dict[str, list[float]] = {"floor": [], "ADD": [], CLOSED: [], "DEL": []}
    together: dict[str, list[float]] = {"ADD": [], "DEL": [], f"ip -batch, {WORKERS} at once": []}
    floor = Floor()
    closed: list[Direction] = []
    async with _service(node, closed) as (service, writer):

        async def execute(command: str, numbers: range) -> float:
            calls = [_call(command, spaces[number], number) for number in numbers]
            seconds = await writer.attachment(lambda kernel: _answer(service, kernel, calls))
            await asyncio.sleep(SETTLE_SECONDS)
            return seconds

        slow_down()
        settle()
        with Socket(namespace=node) as host:
            for number in range(ROUNDS):
                only = range(number % PODS, number % PODS + 1)
                alone["ADD"].append(await execute("ADD", only))
                alone["DEL"].append(await execute("DEL", only))
                closed += Direction
                alone[CLOSED].append(await execute("ADD", only))
                closed.clear()
                await execute("DEL", only)
                started = time.perf_counter()
                floor.attach(requests[only.start])
                alone["floor"].append(time.perf_counter() - started)
                host.batch((del_link(requests[only.start].host_link),), "clean up")
            for _ in range(BURSTS):
                together["ADD"].append(await execute("ADD", range(PODS)))
                together["DEL"].append(await execute("DEL", range(PODS)))
                started = time.perf_counter()
                await asyncio.to_thread(parallel_batches, requests)
                together[f"ip -batch, {WORKERS} at once"].append(time.perf_counter() - started)
                host.batch([del_link(each.host_link) for each in requests], "clean up")
    return alone, together


def _answer(service: CniService, kernel: Kernel, calls: Sequence[ExecuteRequest]) -> float:
    """Have requests answered that came at once; returns the seconds from the entry to the last reply."""
    entered = replied = time.perf_counter()
    asked = [Asked(call, entered) for call in calls]
    for start in range(0, len(asked), GROUP):
        for answers in service.execute(kernel, asked[start : start + GROUP]):
            replied = time.perf_counter()
            for answer in answers:
                if answer.exit_code:
                    raise RuntimeError(answer.output.decode())
    return replied - entered


@asynccontextmanager
async def _service(node: int, closed: list[Direction]) -> AsyncIterator[tuple[CniService, Writer]]:
    """Serve a node; pods are born closed in the directions that are in the list by then."""
    writer = Writer(namespace=node)
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory(dir=_MEMORY) as directory:
        leases = Store(f"{directory}/state.db")
        deletions = Deletions(f"{directory}/deletions")
        deletions.prepare()
        service = CniService(
            attachments=Attachments(Allocator(leases, cooldown=0)),
            deletions=deletions,
            local=_Local,
            config=Config(),
            metrics=Metrics(),
            soon=loop.call_soon_threadsafe,
            birth=lambda *_: tuple(closed),
        )
        async with asyncio.TaskGroup() as group:
            running = group.create_task(writer.run())
            try:
                await asyncio.sleep(0)
                await writer.adopt({})
                tables = Fragment(tables=node_tables(TableOptions()))
                isolated = closed_fragment("weft-isolated", Direction)
                fragments: dict[FragmentKey, Fragment] = {("local",): tables, ("isolated",): isolated}
                await writer.apply(fragments, complete=True, sources=NODE)
                yield service, writer
            finally:
                running.cancel()
        leases.close()
        deletions.close()


def _call(command: str, space: str, number: int) -> ExecuteRequest:
    return ExecuteRequest(
        command=command,
        container_id=f"{number:064x}",
        netns=space,
        ifname="eth0",
        args=_ARGS,
        path="/opt/cni/bin",
        config=_CONFIG,
    )
