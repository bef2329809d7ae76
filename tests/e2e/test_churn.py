"""Pods come and go: nothing of them stays in the kernel, on disk or in IPAM."""

from __future__ import annotations

import json
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.cluster.api import is_ready
from tests.e2e.cluster.cluster import PODS, pod_manifest
from tests.e2e.cluster.kernel import holdings
from tests.e2e.cluster.processes import wait_for

if TYPE_CHECKING:
    from tests.e2e.cluster.cluster import Cluster
    from tests.e2e.cluster.kernel import Holdings
    from tests.e2e.cluster.node import Node

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.timeout(400)]

COUNT = 100
STORM = 40


def attachments(node: Node) -> list[dict[str, object]]:
    listed = json.loads(node.weftctl("attachments", "-o", "json"))
    found: list[dict[str, object]] = listed.get("attachments", [])
    return found


def remains(cluster: Cluster, earlier: dict[str, Holdings]) -> dict[str, object]:
    """What is on the nodes that was not there before, with the attachments that IPAM still knows."""
    found: dict[str, object] = {}
    for name, node in cluster.nodes.items():
        added: dict[str, object] = {**holdings(node).added_since(earlier[name])}
        if known := attachments(node):
            added["attachments"] = known
        if waiting := node.files("/run/weft/deletions"):
            added["tombstones"] = waiting
        if added:
            found[name] = added
    return found


def create_pods(cluster: Cluster, names: list[str]) -> None:
    for name in names:
        cluster.api.create(PODS, pod_manifest(name))


def await_pods(cluster: Cluster, count: int) -> None:
    """Waits until that many pods are ready, and checks that no two share an address."""
    wait_for(
        f"{count} pods to be ready",
        lambda: sum(map(is_ready, cluster.api.items(PODS))) == count,
        timeout=150,
        pause=1,
    )
    addresses = [ip["ip"] for pod in cluster.api.items(PODS) for ip in pod["status"]["podIPs"]]
    assert len(addresses) == len(set(addresses)) == 2 * count
    wait_for(
        "attachments of these pods and no others",
        lambda: sum(len(attachments(node)) for node in cluster.nodes.values()) == count,
        timeout=20,
    )


def await_nothing(cluster: Cluster, earlier: dict[str, Holdings]) -> None:
    cluster.delete_pods(timeout=120)
    wait_for(
        "nothing to be left",
        lambda: not remains(cluster, earlier),
        timeout=30,
        pause=1,
        state=lambda: remains(cluster, earlier),
    )


@pytest.fixture
def earlier(cluster: Cluster) -> dict[str, Holdings]:
    """What the nodes hold without pods."""
    cluster.delete_pods()
    return {name: holdings(node) for name, node in cluster.nodes.items()}


def test_a_hundred_pods_twice_leave_nothing_behind(cluster: Cluster, earlier: dict[str, Holdings]) -> None:
    for turn in range(2):
        create_pods(cluster, [f"churn-{turn}-{number}" for number in range(COUNT)])
        await_pods(cluster, COUNT)
        await_nothing(cluster, earlier)


def test_daemons_killed_while_pods_start_and_stop_lose_and_leak_nothing(
    cluster: Cluster, earlier: dict[str, Holdings]
) -> None:
    generator = random.Random(7)
    create_pods(cluster, [f"storm-{number}" for number in range(STORM)])
    for _ in range(3):
        kill_and_restart(cluster, generator)
    await_pods(cluster, STORM)
    doomed = [f"storm-{number}" for number in range(0, STORM, 2)]
    for name in doomed:
        cluster.api.delete(f"{PODS}/{name}")
    for _ in range(3):
        kill_and_restart(cluster, generator)
    wait_for(
        "half of them to be gone", lambda: len(cluster.api.items(PODS)) == STORM - len(doomed), timeout=60
    )
    await_pods(cluster, STORM - len(doomed))
    await_nothing(cluster, earlier)


def kill_and_restart(cluster: Cluster, generator: random.Random) -> None:
    """Kills each daemon at some moment; the node is without it until kubelet has noticed."""
    for node in cluster.nodes.values():
        time.sleep(generator.uniform(0, 1))
        node.weft.restart_process(signal.SIGKILL)


def test_a_rebooted_node_gives_its_pods_new_sandboxes(cluster: Cluster) -> None:
    """Kubelet and containerd come back with what they had on disk, and delete sandboxes that are no more."""
    cluster.delete_pods()
    node = cluster.nodes["n2"]
    pods = [cluster.create_pod(f"rebooted-{number}", "n2") for number in range(3)]
    other = cluster.create_pod("other", "n1")
    node.reboot()

    def restarted() -> bool:
        found = [cluster.api.get(f"{PODS}/{pod.name}") for pod in pods]
        return all(is_ready(pod) and pod["status"]["containerStatuses"][0]["restartCount"] for pod in found)

    wait_for(
        "the pods to be back",
        restarted,
        timeout=90,
        state=lambda: "\n".join([node.weft.tail(), *(cluster.describe(pod.name) for pod in pods)]),
    )
    await_pods(cluster, len(pods) + 1)
    for pod in pods:
        for address in cluster.await_pod(pod.name).addresses:
            reached = cluster.api.execute(other.name, "ping", "-c", "1", "-W", "2", address)
            assert reached.exit_code == 0, reached.output
    cluster.delete_pods()
