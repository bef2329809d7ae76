"""The table of scenarios (tests/scenarios), of Services and policies, in the packet tracer, SCTP included."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.scenarios.matrix import matrix
from tests.scenarios.policies import policy_stories
from tests.scenarios.stories import stories
from tests.scenarios.topology import FAMILIES, PROTOCOLS
from tests.scenarios.traced import TracedCluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.scenarios.model import Scenario

MATRIX = matrix()


@pytest.fixture(scope="module")
def cluster() -> Iterator[TracedCluster]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield TracedCluster(monkeypatch)


@pytest.fixture(scope="module")
def busy() -> Iterator[TracedCluster]:
    """A cluster of its own, with the Services of the matrix."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        cluster = TracedCluster(monkeypatch)
        cluster.change(MATRIX.steps[0])
        yield cluster


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["cluster", "nodeport", "balancer", "external"])
@pytest.mark.parametrize("client", ["pod", "node", "outside"])
def test_matrix(busy: TracedCluster, client: str, kind: str, family: int, protocol: str) -> None:
    chosen = (client, kind, family, protocol)
    rows = [
        probe
        for probe in MATRIX.steps[0].probes
        if (probe.client.kind, probe.target.kind, probe.family, probe.protocol) == chosen
    ]
    assert rows
    assert {probe.id: fault for probe, fault in busy.faults(rows).items()} == {}


@pytest.mark.parametrize("scenario", [*stories(), *policy_stories()], ids=lambda scenario: scenario.name)
def test_story(cluster: TracedCluster, scenario: Scenario) -> None:
    try:
        for step in scenario.steps:
            cluster.change(step)
            faults = cluster.faults(step.probes)
            assert {probe.id: fault for probe, fault in faults.items()} == {}, step.label
    finally:
        cluster.clean(scenario)
