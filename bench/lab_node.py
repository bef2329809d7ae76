"""A lab of one node for measurements: a real daemon in namespaces of its own, and programs run beside it."""

from __future__ import annotations

import os
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.cluster import Cluster
from lab.options import Options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lab.node import Node

CLUSTER_CIDRS = {4: "10.32.0.0/11", 6: "fd10:244::/44"}
"""Wide enough for 5,000 nodes with a /24 and a /64 each."""


@asynccontextmanager
async def one_node(**options: Any) -> AsyncIterator[tuple[Cluster, Node]]:
    """Starts a lab with one node, waits until it is Ready, and takes it down in the end."""
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as state:
        cluster = Cluster(
            Options(state=Path(state) / "lab", nodes=1, cluster_cidrs=CLUSTER_CIDRS, max_pods=300, **options)
        )
        try:
            await cluster.start()
            await cluster.wait_ready()
            (node,) = cluster.nodes.values()
            yield cluster, node
        finally:
            await cluster.stop()


def resident_kibibytes(pid: int) -> int:
    """Reads VmRSS of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise ProcessLookupError(pid)


def processor_seconds(pid: int) -> float:
    """Return the processor time of a process and of the programs that it ran to their ends."""
    figures = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    # utime, stime, cutime, cstime: fields 14 to 17 of proc_pid_stat(5), the third being the first here.
    return sum(map(int, figures[11:15])) / os.sysconf("SC_CLK_TCK")
