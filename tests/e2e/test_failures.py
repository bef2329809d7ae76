"""The daemon restarts, is killed, loses its API server; nodes come and go: pods talk on, nothing is left."""

from __future__ import annotations

import json
import re
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.cluster.api import condition
from tests.e2e.cluster.cluster import PODS, pod_manifest
from tests.e2e.cluster.processes import wait_for
from tests.e2e.cluster.traffic import pinging

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.cluster.cluster import Cluster, Pod
    from tests.e2e.cluster.node import Node

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture
def pair(cluster: Cluster) -> Iterator[tuple[Pod, Pod]]:
    """A pod on each node."""
    yield cluster.create_pod("left", "n1"), cluster.create_pod("right", "n2")
    cluster.delete_pods()


def test_a_restart_of_the_daemon_does_not_touch_traffic(cluster: Cluster, pair: tuple[Pod, Pod]) -> None:
    left, right = pair
    with pinging(cluster, left, list(right.addresses)):
        for node in cluster.nodes.values():
            node.weft.restart()
            node.weft.restart(signal.SIGKILL)
    late = cluster.create_pod("late", "n2")
    with pinging(cluster, left, list(late.addresses)):
        pass


def test_pods_deleted_while_the_daemon_is_dead_are_collected_on_its_return(
    cluster: Cluster, pair: tuple[Pod, Pod]
) -> None:
    left, right = pair
    victims = [cluster.create_pod(f"victim-{number}", "n2", serve=False) for number in range(3)]
    node = cluster.nodes["n2"]
    links = {link for link in node.ip("-o link show").split() if link.startswith("weft")}
    with pinging(cluster, left, list(right.addresses)):
        node.weft.kill()
        started = time.monotonic()
        cluster.delete_pods(*(pod.name for pod in victims))
        assert time.monotonic() - started < 30
        wait_for("tombstones", lambda: len(node.files("/run/weft/deletions")) == len(victims), timeout=20)
        node.weft.start()
        wait_for("the deletions to be worked off", lambda: not node.files("/run/weft/deletions"), timeout=30)
    known = node.weftctl("attachments", "-o", "json")
    routes = node.ip("route show") + node.ip("-6 route show")
    for pod in victims:
        for address in pod.addresses:
            assert address not in known
            assert address not in routes
    wait_for(
        "their links to go",
        lambda: (
            len([link for link in node.ip("-o link show").split() if link.startswith("weft")]) < len(links)
        ),
        timeout=10,
    )


def test_a_pod_created_while_the_daemon_is_dead_starts_on_its_return(cluster: Cluster) -> None:
    node = cluster.nodes["n1"]
    node.weft.kill()
    cluster.api.create(PODS, pod_manifest("early", "n1"))

    def refused() -> bool:
        return "the Weft daemon is not running on this node" in cluster.describe("early")

    wait_for("the attempt to fail clearly", refused, timeout=30, state=lambda: cluster.describe("early"))
    assert node.files("/run/weft/deletions") == [], "an attempt that wired nothing leaves nothing to delete"
    node.weft.start()
    cluster.await_pod("early")
    cluster.delete_pods()


def test_a_runtime_that_asks_for_status_reports_the_node_as_not_ready(cluster: Cluster) -> None:
    """containerd 2 does, older ones don't; either way the node is Ready when the daemon is back."""
    node = cluster.nodes["n2"]

    def reason() -> str:
        return str(condition(cluster.node(node.name), "Ready").get("message"))

    node.weft.kill()
    wait_for(
        "the node to say why", lambda: "Weft daemon is not running" in reason(), timeout=30, state=reason
    )
    assert not cluster.node_is_ready(node.name)
    node.weft.start()
    wait_for("the node to be Ready", partial(cluster.node_is_ready, node.name), timeout=30, state=reason)


def test_an_outage_of_the_api_server_is_not_noticed_by_pods(cluster: Cluster, pair: tuple[Pod, Pod]) -> None:
    """Nor is a restart of the daemon during the outage, after which it waits for the server."""
    left, right = pair
    steady, restarted = cluster.nodes["n1"], cluster.nodes["n2"]
    with pinging(cluster, left, list(right.addresses)):
        cluster.control.server.kill()
        restarted.weft.restart_process()
        wait_for("the daemon to notice", lambda: not status(steady)["apiServerConnected"], timeout=30)
        assert status(steady)["ready"], "a node without an API server goes on serving"
        time.sleep(3)
        cluster.control.server.start()
        cluster.control.await_server()
        for node in cluster.nodes.values():
            wait_for(
                f"{node.name} to be connected again",
                partial(connected, node),
                timeout=60,
                state=node.weft.tail,
            )
    for name in cluster.nodes:
        cluster.create_pod(f"after-{name}", name)


def status(node: Node) -> dict[str, Any]:
    """What the daemon says of itself; weftctl's exit code tells findings, too, and is left aside."""
    answer: dict[str, Any] = json.loads(node.weftctl("status", "-o", "json", check=False))
    return answer


def connected(node: Node) -> bool:
    said = status(node)
    return bool(said["apiServerConnected"] and said["ready"])


def test_a_node_joins_and_leaves(cluster: Cluster, pair: tuple[Pod, Pod]) -> None:
    left, right = pair
    others = list(cluster.nodes.values())
    with pinging(cluster, left, list(right.addresses)):
        node = cluster.add_node()
        try:
            cluster.await_nodes()
            pod = cluster.create_pod("third", node.name)
            cidrs = cluster.node(node.name)["spec"]["podCIDRs"]
            with pinging(cluster, left, list(pod.addresses)):
                for other in others:
                    routes = other.ip("route show") + other.ip("-6 route show")
                    assert all(cidr in routes for cidr in cidrs)
        finally:
            cluster.remove_node(node)
        cluster.api.delete(f"{PODS}/{pod.name}", gracePeriodSeconds=0)
        for other in others:
            wait_for(
                f"{other.name} to forget {node.name}",
                partial(has_no_traces, other, [*cidrs, *node.addresses]),
                timeout=15,
                state=partial(traces, other, [*cidrs, *node.addresses]),
            )


def has_no_traces(node: Node, texts: list[str]) -> bool:
    return not traces(node, texts)


def traces(node: Node, texts: list[str]) -> list[str]:
    """Lines of routes, FDB, permanent neighbours and rules that still name what is gone."""
    lines = "\n".join(
        [
            node.ip("route show table all"),
            node.ip("-6 route show table all"),
            node.run("bridge", "fdb", "show"),
            node.run("nft", "list", "ruleset"),
        ]
    ).splitlines()
    pattern = re.compile("|".join(rf"(?<![\d.:a-f]){re.escape(text)}(?![\d.:a-f])" for text in texts))
    return [line for line in lines if pattern.search(line)]
