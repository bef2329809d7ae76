"""One cluster for all end-to-end tests; after each test its nodes are looked over."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.e2e.cluster.api import condition
from tests.e2e.cluster.build import BuildError
from tests.e2e.cluster.cluster import running
from tests.e2e.cluster.kernel import belongings
from tests.e2e.cluster.processes import wait_for
from tests.e2e.cluster.services import delete_services

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.cluster.cluster import Cluster
    from tests.e2e.cluster.kernel import Belongings
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
def before(bare: Cluster) -> dict[str, Belongings]:
    """What was on each node before Weft was there; it lacked a network."""

    def waits(name: str) -> bool:
        return "cni plugin not initialized" in str(condition(bare.node(name), "Ready").get("message"))

    for name in bare.nodes:
        wait_for(f"{name} to miss its network", partial(waits, name))
    return {name: belongings(node) for name, node in bare.nodes.items()}


@pytest.fixture(scope="session")
def cluster(bare: Cluster, before: dict[str, Belongings]) -> Cluster:
    """The two nodes with Weft, Ready; nothing was placed on them by hand but the image."""
    assert not any("weft" in path for found in before.values() for path in found.files)
    bare.install_weft()
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
    """Looks each node over after each scenario, with the Services of it, and takes these away."""
    yield
    if "cluster" in request.fixturenames:
        cluster: Cluster = request.getfixturevalue("cluster")
        for node in cluster.nodes.values():
            node.weft.start()  # a failure must not make all later tests fail
        cluster.weft.await_rollout()
        for node in cluster.nodes.values():
            look_over(node)
        delete_services(cluster)
