"""Nodes that share a segment talk without the overlay when they are told to; and with it again."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from tests.e2e.cluster.traffic import FAMILIES, seen_from_pod, url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.cluster.cluster import Cluster, Pod

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", params=["direct", "auto"])
def reconfigured(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Cluster]:
    """All nodes in one of the other modes; the usual one at the end."""
    cluster.weft.configure(overlay=request.param)
    yield cluster
    cluster.weft.configure()


@pytest.fixture(scope="module")
def pods(reconfigured: Cluster) -> Iterator[list[Pod]]:
    """A pod on each node."""
    yield [reconfigured.create_pod(f"mode-{name}", name) for name in reconfigured.nodes]
    reconfigured.delete_pods()


def test_routes_lead_to_the_nodes_themselves(cluster: Cluster, pods: list[Pod]) -> None:
    for node, peer in itertools.permutations(cluster.nodes.values(), 2):
        routes = node.ip("route show") + node.ip("-6 route show")
        for cidr, address in zip(cluster.node(peer.name)["spec"]["podCIDRs"], peer.addresses, strict=True):
            assert f"{cidr} via {address} dev eth0" in routes


def test_pods_use_as_much_of_the_segment_as_the_mode_allows(
    request: pytest.FixtureRequest, cluster: Cluster, pods: list[Pod]
) -> None:
    """In the mode auto some packets may still have to go by the overlay."""
    mtu = {"direct": 1500, "auto": 1450}[request.node.callspec.params["reconfigured"]]
    for pod in pods:
        assert int(cluster.api.execute(pod.name, "cat", "/sys/class/net/eth0/mtu").output) == mtu


@pytest.mark.parametrize("family", FAMILIES)
def test_pods_see_each_others_addresses(cluster: Cluster, pods: list[Pod], family: str) -> None:
    for sender, receiver in itertools.product(pods, pods):
        assert seen_from_pod(cluster, sender, url(getattr(receiver, family))) == getattr(sender, family)


def test_pods_made_in_another_mode_stay_reachable(cluster: Cluster) -> None:
    """Whatever the mode of the daemon that wired them was; their MTU stays as it was."""
    old, new = cluster.create_pod("old", "n1"), cluster.create_pod("new", "n2")
    try:
        for mode in ("auto", "vxlan"):
            cluster.weft.configure(overlay=mode)
            for family in FAMILIES:
                assert seen_from_pod(cluster, old, url(getattr(new, family))) == getattr(old, family)
                assert seen_from_pod(cluster, new, url(getattr(old, family))) == getattr(new, family)
    finally:
        cluster.delete_pods()
