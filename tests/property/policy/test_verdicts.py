"""Random clusters: for every pair of addresses and port, all nodes together say what the oracle says.

Everything between a manifest and a verdict takes part: decoding, compiling, the shared sets, and then both
who answers from the compiled values and the packet that is walked through the rules made of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings

from daemon.compile.policy_verdict import Flow
from tests.property.policy import clusters
from tests.property.policy.oracle import Oracle
from tests.property.policy.walks import Traced, Walks, packed, town_of
from tests.unit.daemon.compile.town import PROTOCOLS

if TYPE_CHECKING:
    from tests.property.policy.clusters import Raw
    from tests.property.policy.oracle import Connection

CASES, SOAK_CASES = 500, 5000
STEP = 5
"""Of all questions about a cluster so manieth is asked where time is short."""


class Count:
    """What was compared: clusters, and connections that both sides let pass or both drop."""

    def __init__(self) -> None:
        self.clusters = 0
        self.connections = {True: 0, False: 0}

    def __str__(self) -> str:
        passed, dropped = self.connections[True], self.connections[False]
        return f"{self.clusters} clusters: {passed} connections passed, {dropped} dropped"


def many(examples: int) -> settings:
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


def compare(cluster: dict[str, list[Raw]], count: Count, step: int = 1) -> None:
    """Compares the verdicts of oracle, model and tables."""
    town, oracle, walks = town_of(cluster), Oracle(**cluster), Walks(cluster)
    traced = Traced(town, walks)
    for connection in walks.connections(step):
        expected = oracle.allows(connection)
        assert town.allows(flow_of(connection)) is expected, (connection, expected, "the model")
        assert traced.passes(connection) is expected, (connection, expected, "the tables")
        count.connections[expected] += 1
    count.clusters += 1


def flow_of(connection: Connection) -> Flow:
    protocol = PROTOCOLS[connection.protocol.lower()]
    return Flow(packed(connection.source), packed(connection.destination), protocol, connection.port)


def compare_many(examples: int, step: int) -> None:
    """Compares so many clusters, and sees that they were worth it; prints the figures."""
    count = Count()

    @many(examples)
    @given(clusters.clusters())
    def one(cluster: dict[str, Any]) -> None:
        compare(cluster, count, step)

    one()
    print(count)
    assert count.clusters >= examples
    assert min(count.connections.values()) > 10 * examples


@pytest.mark.timeout(600)
def test_verdicts_are_those_of_the_documentation() -> None:
    compare_many(CASES, STEP)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_verdicts_are_those_of_the_documentation_in_thousands_of_clusters() -> None:
    compare_many(SOAK_CASES, 1)
