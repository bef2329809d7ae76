"""One cluster for all end-to-end tests; after each test its nodes are looked over."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.e2e.cluster.build import BuildError
from tests.e2e.cluster.cluster import condition, running
from tests.e2e.cluster.processes import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.cluster.api import Object
    from tests.e2e.cluster.cluster import Cluster
    from tests.e2e.cluster.node import Node


@pytest.fixture(scope="session")
def bare() -> Iterator[Cluster]:
    """Two nodes whose kubelets wait for a network."""
    try:
        with running(2) as cluster:
            yield cluster
    except BuildError as error:
        pytest.fail(str(error))


@pytest.fixture(scope="session")
def before(bare: Cluster) -> dict[str, Object]:
    """The Ready condition of each node before Weft was there."""

    def reported(name: str) -> Object:
        found = condition(bare.node(name), "Ready")
        return found if "cni plugin not initialized" in str(found.get("message")) else {}

    return {name: wait_for(f"{name} to miss its network", partial(reported, name)) for name in bare.nodes}


@pytest.fixture(scope="session")
def cluster(bare: Cluster, before: dict[str, Object]) -> Cluster:
    """The two nodes with Weft, Ready."""
    bare.install_weft(list(bare.nodes.values()))
    return bare


def look_over(node: Node) -> None:
    """No difference between desired and kernel, everything printable, reverse path filtering still on."""
    wait_for(f"no difference on {node.name}", lambda: node.weftctl("diff"), timeout=20)
    assert "table ip weft" in node.run("nft", "list", "ruleset")
    assert "weft.vxlan" in node.ip("-details link show")
    filters = node.run("sysctl", "-n", "net.ipv4.conf.all.rp_filter", "net.ipv4.conf.eth0.rp_filter")
    assert filters.split() == ["1", "1"]


@pytest.fixture(autouse=True)
def looked_over(request: pytest.FixtureRequest) -> Iterator[None]:
    """Looks each node over after each scenario, and starts the next one without pods."""
    yield
    if "cluster" in request.fixturenames:
        cluster: Cluster = request.getfixturevalue("cluster")
        for node in cluster.nodes.values():
            if not node.weft.running:  # a failure must not make all later tests fail
                node.weft.start()
            look_over(node)
