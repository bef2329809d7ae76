"""Two minutes without an API server: nodes go on from what they know."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.cluster.api import is_ready
from tests.e2e.cluster.cluster import PODS, pod_manifest
from tests.e2e.cluster.node import STATIC_PODS
from tests.e2e.cluster.processes import wait_for
from tests.e2e.cluster.traffic import pinging, streaming

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.cluster.cluster import Cluster, Pod
    from tests.e2e.cluster.node import Node

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.timeout(600)]

OUTAGE = 120.0
"""Seconds."""


@pytest.fixture
def pods(cluster: Cluster) -> Iterator[list[Pod]]:
    """Two pods on each node."""
    yield [cluster.create_pod(f"{node}-{letter}", node) for letter in "ab" for node in cluster.nodes]
    # A kubelet's watch rests up to a minute after an outage before it is tried again, and so do deletions.
    cluster.delete_pods(timeout=150)


def attached(node: Node) -> dict[str, list[str]]:
    """The pods' addresses by their name, as the agent knows them."""
    listed = json.loads(node.weftctl("attachments", "-o", "json"))["attachments"]
    return {each["podName"]: each["addresses"] for each in listed if each["state"] == "attached"}


def kill_sandbox(node: Node, pod: str) -> str:
    """Kills the process that holds a pod's namespaces, and returns its sandbox's id."""
    wanted = f'labels."io.kubernetes.pod.name"=={pod},labels."io.cri-containerd.kind"==sandbox'
    known = node.ctr("containers", "list", "--quiet", wanted).split()
    # Earlier ones may not have been collected yet.
    tasks = (line.split() for line in node.ctr("tasks", "list").splitlines())
    (sandbox,) = (words[0] for words in tasks if words[0] in known and words[2] == "RUNNING")
    node.ctr("tasks", "kill", "--signal", "SIGKILL", sandbox)
    return sandbox


@contextlib.contextmanager
def outage(cluster: Cluster) -> Iterator[None]:
    """Takes the API server away until OUTAGE has passed."""
    cluster.control.server.stop()
    down = time.monotonic()
    try:
        yield
        time.sleep(max(0.0, down + OUTAGE - time.monotonic()))
        for node in cluster.nodes.values():
            node.weft.await_ready()
    finally:
        cluster.control.server.start()
        cluster.control.await_server()


def test_two_minutes_without_an_api_server(cluster: Cluster, pods: list[Pod]) -> None:
    """Pods talk; a pod that the node was given before gets a new sandbox; static pods come and go."""
    before = cluster.weft.restarts()
    left, right, victim, _ = pods
    node = cluster.nodes[victim.node]
    earlier = attached(node)[victim.name]
    static, manifest = f"static-{node.name}", node.path(f"{STATIC_PODS}/static.json")
    load = pinging(cluster, left, list(right.addresses))
    with streaming(cluster, left, right), load, outage(cluster):
        kill_sandbox(node, victim.name)
        wait_for(
            "the pod to be attached anew",
            lambda: attached(node).get(victim.name, earlier) != earlier,
            state=node.weft.tail,
        )
        manifest.write_text(json.dumps(pod_manifest("static")))
        wait_for("a static pod to be attached", lambda: static in attached(node), state=node.weft.tail)
        for address in (*attached(node)[static], *attached(node)[victim.name]):
            reached = cluster.nodes[right.node].run("ping", "-n", "-c", "1", "-W", "2", address)
            assert " 0% packet loss" in reached
        manifest.unlink()
        wait_for("it to be detached", lambda: static not in attached(node), state=node.weft.tail)
    cluster.await_nodes()
    wait_for(
        "the pods to be ready", lambda: all(is_ready(cluster.api.get(f"{PODS}/{pod.name}")) for pod in pods)
    )
    cluster.weft.await_rollout()
    assert cluster.weft.restarts() == before
