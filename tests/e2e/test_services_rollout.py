"""A Deployment's pods replaced one by one by real kubelets, while clients connect: none of them fails."""

from __future__ import annotations

import json
import signal
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.cluster import load, manifests
from tests.e2e.cluster.api import is_ready
from tests.e2e.cluster.cluster import PODS, pod_manifest
from tests.e2e.cluster.processes import Program, wait_for
from tests.e2e.cluster.services import PORT, create_service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.cluster.api import Object
    from tests.e2e.cluster.cluster import Cluster

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.timeout(300)]

DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"
REPLICAS = 4
SERVES_ON = 5
"""Seconds for which a pod serves after it was told to go."""
RATE = 25
"""Requests a second of each client."""


def deployment(name: str) -> Object:
    """Pods that serve until SIGKILL, as the first process of a container does that handles no SIGTERM."""
    labels = {"app": name}
    spec = pod_manifest(name, serve=True)["spec"] | {"terminationGracePeriodSeconds": SERVES_ON}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": REPLICAS,
            "selector": {"matchLabels": labels},
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def running(cluster: Cluster) -> dict[str, bool]:
    """The Deployment's pods by UID, and whether they are ready."""
    pods = cluster.api.items(f"{PODS}?labelSelector=app%3Drolled")
    return {pod["metadata"]["uid"]: is_ready(pod) for pod in pods}


@pytest.fixture
def rolled(cluster: Cluster) -> Iterator[str]:
    """The path of a Deployment whose pods serve."""
    cluster.api.create(DEPLOYMENTS, deployment("rolled"))
    wait_for("the pods to serve", lambda: list(running(cluster).values()) == [True] * REPLICAS)
    yield f"{DEPLOYMENTS}/rolled"
    cluster.api.delete(f"{DEPLOYMENTS}/rolled", propagationPolicy="Background")
    wait_for("the pods to be gone", lambda: not running(cluster))
    cluster.delete_pods()


def test_a_rolling_replacement_loses_no_connection(cluster: Cluster, rolled: str) -> None:
    """From a pod and a node by ClusterIP, and from outside by NodePort."""
    client = cluster.create_pod("rolling-client", "n2", serve=False)
    made = create_service(cluster, "rolled", "rolled", endpoints=REPLICAS, type="NodePort")
    address, port = made["spec"]["clusterIP"], made["spec"]["ports"][0]["nodePort"]
    node = cluster.nodes["n1"]
    python = (sys.executable, load.__file__)
    inside, outside = (address, str(PORT), str(RATE)), (node.addresses[0], str(port), str(RATE))
    in_pod = cluster.in_network_of(client, *python, *inside)
    clients = [
        Program("pod", in_pod, node.directory / "load-pod.log", nested=True),
        Program("node", node.inside(*python, *inside), node.directory / "load-node.log", nested=True),
        Program("outside", [*python, *outside], node.directory / "load-outside.log"),
    ]
    before = running(cluster)

    def replaced() -> bool:
        now = running(cluster)
        return len(now) == REPLICAS and all(now.values()) and not now.keys() & before

    for each in clients:
        each.start()
    try:
        wait_for("the clients", lambda: all("loading" in each.tail() for each in clients), timeout=10)
        began = time.monotonic()
        change = {"metadata": {"annotations": {"turn": "second"}}}
        manifests.merge(cluster.api, rolled, {"spec": {"template": change}})
        wait_for("all pods to be others", replaced, timeout=120)
        time.sleep(1)
        seconds = time.monotonic() - began
    finally:
        for each in clients:
            each.stop(signal.SIGINT)
    for each in clients:
        figures = json.loads(each.tail(1))
        print(f"{each.name}: {figures}")
        assert figures["requests"] > 0.8 * RATE * seconds, f"{each.name}: {figures} in {seconds:.1f} s"
        assert not figures["failures"], f"{each.name}: {figures}"
