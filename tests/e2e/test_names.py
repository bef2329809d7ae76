"""Names and the API server, as pods reach them: behind ClusterIPs, with no kube-proxy anywhere."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.cluster import images, lookup, manifests
from tests.e2e.cluster.api import is_ready
from tests.e2e.cluster.processes import run, wait_for
from tests.e2e.cluster.services import create_service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.cluster.cluster import Cluster, Pod

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.timeout(400)]

DEPLOYMENT = Path(__file__).with_name("coredns.yaml")
NAME_SERVERS = "/api/v1/namespaces/kube-system/pods?labelSelector=app%3Dcoredns"
ZONE = "svc.cluster.local"
HTTPS = """
import ssl, sys, urllib.request
context = ssl.create_default_context(cafile=sys.argv[2])
handlers = urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
opener = urllib.request.build_opener(*handlers)
print(opener.open(sys.argv[1], timeout=5).read().decode())
"""


@pytest.fixture(scope="module")
def name_service(cluster: Cluster) -> Iterator[None]:
    """CoreDNS, which itself finds the API server by the ClusterIP that is in its environment."""
    cluster.provide(images.dns_image())
    objects = manifests.load(DEPLOYMENT)
    manifests.apply(cluster.api, objects)

    def known() -> str:
        return json.dumps([pod["status"] for pod in cluster.api.items(NAME_SERVERS)])

    def ready() -> bool:
        pods = cluster.api.items(NAME_SERVERS)
        return bool(pods) and all(is_ready(pod) for pod in pods)

    wait_for("CoreDNS to be ready", ready, state=known)
    yield
    manifests.delete(cluster.api, objects)
    wait_for("CoreDNS to be gone", lambda: not cluster.api.items(NAME_SERVERS))


@pytest.fixture(scope="module")
def clients(cluster: Cluster, name_service: None) -> Iterator[list[Pod]]:
    """A pod on each node, one of which runs CoreDNS."""
    pods = [cluster.create_pod(f"client-{name}", name, labels={"app": "client"}) for name in cluster.nodes]
    yield pods
    cluster.delete_pods()


@pytest.fixture
def web(cluster: Cluster, clients: list[Pod]) -> list[str]:
    """A Service with those pods that the name server knows, as its own addresses tell; its addresses."""
    made = create_service(cluster, "web", "client", endpoints=2)
    known = [str(address) for address in made["spec"]["clusterIPs"]]
    (server,) = cluster.api.items(NAME_SERVERS)

    def told() -> list[str]:
        ask = partial(looked_up, cluster, clients[0], "udp", server["status"]["podIP"], f"web.default.{ZONE}")
        return [*ask("A"), *ask("AAAA")]

    wait_for("the name server to know the Service", lambda: told() == known, state=told)
    return known


def looked_up(cluster: Cluster, pod: Pod, *question: str) -> list[str]:
    """What a name server tells a pod; see cluster/lookup.py."""
    return run(*cluster.in_network_of(pod, sys.executable, lookup.__file__, *question)).split()


@pytest.mark.parametrize("server", [0, 1], ids=["asked over IPv4", "asked over IPv6"])
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_pods_of_both_nodes_resolve_names(
    cluster: Cluster, clients: list[Pod], web: list[str], transport: str, server: int
) -> None:
    address = cluster.stack.dns_services[server]
    for pod in clients:
        for kind, known in zip(("A", "AAAA"), web, strict=True):
            found = looked_up(cluster, pod, transport, address, f"web.default.{ZONE}", kind)
            assert found == [known], f"{pod} asking {address}"


def test_names_work_as_pods_are_configured(cluster: Cluster, clients: list[Pod], web: list[str]) -> None:
    """Kubelet's resolv.conf, with its search list, the C library's resolver, then the Service itself."""
    for pod in clients:
        answer = cluster.api.execute(pod.name, "timeout", "5", "wget", "-q", "-O", "-", "http://web/")
        assert (answer.exit_code, answer.output) == (0, "ready\n"), f"{pod}: {answer.messages}"
        looked = cluster.api.execute(pod.name, "nslookup", f"kubernetes.default.{ZONE}")
        assert cluster.stack.kubernetes_service in looked.output, looked


def test_pods_reach_the_api_server_by_its_cluster_ip(cluster: Cluster, clients: list[Pod]) -> None:
    """With TLS all through: the certificate is the API server's, for the address that pods have of it."""
    authority = cluster.control.authority.certificate
    address = cluster.stack.kubernetes_service
    for pod in clients:
        request = cluster.in_network_of(
            pod, sys.executable, "-c", HTTPS, f"https://{address}/version", str(authority)
        )
        assert "gitVersion" in json.loads(run(*request)), pod
        question = ("udp", cluster.stack.dns_services[0], f"kubernetes.default.{ZONE}", "A")
        assert looked_up(cluster, pod, *question) == [address]


def test_nodes_reach_the_api_server_by_its_cluster_ip(cluster: Cluster) -> None:
    for node in cluster.nodes.values():
        answer = wait_for(
            f"{node.name} to be answered",
            partial(
                node.run,
                sys.executable,
                "-c",
                HTTPS,
                f"https://{cluster.stack.kubernetes_service}/version",
                str(cluster.control.authority.certificate),
            ),
            timeout=5,
        )
        assert "gitVersion" in json.loads(answer)
