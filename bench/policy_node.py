"""One node's handling of NetworkPolicies, for `policies`; in a process of its own, so that its memory tells.

`python -m bench.policy_node PODS POLICIES` prints its figures as JSON, times in seconds. The daemon's own
store, decoders, policing and writer run here, on a namespace made for it; no API server. What the watch would
bring arrives as JSON texts.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import uvloop

from bench import policy_objects as objects
from bench.spaces import node_space, resident_mebibytes
from daemon import collection, logs
from daemon.cluster import decode_pods, decode_policies
from daemon.cluster.model import Node, Prefix
from daemon.cluster.store import Store
from daemon.config import Config
from daemon.findings import Findings
from daemon.policing import Policing
from daemon.reconcile import Reconciler
from datapath.text import parse_address
from datapath.writer import Writer
from ipam.record import AttachmentKey, Record, State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence

    from datapath.desired import FragmentKey

CHANGES = 200
CHURN_PAUSE = 0.02
"""Seconds between two pods that change elsewhere while policies are created."""
PAUSE_SECONDS = 0.002
CHURNED = 500
"""So many different pods."""
SETS, SUBJECT = ("policy", "set"), ("policy", "subject")
"""How keys of fragments begin: elements of shared sets; which chain decides on a pod."""
SWEPT_SECONDS = 1.5
"""After which what became superfluous is gone."""


def link(number: int) -> str:
    """Return the host link of the pod of this node with a number, the one that policy `number` isolates."""
    return f"weft{number % objects.RESIDENTS:011x}"


class Cluster:
    """A node's part of the daemon that policies pass through, in a namespace, and what feeds it.

    Args:
        namespace: descriptor of the node's.
        remote: JSON texts of all pods of other nodes.
    """

    def __init__(self, namespace: int, remote: Sequence[str] = ()) -> None:
        self.store = Store()
        address, cidr = parse_address("172.16.0.1"), Prefix(parse_address("10.0.0.0"), 24)
        self.store.nodes.replace({objects.NODE: Node(objects.NODE, "uid", (address,), (cidr,))})
        self.writer = Writer(namespace=namespace)
        self.records: list[Record] = []
        self.followed = False
        self._remote = remote
        self._applied: set[FragmentKey] = set()
        self._told = asyncio.Event()
        self._reconciler = Reconciler(
            store=self.store,
            writer=self.writer,
            config=Config(),
            node_name=objects.NODE,
            findings=Findings(),
            namespace=namespace,
        )
        self.policing = Policing(
            store=self.store,
            writer=self.writer,
            node_name=objects.NODE,
            records=lambda: self.records,
            remote_pods=self,  # type: ignore[arg-type] # stands in for the demand
            findings=Findings(),
            on_applied=self._on_applied,
        )

    def want(self, wanted: bool) -> None:
        """Bring the pods of other nodes as soon as they are needed; no jitter and no server delay it."""
        if wanted and not self.followed:
            self.followed = True
            pods = map(decode_pods.pod, map(json.loads, self._remote))
            self.store.remote_pods.replace({each.key: each for each in pods})

    def put_residents(self, pods: Sequence[Mapping[str, Any]]) -> None:
        """Attach pods to this node, in the books."""
        for number, raw in enumerate(pods):
            value = decode_pods.pod(raw)
            self.store.pods.put(value.key, value)
            key = AttachmentKey("weft", f"{number:064x}", "eth0")
            of_pod = (value.namespace, value.name, value.uid)
            self.records.append(
                Record(
                    key, "", link(number), bytes(6), 1450, value.ips, *of_pod, State.ATTACHED, float(number)
                )
            )
        self.policing.look()

    def put_policy(self, text: str) -> None:
        """Store a policy as its watch does."""
        value = decode_policies.network_policy(json.loads(text))
        self.store.network_policies.put(value.key, value)

    def put_policies(self, texts: Iterable[str]) -> None:
        """Store many at once."""
        for each in texts:
            self.put_policy(each)

    def put_pod(self, text: str) -> None:
        """Store a pod as its watch does, wherever it is."""
        value = decode_pods.pod(json.loads(text))
        table = self.store.pods if value.node == objects.NODE else self.store.remote_pods
        table.put(value.key, value)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the daemon's parts."""
        for number in range(objects.NAMESPACES):
            value = decode_pods.namespace(objects.namespace(number))
            self.store.namespaces.put(value.name, value)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.writer.run())]
            await asyncio.sleep(0)
            await self._reconciler.prepare()
            await self.policing.gather()
            await self.writer.adopt({})
            await self.policing.prepare()
            tasks.append(group.create_task(self._reconciler.run()))
            await self._reconciler.wait_synced()
            tasks.append(group.create_task(self.policing.run()))
            yield
            for task in reversed(tasks):
                task.cancel()

    async def timed(self, change: Callable[[], None], *wanted: str) -> float:
        """Return how long a change takes from the text that the watch brings to the kernel.

        It is there when a fragment was applied whose key begins so.
        """
        await asyncio.sleep(PAUSE_SECONDS)
        self._applied.clear()
        began = time.perf_counter()
        change()
        while not any(key[: len(wanted)] == wanted for key in self._applied):
            self._told.clear()
            await self._told.wait()
        return time.perf_counter() - began

    async def settled(self) -> None:
        """Return once nothing has been applied for a while."""
        while True:
            self._told.clear()
            try:
                async with asyncio.timeout(SWEPT_SECONDS):
                    await self._told.wait()
            except TimeoutError:
                return

    def _on_applied(self, changes: Iterable[FragmentKey]) -> None:
        self._applied.update(changes)
        self._told.set()


