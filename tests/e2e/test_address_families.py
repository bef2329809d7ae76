"""Clusters with one address family, of pods or of nodes; gone before that of the other tests is made."""

from __future__ import annotations

import itertools
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.e2e.cluster.cluster import running
from tests.e2e.cluster.kernel import holdings
from tests.e2e.cluster.network import Stack
from tests.e2e.cluster.policies import (
    PROBED_SECONDS,
    Caller,
    apply_policy,
    create_probed,
    delete_policies,
    probes_failed,
)
from tests.e2e.cluster.processes import wait_for
from tests.e2e.cluster.traffic import seen_from_pod, url

if TYPE_CHECKING:
    from tests.e2e.cluster.cluster import Cluster, Pod
    from tests.e2e.cluster.kernel import Holdings
    from tests.e2e.cluster.node import Node


pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("stack", "mtu", "link", "idle"),
    [
        pytest.param(Stack((0,), (0,)), 1450, "weft.vxlan", "weft.vxlan6", id="IPv4"),
        pytest.param(Stack((1,), (1,)), 1430, "weft.vxlan6", "weft.vxlan", id="IPv6"),
        pytest.param(Stack((0, 1), (0,)), 1450, "weft.vxlan", "weft.vxlan6", id="both over IPv4"),
        pytest.param(Stack((0, 1), (1,)), 1430, "weft.vxlan6", "weft.vxlan", id="both over IPv6"),
    ],
)
def test_pods_and_nodes_need_not_have_both_families(stack: Stack, mtu: int, link: str, idle: str) -> None:
    """Pods of two nodes reach one another with their own addresses, and leave nothing behind."""
    with running(2, stack) as cluster:
        cluster.install_weft()
        earlier = {name: holdings(node) for name, node in cluster.nodes.items()}
        for held in earlier.values():
            assert link in held.links
            assert idle not in held.links
        pods = [cluster.create_pod(name, name.split("-")[0]) for name in ("n1-a", "n1-b", "n2-a")]
        for sender, receiver, family in itertools.product(pods, pods, range(len(stack.pods))):
            assert len(receiver.addresses) == len(stack.pods)
            address = receiver.addresses[family]
            assert seen_from_pod(cluster, sender, url(address)) == sender.addresses[family]
            size = str(mtu - (48 if ":" in address else 28))
            ping = cluster.api.execute(sender.name, "ping", "-c", "1", "-W", "2", "-s", size, address)
            assert ping.exit_code == 0, ping.output
        assert int(cluster.api.execute(pods[0].name, "cat", "/sys/class/net/eth0/mtu").output) == mtu
        if len(stack.pods) == 1:
            probes_pass_under_default_deny(cluster, pods[0])
        cluster.delete_pods()
        for name, node in cluster.nodes.items():
            wait_for(
                f"nothing to be left on {name}",
                partial(nothing_left, node, earlier[name]),
                timeout=20,
                state=partial(left_on, node, earlier[name]),
            )
            assert node.weftctl("diff")


def probes_pass_under_default_deny(cluster: Cluster, stranger: Pod) -> None:
    """Kubelets probe a pod's first address only: with each family alone, each is probed."""
    apply_policy(cluster.api, "deny", policyTypes=["Ingress", "Egress"])
    probed = create_probed(cluster, "n2-probed", "n2")
    time.sleep(PROBED_SECONDS)
    assert not probes_failed(cluster, probed)
    assert Caller.pod(cluster, stranger).outcomes(probed.addresses) == ["silence"]
    delete_policies(cluster.api)


def left_on(node: Node, earlier: Holdings) -> dict[str, list[str]]:
    return holdings(node).added_since(earlier)


def nothing_left(node: Node, earlier: Holdings) -> bool:
    return not left_on(node, earlier)
