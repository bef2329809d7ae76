"""Host ports on a real cluster: kubelet asks for them, both runtimes pass them on, Weft alone serves them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from datapath.netns import entered, open_namespace
from tests.e2e.cluster.cluster import PODS, pod_manifest
from tests.e2e.cluster.processes import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.cluster.cluster import Cluster, Pod
    from tests.e2e.cluster.node import Node

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.timeout(300)]

FAMILIES = pytest.mark.parametrize("family", [0, 1], ids=["v4", "v6"])
PORT = 18080
PATH = "/cgi-bin/address"


def create(cluster: Cluster, name: str, node: str, *ports: dict[str, Any]) -> Pod:
    manifest = pod_manifest(name, node, serve=True)
    (container,) = manifest["spec"]["containers"]
    container["ports"] = list(ports)
    cluster.api.create(PODS, manifest)
    return cluster.await_pod(name)


@contextlib.contextmanager
def answering(node: Node, pod: Pod) -> Iterator[None]:
    """Answer datagrams in a pod with its name; busybox can't."""
    rows = json.loads(node.weftctl("attachments", "-o", "json"))["attachments"]
    (netns,) = (row["netns"] for row in rows if row["podName"] == pod.name)
    path = netns.replace("/var/run/", "/run/")
    descriptor = open_namespace(f"/proc/{node.first.pid}/root{path}")
    try:
        with entered(descriptor):
            server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    finally:
        os.close(descriptor)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.bind(("::", 8053))
    server.settimeout(0.2)
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            with contextlib.suppress(OSError):
                _, peer = server.recvfrom(100)
                server.sendto(pod.name.encode(), peer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        server.close()


def port(protocol: str = "TCP", *, at: str = "") -> dict[str, Any]:
    target = 8080 if protocol == "TCP" else 8053
    return {"containerPort": target, "hostPort": PORT, "protocol": protocol, **({"hostIP": at} if at else {})}


def seen_from_outside(address: str) -> str:
    """Whom the pod sees when somebody behind the nodes' gateway asks; why not, when nobody answers."""
    connection = http.client.HTTPConnection(address, PORT, timeout=5)
    try:
        connection.request("GET", PATH)
        return plain(connection.getresponse().read().decode())
    except OSError as error:
        return type(error).__name__
    finally:
        connection.close()


def echoed(address: str) -> str:
    """Who answers a datagram from outside; why not, when nobody does."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(0.5)
        client.connect((address, PORT))
        with contextlib.suppress(OSError):
            client.send(b"hello\n")
            return client.recv(100).decode()
        return ""


def plain(address: str) -> str:
    """The address as busybox tells it, without brackets, port and the IPv4-mapped form."""
    return address.strip().removeprefix("[").split("]")[0].removeprefix("::ffff:")


def url(address: str) -> str:
    return f"http://[{address}]:{PORT}{PATH}" if ":" in address else f"http://{address}:{PORT}{PATH}"


def seen_from_pod(cluster: Cluster, pod: Pod, address: str) -> str:
    answer = cluster.api.execute(pod.name, "timeout", "5", "wget", "-q", "-O", "-", url(address))
    return plain(answer.output) if answer.exit_code == 0 else ""


@pytest.fixture(scope="module")
def exposed(cluster: Cluster) -> Iterator[dict[str, Pod]]:
    """On each node a pod with the port, and one beside it; by name."""
    pods = {}
    for node in cluster.nodes:
        pods[f"{node}-web"] = create(cluster, f"{node}-web", node, port())
        pods[f"{node}-beside"] = cluster.create_pod(f"{node}-beside", node)
    yield pods
    cluster.delete_pods()


@FAMILIES
def test_everybody_reaches_the_pod(cluster: Cluster, exposed: dict[str, Pod], family: int) -> None:
    for name, node in cluster.nodes.items():
        address = node.addresses[family]
        seen = seen_from_outside(address)
        assert seen not in {"", *node.addresses, "ConnectionRefusedError", "TimeoutError"}
        beside = exposed[f"{name}-beside"]
        assert seen_from_pod(cluster, beside, address) == beside.addresses[family]
        assert seen_from_pod(cluster, exposed[f"{name}-web"], address) == address
        (other,) = (each for each in cluster.nodes if each != name)
        remote = exposed[f"{other}-beside"]
        assert seen_from_pod(cluster, remote, address) in (
            cluster.nodes[other].addresses[family],
            remote.addresses[family],
        )
        fetch = ("/bin/busybox", "timeout", "5", "wget", "-q", "-O", "-")
        assert plain(node.run(*fetch, url(address))) == address
        if family == 0:
            assert plain(node.run(*fetch, url("127.0.0.1"))) == address


def test_other_protocols_and_addresses_are_other_ports(cluster: Cluster, exposed: dict[str, Pod]) -> None:
    """Two pods may have one port at two addresses; one at all and another at one the scheduler refuses."""
    for name, node in cluster.nodes.items():
        assert f"{name}-web" in exposed
        pods = [
            create(cluster, f"{name}-at-{family}", name, port("UDP", at=address))
            for family, address in zip("46", node.addresses, strict=True)
        ]
        with answering(node, pods[0]), answering(node, pods[1]):
            for pod, address in zip(pods, node.addresses, strict=True):
                assert wait_for("an answer", partial(echoed, address), timeout=10) == pod.name
            cluster.delete_pods(pods[0].name)
            assert echoed(node.addresses[0]) == ""
            assert echoed(node.addresses[1]) == pods[1].name
        assert seen_from_outside(node.addresses[0]) != "ConnectionRefusedError"
        cluster.delete_pods(pods[1].name)
        assert echoed(node.addresses[1]) == ""


def test_a_pod_that_is_deleted_answers_no_more(cluster: Cluster, exposed: dict[str, Pod]) -> None:
    for name, node in cluster.nodes.items():
        assert seen_from_outside(node.addresses[0]) != "ConnectionRefusedError"
        cluster.delete_pods(f"{name}-web")
        for address in node.addresses:
            assert seen_from_outside(address) == "ConnectionRefusedError"
    assert exposed
