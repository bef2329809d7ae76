"""From a write to the API to what a new connection of a node sees, on the real cluster of tests/e2e.

A Service added, its endpoint moved, the Service deleted, with 100 and with 10,000 other Services of five
endpoints each; the same right after those 10,000 came in a burst; the daemon's memory then. The API server
and all else run on the same machine and are part of what is measured, as for kube-proxy. Needs root.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bench.figures import Figure, table
from tests.e2e.cluster.cluster import running
from tests.e2e.cluster.delay import course, create_many, resident_mebibytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.tables import Table
    from tests.e2e.cluster.cluster import Cluster
    from tests.e2e.cluster.delay import Course

FEW, MANY, ROUNDS = 100, 10_000, 25
MOST_MILLISECONDS, MOST_SECONDS_AFTER, MOST_MEBIBYTES = 50, 3, 250
KUBE_PROXY = "kube-proxy 1.34"
"""In nftables mode, on a machine of two cores like the one that the bounds are for."""
THEIRS = {FEW: (460.0, 980.0, 1200.0), MANY: (5600.0, 5400.0, 6000.0)}
THEIRS_AFTER, THEIR_MEBIBYTES = 282.0, 330.0


def run() -> Iterator[Table]:
    """Measures in a cluster of two nodes."""
    with running(2) as cluster:
        cluster.install_weft()
        with course(cluster, cluster.nodes["n1"]) as way:
            create_many(cluster.api, range(FEW))
            yield _delays(way, FEW)
            burst = time.monotonic()
            create_many(cluster.api, range(FEW, MANY))
            burst = time.monotonic() - burst
            way.writer.renew()
            added = way.add()
            way.remove()
            figures = [
                Figure("Service added", added, "s", KUBE_PROXY, THEIRS_AFTER, at_most=MOST_SECONDS_AFTER),
                _memory(cluster),
            ]
            yield table(f"right after {MANY - FEW} Services in {burst:.0f} s", figures)
            yield _delays(way, MANY)
            yield table("after all that", [_memory(cluster)])


def _delays(way: Course, services: int) -> Table:
    delays = way.rounds(ROUNDS)
    figures = [
        Figure(what, 1000 * seconds, "ms", KUBE_PROXY, theirs, at_most=MOST_MILLISECONDS)
        for (what, seconds), theirs in zip(delays.medians().items(), THEIRS[services], strict=True)
    ]
    remark = "\n".join(delays.lines())
    return table(f"with {services} Services, medians of {ROUNDS} rounds", figures, remark)


def _memory(cluster: Cluster) -> Figure:
    """Of the daemon that has more."""
    most = max(resident_mebibytes(node) for node in cluster.nodes.values())
    return Figure("memory", most, "MiB", KUBE_PROXY, THEIR_MEBIBYTES, at_most=MOST_MEBIBYTES)
