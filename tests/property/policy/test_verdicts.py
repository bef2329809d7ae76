"""Random clusters: for every pair of addresses and port, all nodes together say what the oracle says.

Everything between a manifest and a verdict takes part: decoding, compiling, the shared sets, the verdict.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings

from daemon.compile.policy_verdict import Flow
from tests.property.policy import clusters
from tests.property.policy.oracle import Connection, Oracle
from tests.unit.daemon.compile.town import PROTOCOLS, Town, packed

if TYPE_CHECKING:
    from tests.property.policy.clusters import Raw

CASES, SOAK_CASES = 500, 5000
PROBES: list[tuple[str, int | None]] = [
    ("TCP", 1),
    ("TCP", 80),
    ("TCP", 443),
    ("TCP", 81),
    ("UDP", 53),
    ("UDP", 80),
    ("SCTP", 81),
    ("ICMP", None),
]
"""Protocols and ports that policies tell apart."""


def many(examples: int) -> settings:
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


def compare(cluster: dict[str, list[Raw]]) -> None:
    """Compares the verdicts about all pairs of addresses of which one at least is a pod's."""
    town = Town(*cluster["nodes"])
    for kind in ("policies", "pods", "namespaces"):
        town.put(*cluster[kind])
    oracle = Oracle(**cluster)
    found = {text: packed(text) for text in clusters.addresses(cluster)}
    of_pods = {entry["ip"] for pod in cluster["pods"] for entry in pod["status"]["podIPs"]}
    for source, destination in itertools.product(found, repeat=2):
        if len(found[source]) != len(found[destination]) or not {source, destination} & of_pods:
            continue
        for protocol, port in PROBES:
            flow = Flow(found[source], found[destination], PROTOCOLS[protocol.lower()], port)
            expected = oracle.allows(Connection(source, destination, protocol, port))
            assert town.allows(flow) is expected, (source, destination, protocol, port, expected)


@pytest.mark.timeout(600)
@many(CASES)
@given(clusters.clusters())
def test_verdicts_are_those_of_the_documentation(cluster: dict[str, Any]) -> None:
    compare(cluster)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@many(SOAK_CASES)
@given(clusters.clusters())
def test_verdicts_are_those_of_the_documentation_in_thousands_of_clusters(cluster: dict[str, Any]) -> None:
    compare(cluster)
