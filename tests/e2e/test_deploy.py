"""Weft as its users install it: what the agents may do, what they say, and what a mistake does not touch."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.e2e.cluster.deployment import AGENTS, CONFIGMAP, NAMESPACE
from tests.e2e.cluster.manifests import merge
from tests.e2e.cluster.processes import wait_for
from tests.e2e.cluster.traffic import pinging

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.cluster.cluster import Cluster, Pod

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.timeout(300)]

EVENTS = "/api/v1/namespaces/default/events?fieldSelector=reason%3D"
HEALTH_PORT = 10256


@pytest.fixture(scope="module")
def pods(cluster: Cluster) -> Iterator[list[Pod]]:
    """Two pods on each node."""
    yield [cluster.create_pod(f"{node}-{letter}", node) for node in cluster.nodes for letter in "ab"]
    cluster.delete_pods()


def test_the_agents_are_not_privileged(cluster: Cluster) -> None:
    for node, pod in cluster.weft.agents().items():
        for container in (*pod["spec"]["initContainers"], *pod["spec"]["containers"]):
            context = container["securityContext"]
            assert not context.get("privileged")
            assert context["readOnlyRootFilesystem"]
        status = cluster.api.execute(
            pod["metadata"]["name"], "grep", "-E", "CapEff|Seccomp:", "/proc/1/status", namespace=NAMESPACE
        )
        fields = dict(line.split(":", 1) for line in status.output.splitlines())
        admin = 1 << 12 | 1 << 21  # CAP_NET_ADMIN, CAP_SYS_ADMIN
        assert int(fields["CapEff"], 16) == admin, node
        assert int(fields["Seccomp"]) == 2, node  # a filter


def test_the_agents_find_nothing_wrong(cluster: Cluster) -> None:
    """Neither a permission nor a mount is missing."""
    cluster.weft.configure()
    for pod in cluster.weft.agents().values():
        lines = [json.loads(line) for line in cluster.weft.log(pod).splitlines() if line.startswith("{")]
        assert not [line for line in lines if line["level"] in ("warning", "error")]
        assert any(line["event"] == "ready" for line in lines)
        assert json.loads(cluster.weft.weftctl(pod, "status", "-o", "json"))["ready"]


@pytest.mark.parametrize(
    ("line", "named"),
    [("ovrlay: direct", "ovrlay"), ("vni: 0", "vni: 0 is not allowed")],
    ids=["key", "value"],
)
def test_a_wrong_key_or_value_is_named_and_touches_nothing(
    cluster: Cluster, pods: list[Pod], line: str, named: str
) -> None:
    node = cluster.nodes["n1"]
    right = cluster.api.get(CONFIGMAP)["data"]["weftd.yaml"]
    rules, routes = node.run("nft", "--stateless", "list", "ruleset"), node.ip("route show table all")
    key = line.split(":")[0]
    kept = "\n".join(each for each in right.splitlines() if not each.startswith(f"{key}:"))
    with pinging(cluster, pods[0], list(pods[-1].addresses)):
        merge(cluster.api, CONFIGMAP, {"data": {"weftd.yaml": f"{kept}\n{line}\n"}})
        victim = cluster.weft.agents()["n1"]["metadata"]
        cluster.api.delete(f"{AGENTS}/{victim['name']}")

        def refused() -> str:
            pod = cluster.weft.agents().get("n1")
            return cluster.weft.log(pod) if pod and pod["metadata"]["uid"] != victim["uid"] else ""

        wait_for("the log to name it", lambda: named in refused(), timeout=60)
        events = f"{EVENTS}ConfigurationWrong"
        wait_for(
            "an event to name it",
            lambda: any(named in event["message"] for event in cluster.api.items(events)),
            timeout=30,
        )
        assert node.run("nft", "--stateless", "list", "ruleset") == rules
        assert node.ip("route show table all") == routes
        merge(cluster.api, CONFIGMAP, {"data": {"weftd.yaml": right}})
        cluster.weft.replace("n1")


def test_a_health_port_that_is_taken_is_told_and_nothing_else(cluster: Cluster) -> None:
    """As by kube-proxy beside Weft: the agent is ready, and takes the port when it can."""
    node = cluster.nodes["n1"]
    node.weft.stop()
    holder = node.program("holder", "/bin/busybox", "httpd", "-f", "-p", f"[::]:{HEALTH_PORT}")
    holder.start()
    try:
        wait_for("the port to be taken", lambda: f":{HEALTH_PORT} " in node.run("ss", "-Hltn"), timeout=10)
        node.weft.start()
        cluster.weft.await_rollout()
        told = json.loads(node.weftctl("status", "-o", "json", check=False))
        (finding,) = [each for each in told["findings"] if each["name"] == "PortTaken"]
        assert "kube-proxy" in finding["message"]
        assert told["ready"]
    finally:
        holder.kill()
    wait_for("the port to be served", partial(healthy, cluster), timeout=30)


def healthy(cluster: Cluster) -> bool:
    node = cluster.nodes["n1"]
    return bool(node.run("/bin/busybox", "wget", "-q", "-O", "-", f"http://127.0.0.1:{HEALTH_PORT}/healthz"))