async def measure(namespace: int, pods: int, policies: int) -> dict[str, Any]:
    """Enforce a number of policies in a cluster with a number of pods, then change some."""
    remote = [json.dumps(objects.pod(number)) for number in range(objects.RESIDENTS, pods)]
    texts = [json.dumps(objects.policy(number, objects.inside)) for number in range(policies)]
    cluster = Cluster(namespace, remote)
    cluster.put_residents([objects.pod(number) for number in range(objects.RESIDENTS)])
    figures: dict[str, Any] = {}
    async with cluster.running():
        await cluster.settled()
        collection.settle()
        empty = resident_mebibytes()
        figures["first"] = await cluster.timed(lambda: cluster.put_policy(texts[0]), *SETS)
        await cluster.settled()
        collection.settle()
        figures["memory_pods"] = resident_mebibytes() - empty
        used = time.process_time()
        last = link(len(texts) - 1)
        figures["load"] = await cluster.timed(lambda: cluster.put_policies(texts), *SUBJECT, last)
        await cluster.settled()
        figures["load_processor"] = time.process_time() - used
        collection.settle()
        figures["memory"] = resident_mebibytes() - empty
        await _change_labels(cluster, figures)
        await _create(cluster, figures)
    return figures


async def _change_labels(cluster: Cluster, figures: dict[str, Any]) -> None:
    """Change labels of pods elsewhere, which are in a set of peers and are not, and of one here.

    That one is selected by a policy of its own in the one case, and is not in the other.
    """
    peers = range(objects.RESIDENTS, objects.RESIDENTS + objects.REPLICAS)
    remote = [json.dumps(objects.pod(number, app)) for number in peers for app in ("other", "")]
    await cluster.settled()
    await _repeat(cluster, figures, "remote", remote, SETS)
    picky = objects.policy(0, objects.inside, "picky")
    picky["spec"]["podSelector"] = {"matchLabels": {objects.NAME: "other"}}
    cluster.put_policy(json.dumps(picky))
    here = [json.dumps(objects.pod(0, app)) for app in ("other", "")]
    await cluster.settled()
    await _repeat(cluster, figures, "resident", here, (*SUBJECT, link(0)))


async def _repeat(
    cluster: Cluster, figures: dict[str, Any], name: str, texts: Sequence[str], wanted: tuple[str, ...]
) -> None:
    used, times = time.process_time(), []
    for turn in range(CHANGES):
        text = texts[turn % len(texts)]
        times.append(await cluster.timed(lambda text=text: cluster.put_pod(text), *wanted))  # type: ignore[misc]
    figures[name] = times
    figures[f"{name}_processor"] = (time.process_time() - used) / CHANGES


async def _create(cluster: Cluster, figures: dict[str, Any]) -> None:
    """Create policies, each isolating a pod that few or many isolate already, while pods change elsewhere."""
    numbers = range(CHANGES)
    made = [json.dumps(objects.policy(number, objects.inside, "late")) for number in numbers]

    async def churn() -> None:
        for turn in itertools.count():
            number = objects.RESIDENTS + turn % CHURNED
            cluster.put_pod(json.dumps(objects.pod(number, f"w{turn % 20}")))
            await asyncio.sleep(CHURN_PAUSE)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(churn())
        used = time.process_time()
        figures["create"] = [
            await cluster.timed(lambda text=text: cluster.put_policy(text), *SUBJECT, link(number))  # type: ignore[misc]
            for number, text in enumerate(made)
        ]
        figures["create_processor"] = (time.process_time() - used) / CHANGES
        task.cancel()


def main(pods: int, policies: int) -> None:
    """Measure and print."""
    logs.configure("error", "json")
    collection.slow_down()
    with node_space(f"weft-bench-policies-{os.getpid()}", "172.16.0.1/12") as namespace:
        print(json.dumps(uvloop.run(measure(namespace, pods, policies))))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
