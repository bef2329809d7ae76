"""One node's handling of Services, for `service_changes`; in a process of its own, so that its memory tells.

`python -m bench.service_node COUNT` prints its figures as JSON, times in seconds. The daemon's own store,
reconcilers and writer run here, on a namespace made for it; no API server, no watch.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import uvloop

from bench import service_objects as objects
from bench.spaces import node_space, resident_mebibytes, run
from daemon import collection, logs
from daemon.cluster import decode_services
from daemon.cluster.model import Node, Prefix
from daemon.cluster.store import Store
from daemon.config import Config
from daemon.findings import Findings
from daemon.metrics import Metrics
from daemon.reconcile import Reconciler
from daemon.serviceprogress import Progress
from daemon.services import Services
from datapath.text import parse_address
from datapath.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OWN = "own"
CHANGES, ADDITIONS = 200, 50
RESYNCS = 5
REPAIR_SECONDS = 60.0
PAUSE_SECONDS = 0.002


async def measure(name: str, namespace: int, count: int) -> dict[str, Any]:
    """Load a number of Services, change some, and have them repaired."""
    node = _Node(namespace)
    empty = resident_mebibytes()
    began = time.perf_counter()
    for number in range(count):
        node.put_service(number)
        node.put_endpoints(number)
    node.store.service_cidrs.replace({})
    figures: dict[str, Any] = {"decode": time.perf_counter() - began}
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(node.writer.run())]
        await asyncio.sleep(0)
        local = await node.reconciler.prepare()
        assert local is not None
        await node.writer.adopt({})
        began, used = time.perf_counter(), time.process_time()
        await node.services.prepare(local)
        figures["compile"] = time.perf_counter() - began
        tasks.append(group.create_task(node.reconciler.run()))
        await node.reconciler.wait_synced()
        figures["load"] = time.perf_counter() - began
        figures["load_processor"] = time.process_time() - used
        tasks.append(group.create_task(node.services.run()))
        await node.applied.wait()
        collection.settle()
        figures["memory"] = resident_mebibytes() - empty
        used = time.process_time()
        figures["change"] = [await node.timed(change) for change in node.changes(count)]
        figures["change_processor"] = (time.process_time() - used) / CHANGES
        figures["add"] = [await node.timed(change) for change in node.additions(count)]
        figures["resync"] = [await node.resync() for _ in range(RESYNCS)]
        figures["repair"] = await node.repair(name)
        for task in reversed(tasks):
            task.cancel()
    return figures


class _Node:
    """The daemon's parts that Services pass through."""

    def __init__(self, namespace: int) -> None:
        config, findings = Config(), Findings()
        self.store = Store()
        address, cidr = parse_address("172.16.0.1"), Prefix(parse_address("10.244.0.0"), 24)
        self.store.nodes.replace({OWN: Node(OWN, "uid", (address,), (cidr,))})
        self.writer = Writer(namespace=namespace)
        self.reconciler = Reconciler(
            store=self.store,
            writer=self.writer,
            config=config,
            node_name=OWN,
            findings=findings,
            namespace=namespace,
        )
        self.applied = asyncio.Event()
        self.services = Services(
            store=self.store,
            writer=self.writer,
            config=config,
            node_name=OWN,
            local=lambda: self.reconciler.local,
            findings=findings,
            progress=Progress(Metrics()),
            on_applied=lambda _: self.applied.set(),
        )

    def put_service(self, number: int) -> None:
        """Store a Service as its watch does."""
        value = decode_services.service(objects.service(number))
        self.store.services.put(value.key, value)

    def put_endpoints(self, number: int, replaced: int = 0) -> None:
        """Store a Service's slice as its watch does."""
        raw = objects.endpoint_slice(number, objects.endpoints_of(number, replaced=replaced))
        value = decode_services.endpoint_slice(raw)
        self.store.endpoint_slices.put(f"{value.namespace}/{value.name}", value)

    def changes(self, count: int) -> Iterator[Callable[[], None]]:
        """Yield changes of one endpoint, each of another Service as far as there are so many."""
        for number in range(1, CHANGES + 1):
            yield lambda number=number: self.put_endpoints(number * 7919 % count, number)  # type: ignore[misc]

    def additions(self, count: int) -> Iterator[Callable[[], None]]:
        """Yield additions of one Service."""

        def add(number: int) -> None:
            self.put_endpoints(number)
            self.put_service(number)

        for number in range(count, count + ADDITIONS):
            yield lambda number=number: add(number)  # type: ignore[misc]

    async def timed(self, change: Callable[[], None]) -> float:
        """Return how long a change takes from the decoded watch event's arrival to the kernel."""
        await asyncio.sleep(PAUSE_SECONDS)
        self.applied.clear()
        began = time.perf_counter()
        change()
        await self.applied.wait()
        return time.perf_counter() - began

    async def resync(self) -> float:
        """Return how long it takes to find that nothing is different."""
        began = time.perf_counter()
        drift = await self.writer.resync("bench")
        assert not drift.differences, drift.differences
        return time.perf_counter() - began

    async def repair(self, name: str) -> float:
        """Return how long the node is without rules after somebody flushed them, until all are back."""
        began = time.perf_counter()
        await asyncio.to_thread(run, "ip", "netns", "exec", name, "nft", "flush", "ruleset")
        async with asyncio.timeout(REPAIR_SECONDS):
            while not self.reconciler.repairs:  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(PAUSE_SECONDS)
        seconds = time.perf_counter() - began
        left = await self.writer.difference()
        assert not left, left
        return seconds


def main(count: int) -> None:
    """Measure and print."""
    logs.configure("error", "json")
    collection.slow_down()
    name = f"weft-bench-services-{os.getpid()}"
    with node_space(name, "172.16.0.1/12") as namespace:
        print(json.dumps(uvloop.run(measure(name, namespace, count))))


if __name__ == "__main__":
    main(int(sys.argv[1]))
