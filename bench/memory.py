"""The daemon's memory: at rest in a small cluster, and with 5,000 nodes and 250 pods.

Target: at most 120 MiB VmRSS after 60 s at rest. Needs root.
"""

from __future__ import annotations

import asyncio
import sys
import time
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.figures import Figure, table
from bench.lab_node import CLUSTER_CIDRS, one_node, resident_kibibytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.tables import Table
    from lab.cluster import Cluster
    from lab.node import Node

NODES, PODS, REST_SECONDS, LIMIT_MIB = 5000, 250, 60, 120
PROGRAM = Path(__file__).with_name("cni_node.py")


def run() -> list[Table]:
    """Measures in a lab of one node."""
    return [table("one node's daemon", asyncio.run(_measure()))]


async def _measure() -> list[Figure]:
    async with one_node() as (cluster, node):
        await asyncio.sleep(REST_SECONDS)
        rest = resident_kibibytes(node.daemon.pid) / 1024
        begin = time.perf_counter()
        for item in remote_nodes(NODES):
            cluster.apply(item)
        await _until_programmed(cluster, node)
        seconds = time.perf_counter() - begin
        await node.run(sys.executable, str(PROGRAM), "attach", str(PODS), limit=120)
        await asyncio.sleep(REST_SECONDS)
        full = resident_kibibytes(node.daemon.pid) / 1024
    return [
        Figure(f"memory after {REST_SECONDS} s at rest", rest, "MiB", at_most=LIMIT_MIB),
        Figure(f"memory with {NODES} nodes and {PODS} pods", full, "MiB"),
        Figure(f"{NODES} nodes joining, API server included", seconds, "s"),
    ]


def remote_nodes(number: int) -> Iterator[dict[str, Any]]:
    """Yields Node objects with slices of the cluster's CIDRs, dual-stack, after those of the lab's node."""
    slices = [
        ip_network(CLUSTER_CIDRS[4]).subnets(new_prefix=24),
        ip_network(CLUSTER_CIDRS[6]).subnets(new_prefix=64),
    ]
    for each in slices:
        next(each)
    first = int(ip_address("198.18.0.1"))
    for position, cidrs in zip(range(number), zip(*slices, strict=False), strict=False):
        address = str(ip_address(first + position))
        yield {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": f"remote-{position}"},
            "spec": {"podCIDR": str(cidrs[0]), "podCIDRs": [str(cidr) for cidr in cidrs]},
            "status": {
                "addresses": [{"type": "InternalIP", "address": address}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }


async def _until_programmed(cluster: Cluster, node: Node) -> None:
    """Waits until the kernel has a forwarding entry for each remote node."""
    remote = len(cluster.node_objects()) - 1
    deadline = time.monotonic() + 120
    while True:
        listing = await node.run("bridge", "fdb", "show", "dev", "weft.vxlan")
        if listing.count(" dst ") >= remote:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{listing.count(' dst ')} of {remote} nodes are programmed after 120 s")
        await asyncio.sleep(0.25)
