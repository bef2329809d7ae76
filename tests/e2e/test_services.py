"""Services as real clients reach them: from pods and nodes by ClusterIP, from outside by NodePort.

What all of services' behaviour is, tests/functional/services holds; here it is that Kubernetes' own objects,
controllers and kubelets lead to it.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.e2e.cluster import manifests, network, probe
from tests.e2e.cluster.cluster import PODS
from tests.e2e.cluster.processes import run, wait_for
from tests.e2e.cluster.services import (
    PORT,
    SERVICES,
    await_served,
    create_service,
    frontends,
)
from tests.e2e.cluster.traffic import FAMILIES, seen_from_node, seen_from_outside, seen_from_pod, url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.cluster.api import Object
    from tests.e2e.cluster.cluster import Cluster, Pod
    from tests.e2e.cluster.node import Node

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.timeout(300)]

NAME = "/cgi-bin/name"
AT_ONCE = 1.0
"""Seconds; a SYN that is dropped is sent again after one."""
BALANCED = "203.0.113.{}", "2001:db8:203::{}"
"""Addresses of load balancers, by family."""
ASKS = 20
"""One of two pods is missed by all of them once in half a million times."""


@pytest.fixture(scope="module")
def web(cluster: Cluster) -> Iterator[dict[str, Pod]]:
    """A server on each node, by node; they are their own clients, too."""
    pods = {node: cluster.create_pod(f"web-{node}", node, labels={"app": "web"}) for node in cluster.nodes}
    yield pods
    cluster.delete_pods(*(pod.name for pod in pods.values()))


@pytest.fixture(scope="module")
def solo(cluster: Cluster) -> Iterator[Pod]:
    """A server on the first node only."""
    pod = cluster.create_pod("solo", "n1", labels={"app": "solo"})
    yield pod
    cluster.delete_pods(pod.name)


def node_port(made: Object) -> int:
    return int(made["spec"]["ports"][0]["nodePort"])


def names_from_pod(cluster: Cluster, pod: Pod, target: str, count: int = ASKS) -> Counter[str]:
    """Which pods answer so many requests of a pod, and how often each does."""
    loop = f"for i in $(seq {count}); do timeout 5 wget -q -O - '{target}' || echo failed; echo; done"
    answer = cluster.api.execute(pod.name, "sh", "-c", loop, timeout=120)
    return Counter(answer.output.split())


def outcome(*command: object) -> tuple[float, str]:
    """How long one connection took and what came of it (cluster/probe.py), by a program run where it says."""
    seconds, found = run(*map(str, command)).split()
    return float(seconds), found


def once(address: str, port: int) -> tuple[str, ...]:
    return sys.executable, probe.__file__, "once", address, str(port)


@pytest.mark.parametrize("family", [0, 1], ids=FAMILIES)
def test_pods_reach_a_cluster_ip_with_their_own_address(
    cluster: Cluster, web: dict[str, Pod], solo: Pod, family: int
) -> None:
    made = create_service(cluster, "inside", "web", endpoints=2)
    address = made["spec"]["clusterIPs"][family]
    assert names_from_pod(cluster, solo, url(address, NAME, PORT)).keys() == {"web-n1", "web-n2"}
    for _ in range(4):
        assert seen_from_pod(cluster, solo, url(address, port=PORT)) == solo.addresses[family]


@pytest.mark.parametrize("family", [0, 1], ids=FAMILIES)
def test_a_pod_reaches_itself_by_its_services_address(cluster: Cluster, solo: Pod, family: int) -> None:
    made = create_service(cluster, "mirror", "solo", endpoints=1)
    address = made["spec"]["clusterIPs"][family]
    assert seen_from_pod(cluster, solo, url(address, port=PORT)) == cluster.nodes["n1"].addresses[family]


@pytest.mark.parametrize("family", [0, 1], ids=FAMILIES)
def test_nodes_reach_a_cluster_ip(cluster: Cluster, web: dict[str, Pod], family: int) -> None:
    made = create_service(cluster, "from-nodes", "web", endpoints=2)
    address = made["spec"]["clusterIPs"][family]
    for node in cluster.nodes.values():
        seen = {seen_from_node(node, url(address, NAME, PORT)) for _ in range(ASKS)}
        assert seen == {"web-n1", "web-n2"}, f"{node.name} to {address}"


@pytest.mark.parametrize("family", [0, 1], ids=FAMILIES)
def test_the_outside_reaches_a_node_port_of_either_node(
    cluster: Cluster, web: dict[str, Pod], family: int
) -> None:
    port = node_port(create_service(cluster, "outside", "web", endpoints=2, type="NodePort"))
    for node in cluster.nodes.values():
        address = node.addresses[family]
        assert {seen_from_outside(url(address, NAME, port)) for _ in range(ASKS)} == {"web-n1", "web-n2"}
        assert network.SERVER[family] not in {seen_from_outside(url(address, port=port)) for _ in range(4)}


@pytest.mark.parametrize("family", [0, 1], ids=FAMILIES)
def test_with_policy_local_the_client_keeps_its_address(
    cluster: Cluster, web: dict[str, Pod], solo: Pod, family: int
) -> None:
    """And a node without endpoints stays silent, so that clients try another one."""
    made = create_service(
        cluster, "local", "solo", endpoints=1, type="NodePort", externalTrafficPolicy="Local"
    )
    here, elsewhere = (cluster.nodes[name].addresses[family] for name in ("n1", "n2"))
    assert seen_from_outside(url(here, port=node_port(made))) == network.SERVER[family]
    seconds, found = outcome(*once(elsewhere, node_port(made)))
    assert found == "silence", f"{found} after {seconds} s"
    # The node's own pods are served by endpoints elsewhere, too, and keep their address.
    inside = web["n2"]
    assert seen_from_pod(cluster, inside, url(elsewhere, port=node_port(made))) == inside.addresses[family]


def serves(node: Node, name: str, address: str) -> bool:
    return address in {each["address"] for each in frontends(node, name)}


@contextmanager
def routed(cluster: Cluster, node: str, family: int, address: str) -> Iterator[None]:
    """Does a load balancer's work: brings packets for its address to a node."""
    gateway = cluster.nodes[node].addresses[family]
    network.ip(f"{'-6 ' * family}route add {address} via {gateway}")
    try:
        yield
    finally:
        network.ip(f"{'-6 ' * family}route delete {address}")


