"""Errors about the path MTU, from routers beyond the node, reach the pod that sent too long a packet."""

import asyncio
import os
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_address

import pytest

from lab.echo import PORT, Bind, Server, ask
from lab.namespaces import descriptor_path, new_network
from lab.underlay import ip_batch
from tests.functional.lab_cluster import LabCluster
from tests.functional.policed_pods import delete_policies, policy

pytestmark = pytest.mark.root

NARROW = 1300
FAR = ("198.18.0.2", "2001:db8:fa::2")


@pytest.fixture
def narrow_road(lab: LabCluster) -> Iterator[None]:
    """A host behind the lab's router, on a link that takes shorter packets than the nodes' own."""
    router = lab.cluster.underlay.path
    host = new_network()
    server = Server("far")

    async def build() -> None:
        link = f"type veth peer name eth0 mtu {NARROW} netns {descriptor_path(host)}"
        lines = [f"link add name narrow mtu {NARROW} {link}", "link set narrow up"]
        lines += ["addr add 198.18.0.1/24 dev narrow", "addr add 2001:db8:fa::1/64 dev narrow nodad"]
        await ip_batch(router, lines)
        lines = ["link set eth0 up", f"addr add {FAR[0]}/24 dev eth0", f"addr add {FAR[1]}/64 dev eth0 nodad"]
        lines += ["route add default via 198.18.0.1", "route add ::/0 via 2001:db8:fa::1"]
        await ip_batch(descriptor_path(host), lines)
        await server.start(host, [Bind("udp", address, PORT) for address in FAR])

    async def clear() -> None:
        server.close()
        await asyncio.sleep(0)
        await ip_batch(router, ["link del narrow"])

    lab.run(build())
    lab.sh(
        "node-1",
        "ip route add 198.18.0.0/24 via 172.31.1.1; ip -6 route add 2001:db8:fa::/64 via fd31:1::1",
    )
    yield
    lab.sh("node-1", "ip route del 198.18.0.0/24; ip -6 route del 2001:db8:fa::/64")
    lab.run(clear())
    os.close(host)


@pytest.fixture
def isolated(lab: LabCluster) -> Iterator[None]:
    """No pod is let in, and all may talk to the host far away alone."""
    peers = [{"ipBlock": {"cidr": f"{far}/{128 if ':' in far else 32}"}} for far in FAR]
    policy(lab, "far", podSelector={}, policyTypes=["Ingress", "Egress"], egress=[{"to": peers}])
    net = lab.sandbox("pod-1b").descriptor
    for each in lab.addresses("pod-1a"):
        closed = partial(ask, net, ip_address(each), "udp", patience=0.3)
        lab.wait(lambda closed=closed: lab.run(closed()).fault, "pods are closed", 10)  # type: ignore[misc]
    yield
    delete_policies(lab, "far")
    lab.wait(lambda: "weft-policy" not in lab.sh("node-1", "nft list tables"), "no policy", 10)


@pytest.mark.usefixtures("narrow_road")
@pytest.mark.parametrize("far", FAR)
def test_a_pod_learns_that_the_path_is_narrow(lab: LabCluster, far: str) -> None:
    learns(lab, "pod-1a", far)


@pytest.mark.usefixtures("narrow_road", "isolated")
@pytest.mark.parametrize("far", FAR)
def test_an_isolated_pod_learns_it_too(lab: LabCluster, far: str) -> None:
    """The error comes from a router that the pod may not talk to, but about what it may."""
    learns(lab, "pod-1b", far)


def learns(lab: LabCluster, pod: str, far: str) -> None:
    net = lab.sandbox(pod).descriptor
    address = ip_address(far)
    refused = lab.run(ask(net, address, "udp", size=1450))
    assert refused.fault == "EMSGSIZE"
    passed = lab.run(ask(net, address, "udp", size=NARROW))
    assert passed.name == "far"
    assert passed.source in {str(one) for one in lab.node("node-1").addresses}
