"""Weft as its users install it: an image, and a manifest applied to a cluster without a network."""

from __future__ import annotations

import itertools
import json
import time
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.e2e.cluster.agent_image import ROOT, agent_image
from tests.e2e.cluster.cluster import PODS, pod_manifest, running
from tests.e2e.cluster.processes import wait_for
from tests.e2e.test_connectivity import FAMILIES, seen_from_pod, url
from tests.e2e.test_failures import pinging

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.cluster.api import Api, Object
    from tests.e2e.cluster.cluster import Cluster, Pod

pytestmark = [pytest.mark.deploy, pytest.mark.root, pytest.mark.timeout(600)]

NAMESPACE = "kube-system"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
COLLECTIONS = {
    "ServiceAccount": f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts",
    "ConfigMap": f"/api/v1/namespaces/{NAMESPACE}/configmaps",
    "ClusterRole": f"{RBAC}/clusterroles",
    "ClusterRoleBinding": f"{RBAC}/clusterrolebindings",
    "DaemonSet": f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets",
}
DAEMONSET = f"{COLLECTIONS['DaemonSet']}/weft"
CONFIGMAP = f"{COLLECTIONS['ConfigMap']}/weft"
OUTAGE = 30.0
"""Seconds; longer than any time-out of daemon and kubelet for one request."""
AGENTS = f"/api/v1/namespaces/{NAMESPACE}/pods"


def manifest() -> list[Object]:
    return list(yaml.safe_load_all((ROOT / "deploy" / "weft.yaml").read_text()))


def image_name() -> str:
    (daemonset,) = (each for each in manifest() if each["kind"] == "DaemonSet")
    return str(daemonset["spec"]["template"]["spec"]["containers"][0]["image"])


def apply(api: Api, objects: list[Object]) -> None:
    """Server-side apply, as `kubectl apply --server-side` does it."""
    for each in objects:
        path = f"{COLLECTIONS[each['kind']]}/{each['metadata']['name']}?fieldManager=tests&force=true"
        api.request("PATCH", path, each, kind="application/apply-patch+yaml")


def patch(api: Api, path: str, change: Object) -> None:
    api.request("PATCH", path, change, kind="application/merge-patch+json")


def agents(cluster: Cluster) -> dict[str, Object]:
    """The agents' pods by node; those that end are left out."""
    found = cluster.api.items(AGENTS)
    return {
        pod["spec"]["nodeName"]: pod
        for pod in found
        if not pod["metadata"].get("deletionTimestamp") and "nodeName" in pod["spec"]
    }


def rolled_out(cluster: Cluster) -> bool:
    daemonset = cluster.api.get(DAEMONSET)
    status, wanted = daemonset["status"], len(cluster.nodes)
    return status.get("observedGeneration") == daemonset["metadata"]["generation"] and all(
        status.get(name) == wanted for name in ("updatedNumberScheduled", "numberReady", "numberAvailable")
    )


def log_of(cluster: Cluster, pod: Object, container: str = "weftd", previous: str = "false") -> str:
    name = pod["metadata"]["name"]
    return cluster.api.text("GET", f"{AGENTS}/{name}/log?container={container}&previous={previous}")


def known(cluster: Cluster) -> str:
    """What there is to know about agents that do not become ready."""
    lines = []
    for node, pod in agents(cluster).items():
        lines.append(f"{node}: {json.dumps(pod['status'])}")
        for container in ("install", "weftd"):
            try:
                lines.append(log_of(cluster, pod, container)[-3000:])
            except Exception as error:  # noqa: BLE001 - a report about a failure must not fail itself
                lines.append(str(error))
    events = cluster.api.items(f"/api/v1/namespaces/{NAMESPACE}/events")
    return "\n".join([*lines, *(str(event.get("message")) for event in events)])


def await_rollout(cluster: Cluster) -> None:
    wait_for(
        "the agents to be rolled out", lambda: rolled_out(cluster), timeout=90, state=lambda: known(cluster)
    )


def restarts(cluster: Cluster) -> dict[str, int]:
    return {
        pod["metadata"]["uid"]: sum(each["restartCount"] for each in pod["status"]["containerStatuses"])
        for pod in agents(cluster).values()
    }


@pytest.fixture(scope="module")
def deployed() -> Iterator[Cluster]:
    """Two nodes on which nothing was placed by hand but the image."""
    archive = agent_image(image_name())
    with running(2) as cluster:
        for node in cluster.nodes.values():
            node.ctr("images", "import", archive)
            assert not [name for name in node.files("/etc/cni/net.d") if "conf" in name]
            assert "weft" not in node.files("/opt/cni/bin")
        apply(cluster.api, manifest())
        await_rollout(cluster)
        for name in cluster.nodes:
            wait_for(
                f"{name} to be Ready",
                lambda name=name: cluster.node_is_ready(name),  # type: ignore[misc]
                state=lambda: known(cluster),
            )
        yield cluster


@pytest.fixture(autouse=True)
def looked_over_too(deployed: Cluster) -> Iterator[None]:
    """After each scenario the agents run, and find no difference."""
    yield
    await_rollout(deployed)
    for node, pod in agents(deployed).items():
        name = pod["metadata"]["name"]
        answer = deployed.api.execute(name, "weftctl", "diff", namespace=NAMESPACE)
        assert answer.exit_code == 0, f"{node}: {answer.output} {answer.messages}"


@pytest.fixture(scope="module")
def pods(deployed: Cluster) -> list[Pod]:
    """Two pods on each node."""
    return [
        deployed.create_pod(f"{node}-{letter}", node)
        for node, letter in itertools.product(deployed.nodes, "ab")
    ]