@pytest.mark.parametrize("family", [0, 1], ids=FAMILIES)
def test_a_load_balancers_address_is_served_by_both_nodes(
    cluster: Cluster, web: dict[str, Pod], family: int
) -> None:
    address = BALANCED[family].format(7)
    spec = {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}
    create_service(cluster, "balanced", "web", endpoints=2, **spec)
    status = {"status": {"loadBalancer": {"ingress": [{"ip": address}]}}}
    manifests.merge(cluster.api, f"{SERVICES}/balanced/status", status)
    shown = f"[{address}]:{PORT}" if family else f"{address}:{PORT}"
    for node in cluster.nodes.values():
        wait_for(
            f"{node.name} to serve {shown}",
            partial(serves, node, "balanced", shown),
            timeout=10,
        )
        with routed(cluster, node.name, family, address):
            assert {seen_from_outside(url(address, NAME, PORT)) for _ in range(4)} == {f"web-{node.name}"}
            assert seen_from_outside(url(address, port=PORT)) == network.SERVER[family]


def health(address: str, port: int) -> tuple[int, Object]:
    """What a node answers a load balancer that asks whether it has endpoints."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url(address, "/", port), timeout=5) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_load_balancers_learn_which_nodes_have_endpoints(cluster: Cluster, solo: Pod) -> None:
    made = create_service(
        cluster, "checked", "solo", endpoints=1, type="LoadBalancer", externalTrafficPolicy="Local"
    )
    port = made["spec"]["healthCheckNodePort"]
    for name, expected in {"n1": (200, 1), "n2": (503, 0)}.items():
        for address in cluster.nodes[name].addresses:
            status, body = wait_for(f"{name} to listen", partial(health, address, port), timeout=10)
            assert (status, body["localEndpoints"]) == expected, f"{name}, {address}"
            assert body["service"] == {"namespace": "default", "name": "checked"}
            assert body["serviceProxyHealthy"] is True
    cluster.api.delete(f"{SERVICES}/checked")

    def closed() -> bool:
        try:
            health(cluster.nodes["n1"].addresses[0], port)
        except urllib.error.URLError as error:
            return isinstance(error.reason, ConnectionRefusedError)
        return False

    wait_for("the health check port to be closed", closed, timeout=10)


@pytest.mark.parametrize("family", [0, 1], ids=FAMILIES)
def test_a_service_without_endpoints_is_refused_at_once(cluster: Cluster, solo: Pod, family: int) -> None:
    """By pods, nodes and the outside, and from the moment its last endpoint goes."""
    made = create_service(cluster, "nobody", "solo", endpoints=1, type="NodePort")
    address, port = made["spec"]["clusterIPs"][family], node_port(made)
    manifests.merge(cluster.api, f"{SERVICES}/nobody", {"spec": {"selector": {"app": "nobody"}}})
    await_served(cluster, "nobody", 0)
    ways = [cluster.in_network_of(solo, *once(address, PORT))]
    for node in cluster.nodes.values():
        ways += [node.inside(*once(address, PORT)), [*once(node.addresses[family], port)]]
    for way in ways:
        seconds, found = outcome(*way)
        assert (found, seconds < AT_ONCE) == ("refused", True), f"{way}: {found} after {seconds} s"


@pytest.mark.parametrize("family", [0, 1], ids=FAMILIES)
def test_a_client_stays_with_its_endpoint_until_that_goes(
    cluster: Cluster, web: dict[str, Pod], solo: Pod, family: int
) -> None:
    affine = cluster.create_pod("affine", "n2", labels={"app": "web"})
    made = create_service(cluster, "sticky", "web", endpoints=3, sessionAffinity="ClientIP")
    target = url(made["spec"]["clusterIPs"][family], NAME, PORT)
    first = names_from_pod(cluster, solo, target)
    assert len(first) == 1, first
    assert names_from_pod(cluster, solo, target) == first, "a client came to another endpoint"
    (chosen,) = first
    assert chosen in {affine.name, *(pod.name for pod in web.values())}
    # The choice goes with its endpoint, here by a label that no longer fits; the client gets another one.
    path = f"{PODS}/{chosen}"
    manifests.merge(cluster.api, path, {"metadata": {"labels": {"app": "left"}}})
    try:
        await_served(cluster, "sticky", 2)
        second = names_from_pod(cluster, solo, target)
        assert len(second) == 1, second
        assert second.keys() != first.keys()
    finally:
        manifests.merge(cluster.api, path, {"metadata": {"labels": {"app": "web"}}})
        cluster.delete_pods(affine.name)


def test_an_address_that_no_service_has_is_not_answered(cluster: Cluster, solo: Pod) -> None:
    """Nor do packets to it leave the cluster, where they might come back for ever."""
    seconds, found = outcome(*cluster.in_network_of(solo, *once("10.96.255.254", PORT)))
    assert found == "silence", f"{found} after {seconds} s"


def test_services_outlive_the_daemon(cluster: Cluster, web: dict[str, Pod], solo: Pod) -> None:
    """New connections go on while it is away, and what changed meanwhile is made up for."""
    made = create_service(cluster, "steady", "web", endpoints=2)
    node = cluster.nodes["n1"]
    target = url(made["spec"]["clusterIPs"][0], NAME, PORT)
    node.weft.kill()
    try:
        assert names_from_pod(cluster, solo, target).keys() == {"web-n1", "web-n2"}
        cluster.api.delete(f"{SERVICES}/steady")
    finally:
        node.weft.start()
    node.weft.await_ready()
    address = (made["spec"]["clusterIPs"][0], PORT)
    wait_for(
        "the Service to be gone",
        lambda: outcome(*cluster.in_network_of(solo, *once(*address)))[1] == "silence",
        timeout=30,
    )
