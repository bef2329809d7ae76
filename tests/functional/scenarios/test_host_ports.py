"""Host ports with real daemons, shim and kernel: who reaches the pod, whom it sees, and for how long."""

from __future__ import annotations

import contextlib
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest

from lab.echo import PORT, Answer, ask, client_socket
from lab.underlay import OUTSIDE
from tests.functional.nft import frames
from tests.functional.nft.spaces import Inside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.functional.lab_cluster import LabCluster

pytestmark = pytest.mark.root

HOST_PORT = 18080
NODE, OTHER = "node-1", "node-2"
LOOPBACK = {4: "127.0.0.1", 6: "::1"}


def port(number: int = HOST_PORT, protocol: str = "TCP", *, at: str = "", to: int = PORT) -> dict[str, Any]:
    return {"containerPort": to, "hostPort": number, "protocol": protocol, "hostIP": at}


BOTH = (port(), port(protocol="UDP"))


@contextlib.contextmanager
def pods(lab: LabCluster, **exposed: tuple[dict[str, Any], ...]) -> Iterator[None]:
    """Pods on the first node with these ports, by name; deleted in the end."""
    for name, ports in exposed.items():
        create(lab, name, *ports)
    try:
        yield
    finally:
        lab.delete_pods(*(name for name in exposed if name in lab.pods()))


def create(lab: LabCluster, name: str, *ports: dict[str, Any], wait: bool = True) -> None:
    containers = [{"name": "echo", "image": "echo", "ports": list(ports)}]
    spec = {"nodeName": NODE, "containers": containers}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
    lab.call(lambda: lab.cluster.apply(pod))
    if wait:
        lab.run(lab.cluster.wait_ready(30))


def node_address(lab: LabCluster, node: str, family: int) -> str:
    return next(str(each) for each in lab.node(node).addresses if each.version == family)


def pod_address(lab: LabCluster, name: str, family: int) -> str:
    return next(each for each in lab.addresses(name) if ip_address(each).version == family)


def asked(lab: LabCluster, net: int, address: str, protocol: str = "tcp", number: int = HOST_PORT) -> Answer:
    return lab.run(ask(net, ip_address(address), protocol, port=number))


def who(lab: LabCluster, address: str, protocol: str = "tcp", number: int = HOST_PORT) -> str:
    """Who answers somebody outside, or why nobody does."""
    answer = asked(lab, lab.cluster.underlay.outside, address, protocol, number)
    return answer.name or answer.fault


@pytest.mark.parametrize("family", [4, 6])
def test_everybody_reaches_the_pod_and_it_sees_whom_it_should(lab: LabCluster, family: int) -> None:
    here, there = node_address(lab, NODE, family), node_address(lab, OTHER, family)
    with pods(lab, exposed=BOTH):
        own = lab.sandbox("exposed").descriptor
        clients = {
            "outside": (lab.cluster.underlay.outside, here, str(OUTSIDE[family])),
            "pod beside it": (lab.sandbox("pod-1a").descriptor, here, pod_address(lab, "pod-1a", family)),
            "pod of another node": (lab.sandbox("pod-2a").descriptor, here, there),
            "the node": (lab.node(NODE).namespaces.net, here, here),
            "another node": (lab.node(OTHER).namespaces.net, here, there),
            "the pod itself": (own, here, here),
        }
        if family == 4:
            clients["the node's loopback"] = lab.node(NODE).namespaces.net, LOOPBACK[4], here
        found = {
            (client, protocol): asked(lab, net, target, protocol)
            for client, (net, target, _) in clients.items()
            for protocol in ("tcp", "udp")
        }
        assert found == {
            (client, protocol): Answer("exposed", source)
            for client, (_, _, source) in clients.items()
            for protocol in ("tcp", "udp")
        }
        if family == 6:
            answer = asked(lab, lab.node(NODE).namespaces.net, LOOPBACK[6])
            assert answer.fault == "ECONNREFUSED"
        # Only this node has the port.
        assert who(lab, there) == "ECONNREFUSED"
        assert "host-ports" in lab.sh(NODE, "nft list ruleset")
    assert who(lab, here) == "ECONNREFUSED"
    assert who(lab, here, "udp") == "ECONNREFUSED"


