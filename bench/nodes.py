"""Thousands of remote nodes joining, one of them changing, and a resync that finds nothing.

Measured from the store's values to the kernel: compile, diff, write. The floor is what no program can do
without: routes, neighbours, forwarding entries and set elements, packed by struct and sent in large batches,
nothing compared, nothing remembered. Its routes are those that others write; in a second one they have
scopes, as ours do, which spares the kernel most of its work. Each round has namespaces of its own.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from struct import Struct
from typing import TYPE_CHECKING

from bench.spaces import node_space
from bench.tables import comparison, in_turn
from daemon.cluster.model import Node, Prefix
from daemon.collection import settle, slow_down
from daemon.compile.local import vtep_mac
from daemon.compile.network import Network
from daemon.config import Config
from daemon.reconcile import SLICE
from datapath.netlink.links import decode_link, get_link
from datapath.netlink.transport import Message, Socket
from datapath.netns import entered
from datapath.nft.connection import Nft
from datapath.nft.encode import add_elements
from datapath.nft.plan import plan
from datapath.nft.rules import Ruleset
from datapath.nft.tables import NODES, TableOptions, node_tables
from datapath.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from bench.tables import Table
    from datapath.desired import Fragment, FragmentKey

COUNT = 5000
ROUNDS = 7
CHANGES = 20
CONFIG = Config(cluster_cidrs=("10.0.0.0/8",))
OWN = "own"
BATCH = 1000

_NEIGHBOUR = Struct("=BxxxiHBBHH4sHH6s2x")
_ROUTE = Struct("=BBBBBBBBIHH4sHH4sHHIHH4s")


def run() -> Iterator[Table]:
    """Measure joining, changing, resync against the floor of a join; garbage collection as in the daemon."""
    slow_down()
    cluster = _cluster(COUNT)
    figures: dict[str, list[float]] = {}

    def ours(_: int) -> float:
        settle()
        with _node() as namespace:
            measured = asyncio.run(_ours(namespace, cluster))
        for name, seconds in measured.items():
            figures.setdefault(name, []).append(seconds)
        return measured["join"]

    def floor(_: int) -> float:
        with _node() as namespace:
            return _floor(namespace, cluster)

    def spread(_: int) -> float:
        with _node() as namespace:
            return _floor(namespace, cluster, scopes=199)

    measured = in_turn({"floor": floor, "floor with scopes": spread, "weft": ours}, ROUNDS)
    yield comparison(
        f"{COUNT} nodes join (compile, diff, write)",
        measured,
        "floor",
        remark="must be at most 1.3 of the floor",
    )
    joins = figures["join"]
    parts = {"join": joins, "one node changes": figures["change"], "resync, unchanged": figures["resync"]}
    yield comparison(
        f"{COUNT} nodes: afterwards", parts, "join", remark="one changed node must be at most 0.01 of a join"
    )


def _cluster(count: int) -> dict[str, Node]:
    nodes = {}
    for number in range(count + 1):
        name = f"node-{number}" if number else OWN
        address = bytes((172, 16, number >> 8 & 255, number & 255))
        cidr = Prefix(bytes((10, number >> 8, number & 255, 0)), 24)
        nodes[name] = Node(name, f"uid-{number}", (address,), (cidr,))
    return nodes


async def _ours(namespace: int, cluster: dict[str, Node]) -> dict[str, float]:
    writer = Writer(namespace=namespace)
    network = Network(OWN, CONFIG)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(writer.run())
        await writer.adopt({})
        links = await writer.underlay()
        alone = {OWN: cluster[OWN]}
        await writer.apply(network.update(alone, alone, links), complete=True)
        await writer.resync("start")

        began = time.perf_counter()
        network.take(cluster, cluster.keys() - alone.keys(), links)
        changes: dict[FragmentKey, Fragment | None] = {}
        while network.pending:
            changes = network.compile(SLICE)
            if network.pending:
                writer.offer(changes)
            await asyncio.sleep(0)
        applied = await writer.apply(changes)
        join = time.perf_counter() - began
        assert not applied.failures, applied.failures
        change = min([await _change(writer, network, cluster, number) for number in range(CHANGES)])

        began = time.perf_counter()
        drift = await writer.resync("bench")
        resync = time.perf_counter() - began
        assert not drift.differences, drift.differences
        task.cancel()
    return {"join": join, "change": change, "resync": resync}


async def _change(writer: Writer, network: Network, cluster: dict[str, Node], number: int) -> float:
    """One node gets another InternalIP, as seen from the store to the kernel."""
    name = f"node-{number + 1}"
    nodes = {
        **cluster,
        name: Node(name, "uid", (bytes((172, 31, 255, number + 1)),), cluster[name].pod_cidrs),
    }
    links = network.links
    began = time.perf_counter()
    await writer.apply(network.update(nodes, (name,), links))
    seconds = time.perf_counter() - began
    await writer.apply(network.update(cluster, (name,), links))
    return seconds


def _floor(namespace: int, cluster: dict[str, Node], scopes: int = 1) -> float:
    """Write what the nodes need, straight from their addresses; routes have so many scopes."""
    with entered(namespace), Socket() as route, Nft() as nft:
        for command in (
            "ip link add weft.vxlan type vxlan id 4096 dstport 4789 local 172.16.0.0 nolearning",
            "ip addr add 10.0.0.0/32 dev weft.vxlan",
            "ip link set weft.vxlan up",
        ):
            subprocess.run(command.split(), check=True)
        index = decode_link(route.request(get_link("weft.vxlan"), "index")).index
        tables = node_tables(TableOptions())
        nft.apply(plan(Ruleset(tables), nft.read()))
        remotes = [node for name, node in cluster.items() if name != OWN]
        began = time.perf_counter()
        messages: list[Message] = []
        for number, node in enumerate(remotes):
            mac, tunnel = vtep_mac(node.name, 4), node.pod_cidrs[0].address
            messages += (
                Message(28, 0x500, _NEIGHBOUR.pack(2, index, 0x80, 0, 0, 8, 1, tunnel, 10, 2, mac)),
                Message(
                    28, 0x500, _NEIGHBOUR.pack(7, index, 0x80, 2, 0, 8, 1, node.internal_ips[0], 10, 2, mac)
                ),
                Message(
                    24,
                    0x500,
                    _ROUTE.pack(
                        2,
                        24,
                        0,
                        0,
                        254,
                        119,
                        number % scopes,
                        1,
                        4,
                        8,
                        1,
                        tunnel,
                        8,
                        5,
                        tunnel,
                        8,
                        4,
                        index,
                        8,
                        7,
                        bytes((10, 0, 0, 0)),
                    ),
                ),
            )
        for start in range(0, len(messages), BATCH):
            route.batch(messages[start : start + BATCH], "floor")
        nft.commit(
            list(add_elements(tables[0], tables[0].set(NODES), {n.internal_ips[0]: b"" for n in remotes})),
            "floor",
        )
        return time.perf_counter() - began


def _node() -> AbstractContextManager[int]:
    """A namespace with an underlay link; yields its descriptor."""
    return node_space(f"weft-b-nodes-{os.getpid()}", "172.16.0.0/12")
