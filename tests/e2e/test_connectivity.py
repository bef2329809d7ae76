"""A cluster whose nodes become Ready with Weft, and the roads between pods, nodes and the outside."""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.e2e.cluster import network
from tests.e2e.cluster.api import is_ready
from tests.e2e.cluster.processes import ClusterError, wait_for
from tests.e2e.cluster.traffic import (
    FAMILIES,
    outside_server,
    seen_from_node,
    seen_from_outside,
    seen_from_pod,
    url,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.cluster.cluster import Cluster, Pod

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.timeout(300)]

NODE_PORT = 8090


def logged(cluster: Cluster, pod: Pod, text: str) -> bool:
    return text in cluster.api.logs(pod.name)


@pytest.fixture(scope="module")
def pods(cluster: Cluster) -> Iterator[list[Pod]]:
    """Two pods on each node."""
    names = [(f"{node}-{letter}", node) for node in cluster.nodes for letter in "ab"]
    yield [cluster.create_pod(name, node) for name, node in names]
    cluster.delete_pods()


@pytest.fixture(scope="module")
def node_servers(cluster: Cluster) -> Iterator[None]:
    """A server on every node itself, that tells clients their address."""
    servers = []
    for node in cluster.nodes.values():
        www = node.directory / "www" / "cgi-bin"
        www.mkdir(parents=True)
        script = www / "address"
        script.write_text('#!/bin/sh\nprintf "Content-Type: text/plain\\r\\n\\r\\n%s" "$REMOTE_ADDR"\n')
        script.chmod(0o755)
        server = node.program(
            "httpd", "/bin/busybox", "httpd", "-f", "-p", f"[::]:{NODE_PORT}", "-h", www.parent
        )
        server.start()
        servers.append(server)
    for node in cluster.nodes.values():
        wait_for(
            f"the server on {node.name}",
            partial(seen_from_node, node, url("127.0.0.1", port=NODE_PORT)),
            timeout=10,
        )
    yield
    for server in servers:
        server.kill()


def test_nodes_become_ready_with_the_daemon(cluster: Cluster) -> None:
    for name in cluster.nodes:
        assert is_ready(cluster.node(name))


def test_pods_have_an_address_of_each_family_from_their_node(cluster: Cluster, pods: list[Pod]) -> None:
    for pod in pods:
        assert len(pod.addresses) == 2
        shown = cluster.api.execute(pod.name, "ip", "address", "show", "eth0").output
        assert f"inet {pod.v4}/32" in shown
        assert f"inet6 {pod.v6}/128" in shown
    assert len({address for pod in pods for address in pod.addresses}) == 2 * len(pods)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_pod_reaches_every_pod_with_its_own_address(
    cluster: Cluster, pods: list[Pod], family: str
) -> None:
    for sender, receiver in itertools.product(pods, pods):
        seen = seen_from_pod(cluster, sender, url(getattr(receiver, family)))
        assert seen == getattr(sender, family), f"{sender} to {receiver}"


@pytest.mark.parametrize("family", FAMILIES)
def test_large_transfers_and_full_packets_pass_between_nodes(
    cluster: Cluster, pods: list[Pod], family: str
) -> None:
    sender, receiver = pods[0], pods[-1]
    answer = cluster.api.execute(
        sender.name,
        "sh",
        "-c",
        f"timeout 10 wget -q -O - '{url(getattr(receiver, family), '/busybox')}' | wc -c",
    )
    size = cluster.api.execute(receiver.name, "stat", "-c", "%s", "/bin/busybox").output
    assert int(answer.output) == int(size) > 500_000
    mtu = int(cluster.api.execute(sender.name, "cat", "/sys/class/net/eth0/mtu").output)
    assert mtu == 1450
    headers = {"v4": 28, "v6": 48}[family]
    ping = cluster.api.execute(
        sender.name, "ping", "-c", "2", "-W", "2", "-s", str(mtu - headers), getattr(receiver, family)
    )
    assert ping.exit_code == 0, ping.output


@pytest.mark.parametrize("family", FAMILIES)
def test_nodes_reach_pods_on_both_nodes(cluster: Cluster, pods: list[Pod], family: str) -> None:
    """As kubelets do for their own pods, without address translation, and any process for pods elsewhere."""
    for node, pod in itertools.product(cluster.nodes.values(), pods):
        seen = seen_from_node(node, url(getattr(pod, family)))
        if pod.node == node.name:
            assert seen in node.addresses, f"{node.name} to {pod}"


@pytest.mark.parametrize("family", [0, 1], ids=FAMILIES)
def test_pods_reach_their_own_and_the_other_node(
    cluster: Cluster, pods: list[Pod], node_servers: None, family: int
) -> None:
    for pod, node in itertools.product(pods, cluster.nodes.values()):
        seen = seen_from_pod(cluster, pod, url(node.addresses[family], port=NODE_PORT))
        home = cluster.nodes[pod.node]
        if node is home:
            assert seen == pod.addresses[family]
        else:  # through the overlay's masquerade or a direct route
            assert seen in (home.addresses[family], pod.addresses[family])


@pytest.mark.parametrize("family", [0, 1], ids=FAMILIES)
def test_the_outside_reaches_the_nodes(cluster: Cluster, node_servers: None, family: int) -> None:
    for node in cluster.nodes.values():
        assert seen_from_outside(url(node.addresses[family], port=NODE_PORT)) == network.SERVER[family]


def test_kubelet_runs_commands_and_reads_logs(cluster: Cluster, pods: list[Pod]) -> None:
    for pod in pods:
        answer = cluster.api.execute(pod.name, "sh", "-c", "echo to the log > /proc/1/fd/1; echo out; exit 7")
        assert (answer.exit_code, answer.output) == (7, "out\n")
        wait_for("the log", partial(logged, cluster, pod, "to the log"), timeout=10)


@pytest.mark.parametrize("family", [0, 1], ids=FAMILIES)
def test_the_outside_sees_the_nodes_address(cluster: Cluster, pods: list[Pod], family: int) -> None:
    with outside_server(network.OUTSIDE[family]) as seen:
        for pod in pods:
            seen.clear()
            seen_from_pod(cluster, pod, url(network.OUTSIDE[family], "/"))
            assert seen == [cluster.nodes[pod.node].addresses[family]]


def test_an_unused_pod_address_is_refused_at_once(cluster: Cluster, pods: list[Pod]) -> None:
    """It does not leave by the default route and come back."""
    prefix = pods[0].v4.rsplit(".", 1)[0]
    answer = cluster.api.execute(pods[-1].name, "ping", "-c", "1", "-W", "2", f"{prefix}.250")
    assert answer.exit_code != 0


def test_a_second_daemon_on_the_node_refuses_to_start(cluster: Cluster) -> None:
    node = next(iter(cluster.nodes.values()))
    second = node.program("second-weftd", *node.weft.beside("weftd"), NODE_NAME=node.name)
    second.start()
    wait_for("the second daemon to give up", lambda: not second.running, timeout=20)
    assert "lock" in second.tail()
    with pytest.raises(ClusterError):
        _ = second.pid