@pytest.mark.parametrize("family", [4, 6])
def test_one_port_of_different_protocols_and_addresses(lab: LabCluster, family: int) -> None:
    here = node_address(lab, NODE, family)
    extra = {4: "192.0.2.77", 6: "2001:db8:77::77"}[family]
    lab.sh(NODE, f"ip addr add {extra} dev lo")
    try:
        with pods(
            lab,
            streams=(port(),),
            datagrams=(port(protocol="UDP"),),
            special=(port(at=extra), port(protocol="UDP", at=extra)),
        ):
            assert who(lab, here) == "streams"
            assert who(lab, here, "udp") == "datagrams"
            node = lab.node(NODE).namespaces.net
            for protocol in ("tcp", "udp"):
                assert asked(lab, node, extra, protocol) == Answer("special", extra)
            lab.delete_pods("special")
            assert asked(lab, node, extra) == Answer("streams", extra)
            assert asked(lab, node, extra, "udp") == Answer("datagrams", extra)
    finally:
        lab.sh(NODE, f"ip addr del {extra} dev lo")


def test_a_port_that_is_taken_keeps_the_second_pod_waiting_with_a_reason(lab: LabCluster) -> None:
    here = node_address(lab, NODE, 4)
    with pods(lab, first=(port(),)):
        create(lab, "second", port(), wait=False)
        try:
            message = lab.wait(lambda: " ".join(lab.events("second")), "a reason", 10)
            assert "code 108" in message
            assert f"host port {HOST_PORT}->{PORT}/tcp is held by pod default/first" in message
            assert who(lab, here) == "first"
            lab.delete_pods("first")
            lab.wait(lambda: who(lab, here) == "second", "the second pod has the port", 20)
        finally:
            lab.delete_pods("second")


def test_a_client_of_udp_that_goes_on_sending_finds_each_new_pod(lab: LabCluster) -> None:
    """One flow for all: sent before there is a pod, across its replacement, and after its end."""
    here = node_address(lab, NODE, 4)
    with client_socket(lab.cluster.underlay.outside, 4, "udp") as client:
        client.setblocking(True)
        client.settimeout(0.1)
        client.connect((here, HOST_PORT))

        def answer() -> str:
            try:
                client.send(b"?")
                return client.recv(100).decode().split()[0]
            except TimeoutError:
                return "silence"
            except ConnectionRefusedError:
                return "refused"

        assert answer() == "refused"
        with pods(lab, first=(port(protocol="UDP"),)):
            lab.wait(lambda: answer() == "first", "the first pod answers", 5)
        lab.wait(lambda: answer() == "refused", "nobody answers", 5)
        with pods(lab, second=(port(protocol="UDP"),)):
            lab.wait(lambda: answer() == "second", "the second pod answers", 5)


def test_ports_outlive_the_daemon_and_its_database(lab: LabCluster) -> None:
    here = node_address(lab, NODE, 4)
    shown = [
        {"hostIp": "", "hostPort": HOST_PORT, "containerPort": PORT, "protocol": "tcp"},
        {"hostIp": here, "hostPort": 18053, "containerPort": PORT, "protocol": "udp"},
    ]

    def listed() -> list[dict[str, Any]]:
        rows = lab.weftctl(NODE, "attachments").get("attachments", [])
        return [each for row in rows if row["podName"] == "lasting" for each in row["ports"]]

    def back() -> None:
        lab.run(lab.node(NODE).start_daemon())
        lab.wait(lambda: lab.weftctl(NODE, "status").get("ready"), "the daemon is ready", 30)
        lab.wait(lambda: not lab.differences(), "the kernel is as desired", 5)

    with pods(lab, lasting=(port(), port(18053, "UDP", at=here))):
        assert listed() == shown
        text = lab.run_weftctl(NODE, "attachments", "-o", "wide")
        assert f"{HOST_PORT}->{PORT}/tcp, {here}:18053->{PORT}/udp" in text
        lab.run(lab.node(NODE).runtime.check(lab.sandbox("lasting")))
        lab.run(lab.node(NODE).daemon.kill())
        assert who(lab, here) == "lasting"
        back()
        assert listed() == shown
        assert who(lab, here) == "lasting"
        lab.run(lab.node(NODE).daemon.kill())
        lab.sh(NODE, "rm /run/weft/state.db*")
        back()
        assert {(row["hostPort"], row["protocol"]) for row in listed()} == {
            (HOST_PORT, "tcp"),
            (18053, "udp"),
        }
        for protocol, number in (("tcp", HOST_PORT), ("udp", 18053)):
            assert who(lab, here, protocol, number) == "lasting"
        # A DEL of while it is away takes them, too.
        lab.run(lab.node(NODE).daemon.kill())
        lab.delete_pods("lasting")
        back()
        assert who(lab, here) == "ECONNREFUSED"


