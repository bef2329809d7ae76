"""How long Services' changes take to reach new connections; measured with thousands of them by `bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.cluster.delay import course, create_many, delete_many, resident_mebibytes

if TYPE_CHECKING:
    from tests.e2e.cluster.cluster import Cluster

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.timeout(300)]

SERVICES = range(100)
ROUNDS = 10
MOST_SECONDS = 3.0
"""Of a median: the bound is 50 ms, and for a machine that does nothing else."""
MOST_MEBIBYTES = 250


def test_changes_reach_new_connections(cluster: Cluster) -> None:
    node = cluster.nodes["n1"]
    with course(cluster, node) as way:
        create_many(cluster.api, SERVICES)
        try:
            delays = way.rounds(ROUNDS)
        finally:
            delete_many(cluster.api, SERVICES)
    print("\n".join(delays.lines()))
    slow = {kind: seconds for kind, seconds in delays.medians().items() if seconds > MOST_SECONDS}
    assert not slow, slow
    assert resident_mebibytes(node) < MOST_MEBIBYTES
