"""Pods come and go: nothing of them stays in the kernel, on disk or in IPAM."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.e2e.cluster.cluster import PODS, is_ready, pod_manifest
from tests.e2e.cluster.kernel import holdings
from tests.e2e.cluster.processes import wait_for

if TYPE_CHECKING:
    from tests.e2e.cluster.cluster import Cluster
    from tests.e2e.cluster.kernel import Holdings
    from tests.e2e.cluster.node import Node

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

COUNT = 100


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


def test_a_hundred_pods_twice_leave_nothing_behind(cluster: Cluster) -> None:
    cluster.delete_pods()
    earlier = {name: holdings(node) for name, node in cluster.nodes.items()}
    for turn in range(2):
        for number in range(COUNT):
            cluster.api.create(PODS, pod_manifest(f"churn-{turn}-{number}"))
        wait_for(
            f"{COUNT} pods to be ready",
            lambda: sum(map(is_ready, cluster.api.items(PODS))) == COUNT,
            timeout=150,
            pause=1,
        )
        addresses = [ip["ip"] for pod in cluster.api.items(PODS) for ip in pod["status"]["podIPs"]]
        assert len(addresses) == len(set(addresses)) == 2 * COUNT
        assert sum(len(attachments(node)) for node in cluster.nodes.values()) == COUNT
        cluster.delete_pods(timeout=120)
        wait_for(
            "nothing to be left",
            lambda: not remains(cluster, earlier),
            timeout=30,
            pause=1,
            state=lambda: remains(cluster, earlier),
        )