def test_the_agents_are_not_privileged(deployed: Cluster) -> None:
    for node, pod in agents(deployed).items():
        for container in (*pod["spec"]["initContainers"], *pod["spec"]["containers"]):
            context = container["securityContext"]
            assert not context.get("privileged")
            assert context["readOnlyRootFilesystem"]
        name = pod["metadata"]["name"]
        status = deployed.api.execute(
            name, "grep", "-E", "CapEff|Seccomp:", "/proc/1/status", namespace=NAMESPACE
        )
        fields = dict(line.split(":", 1) for line in status.output.splitlines())
        admin = 1 << 12 | 1 << 21  # CAP_NET_ADMIN, CAP_SYS_ADMIN
        assert int(fields["CapEff"], 16) == admin, node
        assert int(fields["Seccomp"]) == 2, node  # a filter


def test_the_agents_find_nothing_wrong(deployed: Cluster) -> None:
    """Neither a permission nor a mount is missing."""
    for pod in agents(deployed).values():
        log = log_of(deployed, pod)
        lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
        assert not [line for line in lines if line["level"] in ("warning", "error")]
        assert any(line["event"] == "ready" for line in lines)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_pod_reaches_every_pod_with_its_own_address(
    deployed: Cluster, pods: list[Pod], family: str
) -> None:
    for sender, receiver in itertools.product(pods, pods):
        seen = seen_from_pod(deployed, sender, url(getattr(receiver, family)))
        assert seen == getattr(sender, family), f"{sender} to {receiver}"


def test_rollouts_do_not_touch_traffic_and_pods_come_and_go(deployed: Cluster, pods: list[Pod]) -> None:
    """A restart, another image, and back; meanwhile pods are created and deleted."""
    other = image_name().rsplit(":", 1)[0] + ":other"
    for node in deployed.nodes.values():
        node.ctr("images", "tag", image_name(), other)

    def template(image: str, turn: int) -> Object:
        containers = {
            "initContainers": [{"name": "install", "image": image}],
            "containers": [{"name": "weftd", "image": image}],
        }
        annotations = {"kubectl.kubernetes.io/restartedAt": str(turn)}
        return {"spec": {"template": {"metadata": {"annotations": annotations}, "spec": containers}}}

    before = restarts(deployed)
    with pinging(deployed, pods[0], list(pods[-1].addresses)):
        for turn, image in enumerate((image_name(), other, image_name())):
            kind = "application/strategic-merge-patch+json"
            deployed.api.request("PATCH", DAEMONSET, template(image, turn), kind=kind)
            names = [f"meanwhile-{turn}-{number}" for number in range(8)]
            for name in names:
                deployed.api.create(PODS, pod_manifest(name))
                time.sleep(0.3)
            for name in names[::2]:
                deployed.api.delete(f"{PODS}/{name}")
            await_rollout(deployed)
            kept = [deployed.await_pod(name) for name in names[1::2]]
            addresses = [address for pod in (*pods, *kept) for address in pod.addresses]
            assert len(set(addresses)) == len(addresses)
            for pod in kept:
                assert seen_from_pod(deployed, pods[0], url(pods[-1].v4)) == pods[0].v4
                for address in pod.addresses:
                    reached = deployed.api.execute(pods[0].name, "ping", "-c", "1", "-W", "2", address)
                    assert reached.exit_code == 0, reached.output
            deployed.delete_pods(*names)
    after = restarts(deployed)
    assert not before.keys() & after.keys()
    assert not any(after.values())
    wait_for("no attachments but the pods'", lambda: attached(deployed) == len(pods))


def attached(cluster: Cluster) -> int:
    total = 0
    for pod in agents(cluster).values():
        name = pod["metadata"]["name"]
        answer = cluster.api.execute(name, "weftctl", "attachments", "-o", "json", namespace=NAMESPACE)
        total += len(json.loads(answer.output).get("attachments", []))
    return total


def test_a_wrong_key_is_named_and_touches_nothing(deployed: Cluster, pods: list[Pod]) -> None:
    right = deployed.api.get(CONFIGMAP)["data"]["weftd.yaml"]
    with pinging(deployed, pods[0], list(pods[-1].addresses)):
        patch(deployed.api, CONFIGMAP, {"data": {"weftd.yaml": right + "ovrlay: direct\n"}})
        victim = agents(deployed)["n1"]
        deployed.api.delete(f"{AGENTS}/{victim['metadata']['name']}")

        def refused() -> str:
            pod = agents(deployed).get("n1", victim)
            return log_of(deployed, pod) if pod["metadata"]["uid"] != victim["metadata"]["uid"] else ""

        wait_for("the log to name the key", lambda: "ovrlay" in refused(), timeout=60)
        events = "/api/v1/namespaces/default/events?fieldSelector=reason%3DConfigurationWrong"
        wait_for(
            "an event to name the key",
            lambda: any("ovrlay" in event["message"] for event in deployed.api.items(events)),
            timeout=30,
        )
        patch(deployed.api, CONFIGMAP, {"data": {"weftd.yaml": right}})
        deployed.api.delete(f"{AGENTS}/{agents(deployed)['n1']['metadata']['name']}")
        await_rollout(deployed)


def test_an_outage_of_the_api_server_restarts_nothing(deployed: Cluster, pods: list[Pod]) -> None:
    before = restarts(deployed)
    with pinging(deployed, pods[0], list(pods[-1].addresses)):
        deployed.control.server.stop()
        time.sleep(OUTAGE)
        for node in deployed.nodes.values():
            ready = node.run("/bin/busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:10256/readyz")
            assert ready
        deployed.control.server.start()
        deployed.control.await_server()
    wait_for("the nodes to be Ready", lambda: all(map(deployed.node_is_ready, deployed.nodes)))
    assert restarts(deployed) == before
