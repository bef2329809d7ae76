"""Weft leaves a cluster: the nodes are as they were found, and another network works on them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.e2e.cluster import manifests
from tests.e2e.cluster.deployment import AGENTS, DAEMONSET, NAMESPACE, ROOT
from tests.e2e.cluster.kernel import belongings
from tests.e2e.cluster.processes import wait_for
from tests.e2e.cluster.traffic import seen_from_pod, url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.cluster.api import Object
    from tests.e2e.cluster.cluster import Cluster
    from tests.e2e.cluster.kernel import Belongings
    from tests.e2e.cluster.node import Node

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.timeout(300)]

PLUGINS = Path("/usr/lib/cni")
"""Where Debian's containernetworking-plugins are."""
SANDBOXES = 'labels."io.cri-containerd.kind"==sandbox'
OTHERS = ("bridge", "host-local", "loopback")


def job(node: str) -> Object:
    text = (ROOT / "deploy" / "uninstall.yaml").read_text()
    made: Object = yaml.safe_load(text.replace("NODE", node))
    return made


def jobs_path(name: str) -> str:
    return f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs/{name}"


def run_job(cluster: Cluster, node: str) -> tuple[bool, str]:
    """Runs the job of a node to its end; whether it succeeded, and its log."""
    wanted = job(node)
    manifests.delete(cluster.api, [wanted])
    wait_for("an earlier job to be gone", partial(is_gone, cluster, wanted["metadata"]["name"]))
    manifests.apply(cluster.api, [wanted])
    path = jobs_path(wanted["metadata"]["name"])

    def ended() -> str:
        status = cluster.api.get(path).get("status", {})
        return next((each for each in ("succeeded", "failed") if status.get(each)), "")

    how = wait_for(f"the job of {node} to end", ended)
    label = f"labelSelector=job-name%3D{wanted['metadata']['name']}"
    (pod,) = cluster.api.items(f"{AGENTS}?{label}")
    return how == "succeeded", cluster.api.logs(pod["metadata"]["name"], NAMESPACE)


def is_gone(cluster: Cluster, name: str) -> bool:
    jobs = cluster.api.items(jobs_path("").rstrip("/"))
    pods = cluster.api.items(f"{AGENTS}?labelSelector=job-name%3D{name}")
    return not pods and name not in {each["metadata"]["name"] for each in jobs}


@pytest.fixture
def reinstalled(cluster: Cluster) -> Iterator[None]:
    """Weft is there again for the tests that follow."""
    yield
    for name in cluster.nodes:
        manifests.delete(cluster.api, [job(name)])
    cluster.delete_pods()
    cluster.install_weft()


def agents_are_gone(cluster: Cluster) -> bool:
    return not any(node.weft.running or node.weft.pods() for node in cluster.nodes.values())


def done_with_earlier_pods(cluster: Cluster) -> bool:
    """Whether the runtimes hold no sandbox of a pod that is gone.

    Kubelets collect those once a minute, and the runtime calls DEL for each once more. While no agent is
    there, the shim puts that down in a file, which nobody may take for something that was left behind.
    """
    return all(
        len(node.ctr("containers", "list", "--quiet", SANDBOXES).split())
        <= len(cluster.api.items(f"/api/v1/pods?fieldSelector=spec.nodeName%3D{name}"))
        for name, node in cluster.nodes.items()
    )


def test_nodes_are_left_as_they_were_found(
    cluster: Cluster, before: dict[str, Belongings], reinstalled: None
) -> None:
    pods = [cluster.create_pod(f"last-{name}", name) for name in cluster.nodes]
    wait_for(
        "the runtimes to be done with earlier pods", partial(done_with_earlier_pods, cluster), timeout=150
    )
    cluster.api.delete(DAEMONSET, propagationPolicy="Background")
    wait_for("the agents to be gone", partial(agents_are_gone, cluster))

    held = {name: belongings(node) for name, node in cluster.nodes.items()}
    for pod in pods:
        done, log = run_job(cluster, pod.node)
        assert not done
        assert f"default/{pod.name}" in log
        assert not belongings(cluster.nodes[pod.node]).differences(held[pod.node])
    assert seen_from_pod(cluster, pods[0], url(pods[1].v4)) == pods[0].v4

    cluster.delete_pods()
    for name, node in cluster.nodes.items():
        done, log = run_job(cluster, name)
        assert done, log
        assert "net.ipv4.ip_forward" in log  # it tells what it leaves
        left = partial(remaining, node, before[name])
        wait_for(f"{name} to be as it was", lambda left=left: not left(), timeout=10, state=left)  # type: ignore[misc]
        done, log = run_job(cluster, name)
        assert done, log  # once more is no error
        assert log == ""
    for name in cluster.nodes:
        bridge_works(cluster, name)


def remaining(node: Node, earlier: Belongings) -> dict[str, list[str]]:
    return belongings(node).differences(earlier)


def bridge_works(cluster: Cluster, name: str) -> None:
    """The reference plugins serve the node: two pods of it reach each other."""
    node = cluster.nodes[name]
    installed = []
    for program in OTHERS:
        target = node.path(f"/opt/cni/bin/{program}")
        if not target.exists():
            target.write_bytes((PLUGINS / program).read_bytes())
            target.chmod(0o755)
            installed.append(target)
    subnets = [[{"subnet": cidr}] for cidr in cluster.node(name)["spec"]["podCIDRs"]]
    plugin = {
        "type": "bridge",
        "bridge": "e2e-bridge",
        "isGateway": True,
        "ipam": {"type": "host-local", "ranges": subnets},
    }
    conflist = node.path("/etc/cni/net.d/10-other.conflist")
    conflist.write_text(json.dumps({"cniVersion": "0.4.0", "name": "other", "plugins": [plugin]}))
    try:
        wait_for(f"{name} to be Ready", partial(cluster.node_is_ready, name))
        first, second = (cluster.create_pod(f"bridged-{name}-{number}", name) for number in "12")
        for address, own in zip(second.addresses, first.addresses, strict=True):
            assert seen_from_pod(cluster, first, url(address)) == own
        cluster.delete_pods(first.name, second.name)
    finally:
        for path in (conflist, *installed):
            path.unlink()
        node.run("ip", "link", "delete", "e2e-bridge", check=False)
        node.run("rm", "-rf", "/var/lib/cni")
