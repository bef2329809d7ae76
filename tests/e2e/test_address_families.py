"""Clusters of one address family. They come and go before the cluster of the other tests is made."""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.e2e.cluster.cluster import running
from tests.e2e.cluster.kernel import holdings
from tests.e2e.cluster.network import ONLY_IPV4, ONLY_IPV6
from tests.e2e.cluster.processes import wait_for

if TYPE_CHECKING:
    from tests.e2e.cluster.kernel import Holdings
    from tests.e2e.cluster.node import Node

if TYPE_CHECKING:
    from tests.e2e.cluster.network import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("stack", "mtu", "link", "idle"),
    [
        pytest.param(ONLY_IPV4, 1450, "weft.vxlan", "weft.vxlan6", id="IPv4"),
        pytest.param(ONLY_IPV6, 1430, "weft.vxlan6", "weft.vxlan", id="IPv6"),
    ],
)
def test_a_cluster_of_one_family(stack: Stack, mtu: int, link: str, idle: str) -> None:
    """Pods of two nodes reach one another with their own addresses, and leave nothing behind."""
    with running(2, stack) as cluster:
        cluster.install_weft(list(cluster.nodes.values()))
        earlier = {name: holdings(node) for name, node in cluster.nodes.items()}
        for held in earlier.values():
            assert link in held.links
            assert idle not in held.links
        pods = [cluster.create_pod(f"{name}-{letter}", name) for name in cluster.nodes for letter in "ab"]
        for sender, receiver in itertools.product(pods, pods):
            assert len(receiver.addresses) == 1
            address = receiver.addresses[0]
            url = f"http://[{address}]:8080" if ":" in address else f"http://{address}:8080"
            answer = cluster.api.execute(
                sender.name, "timeout", "5", "wget", "-qO-", f"{url}/cgi-bin/address"
            )
            assert answer.exit_code == 0, f"{sender} to {receiver}: {answer.messages}"
            assert answer.output.strip("[]").removeprefix("::ffff:") == sender.addresses[0]
            size = mtu - (48 if ":" in address else 28)
            ping = cluster.api.execute(sender.name, "ping", "-c", "1", "-W", "2", "-s", str(size), address)
            assert ping.exit_code == 0, ping.output
        assert int(cluster.api.execute(pods[0].name, "cat", "/sys/class/net/eth0/mtu").output) == mtu
        cluster.delete_pods()
        for name, node in cluster.nodes.items():
            wait_for(
                f"nothing to be left on {name}",
                partial(nothing_left, node, earlier[name]),
                timeout=20,
                state=partial(left_on, node, earlier[name]),
            )
            assert node.weftctl("diff")


def left_on(node: Node, earlier: Holdings) -> dict[str, list[str]]:
    return holdings(node).added_since(earlier)


def nothing_left(node: Node, earlier: Holdings) -> bool:
    return not left_on(node, earlier)
