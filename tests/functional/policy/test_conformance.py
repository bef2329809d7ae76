"""Random clusters on the kernel: what comes through two nodes' rules is what the oracle lets through.

The same questions as in tests/property/policy/test_verdicts.py, SCTP and ICMP included, asked with packets.
Rules are changed from cluster to cluster by the differences, as the daemon does it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.functional.policy.two_nodes import two_nodes
from tests.property.policy import clusters
from tests.property.policy.oracle import Oracle
from tests.property.policy.walks import Walks, ruleset, town_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.functional.policy.two_nodes import TwoNodes
    from tests.property.policy.clusters import Raw

pytestmark = pytest.mark.root

CASES, SOAK_CASES = 50, 1000


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    with two_nodes() as made:
        yield made


def compare(nodes: TwoNodes, cluster: dict[str, list[Raw]]) -> tuple[int, int]:
    """Compares the fates of all connections; returns how many pass and how many are dropped."""
    town, walks, oracle = town_of(cluster), Walks(cluster), Oracle(**cluster)
    asked = {each: walks.entrance(each) for each in walks.connections()}
    allowed = {each for each in asked if oracle.allows(each)}
    nodes.program({name: ruleset(model) for name, model in town.models.items()})
    passing = nodes.passing(asked, len(allowed))
    assert passing - allowed == set(), "the kernel lets pass what no policy allows"
    assert allowed - passing == set(), "the kernel drops what policies allow"
    return len(allowed), len(asked) - len(allowed)


def compare_many(nodes: TwoNodes, examples: int) -> None:
    """Compares so many clusters, and sees that they were worth it; prints the figures."""
    found: list[tuple[int, int]] = []

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(clusters.clusters())
    def one(cluster: dict[str, Any]) -> None:
        found.append(compare(nodes, cluster))

    one()
    passed, dropped = (sum(each) for each in zip(*found, strict=True))
    print(f"{len(found)} clusters on the kernel: {passed} packets passed, {dropped} were dropped")
    assert len(found) >= examples
    assert min(passed, dropped) > 40 * examples


def test_the_kernel_agrees_with_the_documentation(nodes: TwoNodes) -> None:
    compare_many(nodes, CASES)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_kernel_agrees_with_the_documentation_in_hundreds_of_clusters(nodes: TwoNodes) -> None:
    compare_many(nodes, SOAK_CASES)
