"""The table of scenarios (tests/scenarios), of Services and policies, on the real kernel.

One cluster for all. The matrix is asked at once and reported row by row; each story is a test.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.functional.lab_cluster import LabCluster
from tests.functional.service_probes import ServiceCluster
from tests.scenarios.matrix import matrix
from tests.scenarios.policies import policy_stories
from tests.scenarios.stories import stories
from tests.scenarios.topology import PROTOCOLS, ZONES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lab.underlay import Routes
    from tests.scenarios.model import Probe, Scenario

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

MATRIX = matrix()
STORIES = tuple(stories())
POLICY_STORIES = tuple(policy_stories())
SOME = 41
"""One probe in so many tells whether the Services have arrived at all."""
FOREIGN = """table inet foreign {
	set s {
		type ipv4_addr
		elements = { 192.0.2.9 }
	}

	chain c {
		type filter hook forward priority filter + 10; policy accept;
		ip saddr @s accept
	}
}
"""
"""Another program's table, as nft lists it."""


@contextlib.contextmanager
def service_cluster(state: Path, routes: Routes = "known") -> Iterator[ServiceCluster]:
    with LabCluster(state, nodes=len(ZONES), zones=ZONES, routes=routes) as lab:
        cluster = ServiceCluster(lab)
        cluster.prepare()
        for name in lab.cluster.nodes:
            lab.sh(name, f"nft '{FOREIGN}'")
        yield cluster
        cluster.end_pods()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceCluster]:
    """Its nodes have no default route."""
    with service_cluster(tmp_path_factory.mktemp("services") / "state") as cluster:
        yield cluster


@pytest.fixture
def tidy(cluster: ServiceCluster) -> Iterator[ServiceCluster]:
    """The cluster, which must be as desired after each story."""
    yield cluster
    undisturbed(cluster)


def undisturbed(cluster: ServiceCluster) -> None:
    """The kernels are as desired and can be listed, and what is another's is as it was."""
    lab = cluster.lab
    lab.wait(lambda: not lab.differences(), "kernels as desired", 5)
    for name in lab.cluster.nodes:
        listing = lab.sh(name, "nft list ruleset")
        assert "table ip weft" in listing
        assert FOREIGN in listing


@pytest.fixture(scope="module")
def answers(cluster: ServiceCluster) -> Iterator[dict[Probe, str]]:
    """The faults of the whole matrix."""
    (step,) = MATRIX.steps
    cluster.change(step)
    cluster.faults(step.probes[::SOME])  # until it has arrived
    yield cluster.faults(step.probes)
    undisturbed(cluster)
    cluster.clean(MATRIX)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", ["cluster", "nodeport", "balancer", "external"])
@pytest.mark.parametrize("client", ["pod", "node", "outside"])
def test_matrix(answers: dict[Probe, str], client: str, kind: str, family: int, protocol: str) -> None:
    chosen = (client, kind, family, protocol)
    rows = [
        probe
        for probe in MATRIX.steps[0].probes
        if (probe.client.kind, probe.target.kind, probe.family, probe.protocol) == chosen
    ]
    assert rows
    assert {probe.id: answers[probe] for probe in rows if probe in answers} == {}


def test_nodes_with_a_default_route(tmp_path: Path) -> None:
    """It decides which address a node's own packet has before it is translated."""
    probes = [probe for probe in MATRIX.steps[0].probes if probe.client.kind == "node"]
    with service_cluster(tmp_path / "state", "default") as cluster:
        cluster.change(MATRIX.steps[0])
        cluster.faults(probes[::SOME])
        faults = cluster.faults(probes)
        assert {probe.id: fault for probe, fault in faults.items()} == {}
        undisturbed(cluster)


@pytest.mark.parametrize("scenario", STORIES, ids=lambda scenario: scenario.name)
def test_story(tidy: ServiceCluster, scenario: Scenario) -> None:
    tell(tidy, scenario)


@pytest.fixture(scope="module")
def policed(cluster: ServiceCluster) -> Iterator[ServiceCluster]:
    """The cluster, which must be as desired after all stories of policies, and without their tables."""
    yield cluster
    undisturbed(cluster)
    for name in cluster.lab.cluster.nodes:
        assert "weft-policy" not in cluster.lab.sh(name, "nft list tables")


@pytest.mark.parametrize("scenario", POLICY_STORIES, ids=lambda scenario: scenario.name)
def test_policies(policed: ServiceCluster, scenario: Scenario) -> None:
    tell(policed, scenario)


def tell(cluster: ServiceCluster, scenario: Scenario) -> None:
    try:
        for step in scenario.steps:
            cluster.change(step)
            faults = cluster.faults(step.probes)
            assert {probe.id: fault for probe, fault in faults.items()} == {}, step.label
    finally:
        cluster.clean(scenario)
