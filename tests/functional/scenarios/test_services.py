"""The table of Service scenarios (tests/scenarios) on the real kernel.

One cluster for all. The matrix is asked at once and reported row by row; each story is a test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.functional.lab_cluster import LabCluster
from tests.functional.service_probes import ServiceCluster, without
from tests.scenarios.matrix import matrix
from tests.scenarios.stories import stories
from tests.scenarios.topology import PROTOCOLS, ZONES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.scenarios.model import Probe, Scenario

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

MATRIX = without(matrix(), "sctp")
STORIES = tuple(stories())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceCluster]:
    with LabCluster(tmp_path_factory.mktemp("services") / "state", nodes=3, zones=ZONES) as lab:
        cluster = ServiceCluster(lab)
        cluster.prepare()
        yield cluster
        cluster.end_pods()


@pytest.fixture
def tidy(cluster: ServiceCluster) -> Iterator[ServiceCluster]:
    """The cluster, which must be as desired after each story."""
    yield cluster
    undisturbed(cluster)


def undisturbed(cluster: ServiceCluster) -> None:
    """The kernels are as desired and can be listed."""
    lab = cluster.lab
    lab.wait(lambda: not lab.differences(), "kernels as desired", 5)
    for name in lab.cluster.nodes:
        assert "weft" in lab.sh(name, "nft list ruleset")


@pytest.fixture(scope="module")
def answers(cluster: ServiceCluster) -> Iterator[dict[Probe, str]]:
    """The faults of the whole matrix."""
    (step,) = MATRIX.steps
    cluster.change(step)
    yield cluster.faults(step.probes, 10.0)
    undisturbed(cluster)
    cluster.clean(MATRIX)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", ["cluster", "nodeport", "balancer", "external"])
@pytest.mark.parametrize("client", ["pod", "node", "outside"])
def test_matrix(answers: dict[Probe, str], client: str, kind: str, family: int, protocol: str) -> None:
    if protocol == "sctp":
        pytest.skip("this kernel has no SCTP sockets; the packet tracer walks these rows")
    chosen = (client, kind, family, protocol)
    rows = [
        probe
        for probe in MATRIX.steps[0].probes
        if (probe.client.kind, probe.target.kind, probe.family, probe.protocol) == chosen
    ]
    assert rows
    assert {probe.id: answers[probe] for probe in rows if probe in answers} == {}


@pytest.mark.parametrize("scenario", STORIES, ids=lambda scenario: scenario.name)
def test_story(tidy: ServiceCluster, scenario: Scenario) -> None:
    try:
        for step in scenario.steps:
            tidy.change(step)
            faults = tidy.faults(step.probes)
            assert {probe.id: fault for probe, fault in faults.items()} == {}, step.label
    finally:
        tidy.clean(scenario)