def test_foreign_hands_are_undone(lab: LabCluster) -> None:
    here = node_address(lab, NODE, 4)
    with pods(lab, exposed=BOTH):
        link = lab.sandbox("exposed").result["interfaces"][0]["name"]
        # The kernel tells of the map and not of the setting, which is seen to with whatever else is repaired.
        lab.sh(NODE, f"sysctl -qw net.ipv4.conf.{link}.route_localnet=0; nft flush map ip weft host-ports")
        lab.wait(lambda: who(lab, here) == "exposed", "the port leads to the pod again", 10)
        node = lab.node(NODE).namespaces.net
        lab.wait(lambda: asked(lab, node, LOOPBACK[4]).name == "exposed", "and loopback does", 10)


def test_a_node_port_that_is_hidden_is_told(lab: LabCluster) -> None:
    here, there = node_address(lab, NODE, 4), node_address(lab, OTHER, 4)
    number = 30_555
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "shop"},
        "spec": {
            "type": "NodePort",
            "selector": {"app": "shop"},
            "ports": [{"port": 80, "targetPort": PORT, "nodePort": number}],
        },
    }
    served = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "served", "labels": {"app": "shop"}},
        "spec": {"nodeName": OTHER},
    }
    services = lab.cluster.storage.catalogue.named("services")
    lab.call(lambda: [lab.cluster.apply(each) for each in (service, served)])
    try:
        lab.wait(lambda: who(lab, here, number=number) == "served", "the Service answers", 20)
        with pods(lab, exposed=(port(number),)):
            assert who(lab, here, number=number) == "exposed"
            assert who(lab, there, number=number) == "served"
            lab.wait_finding(NODE, "HostPortHidesNodePort", "default/exposed", "default/shop", str(number))
            assert "HostPortHidesNodePort" not in lab.findings(OTHER)
        lab.wait_cleared(NODE, "HostPortHidesNodePort")
        assert who(lab, here, number=number) == "served"
    finally:
        lab.delete_pods("served")
        lab.call(lambda: lab.cluster.storage.delete(services, "default", "shop"))


def test_a_pod_without_host_ports_routes_nothing_to_loopback(lab: LabCluster) -> None:
    for name, value in (("pod-1a", "0"), ("exposed", "1")):
        with contextlib.ExitStack() as stack:
            if name == "exposed":
                stack.enter_context(pods(lab, exposed=(port(),)))
            link = lab.sandbox(name).result["interfaces"][0]["name"]
            assert lab.sh(NODE, f"sysctl -n net.ipv4.conf.{link}.route_localnet").strip() == value


def test_a_pod_cannot_use_the_way_to_loopback(lab: LabCluster) -> None:
    """Its link routes there; a packet that it makes itself stays out (CVE-2020-8558)."""
    node, pod = Inside(lab.node(NODE).namespaces.net), "exposed"
    with pods(lab, exposed=(port(),)):
        own = Inside(lab.sandbox(pod).descriptor)
        source = pod_address(lab, pod, 4)
        packet = frames.ip(source, LOOPBACK[4], frames.udp(source, LOOPBACK[4], 7, 9999, b"forged"))
        with node.receiver(LOOPBACK[4], 9999) as server, own.wire("eth0") as wire:
            wire.send(frames.ethernet(own.mac("eth0"), b"\xee" * 6, packet))
            with pytest.raises(TimeoutError):
                server.recv(100)
            with node.socket(socket.AF_INET) as client:
                client.sendto(b"own", (LOOPBACK[4], 9999))
            assert server.recv(100) == b"own"
