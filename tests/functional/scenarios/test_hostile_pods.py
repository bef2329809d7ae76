"""What a hostile pod tries against a cluster of real daemons; tests/functional/nft has every variant of it.

Nodes and pods are those of the lab: their addresses, links and rules are what the daemons made of them.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.functional.nft import frames
from tests.functional.nft.spaces import Inside

if TYPE_CHECKING:
    import socket

    from tests.functional.lab_cluster import LabCluster

pytestmark = pytest.mark.root

PORT = 7711
GATEWAY_MAC = b"\xee" * 6


def node_space(lab: LabCluster, name: str) -> Inside:
    return Inside(lab.node(name).namespaces.net)


def pod_space(lab: LabCluster, name: str) -> Inside:
    return Inside(lab.sandbox(name).descriptor)


def device(lab: LabCluster, node: str) -> dict[str, object]:
    """The node's VXLAN device as `ip` tells it."""
    found: list[dict[str, object]] = json.loads(lab.sh(node, "ip -json -details link show weft.vxlan"))
    return found[0]


def node_addresses(lab: LabCluster, node: str) -> list[str]:
    """Every address that a node has on any link, but those that only it can use."""
    links = json.loads(lab.sh(node, "ip -json addr"))
    return [
        entry["local"]
        for link in links
        for entry in link["addr_info"]
        if link["ifname"] != "lo" and entry["scope"] == "global"
    ]


def heard(listener: socket.socket, token: bytes) -> bool:
    try:
        while listener.recv(2048) != token:
            pass
    except TimeoutError:
        return False
    return True


def forged(lab: LabCluster, node: str, source: str, target: str) -> tuple[bytes, bytes]:
    """A VXLAN payload with a packet for this target inside a node, and its token."""
    found = device(lab, node)
    vni = found["linkinfo"]["info_data"]["id"]  # type: ignore[index]
    token = os.urandom(8)
    inner = frames.ip(source, target, frames.udp(source, target, 1, PORT, token))
    mac = bytes.fromhex(str(found["address"]).replace(":", ""))
    return frames.vxlan(vni, frames.ethernet(b"\x02\0\0\0\0\x77", mac, inner)), token


@pytest.mark.parametrize("node", ["node-1", "node-2"])
def test_no_vxlan_of_a_pod_is_delivered(lab: LabCluster, node: str) -> None:
    pod, own = "pod-1a", pod_space(lab, "pod-1a")
    sources = {":" in each: each for each in lab.addresses(pod)}
    inside = next(each for each in node_addresses(lab, node) if each.startswith("10.244."))
    vxlan_port = int(device(lab, node)["linkinfo"]["info_data"]["port"])  # type: ignore[index]
    targets = node_addresses(lab, node)
    assert len(targets) >= 4
    with node_space(lab, node).receiver(inside, PORT) as listener:
        for target in targets:
            payload, token = forged(lab, node, "10.244.99.99", inside)
            source = sources[":" in target]
            packet = frames.ip(source, target, frames.udp(source, target, 4444, vxlan_port, payload))
            with own.wire("eth0") as wire:
                wire.send(frames.ethernet(own.mac("eth0"), GATEWAY_MAC, packet))
            assert not heard(listener, token), target
        # The listener does hear what may come.
        with own.socket(2) as client:
            client.sendto(b"plainly", (inside, PORT))
        assert heard(listener, b"plainly")


@pytest.mark.parametrize("family", [4, 6])
def test_no_pod_sends_with_a_source_that_is_not_its_own(lab: LabCluster, family: int) -> None:
    def of_family(addresses: list[str]) -> str:
        return next(each for each in addresses if (":" in each) == (family == 6))

    own = pod_space(lab, "pod-1a")
    mine = of_family(lab.addresses("pod-1a"))
    others = [
        of_family(lab.addresses("pod-1b")),
        of_family(lab.addresses("pod-3a")),
        of_family(node_addresses(lab, "node-1")),
        {4: "198.51.100.7", 6: "2001:db8:77::7"}[family],
    ]
    target = of_family(lab.addresses("pod-2a"))
    with (
        pod_space(lab, "pod-2a").receiver(target, PORT) as listener,
        own.wire("eth0") as wire,
    ):
        for source, expected in [*((other, False) for other in others), (mine, True)]:
            token = os.urandom(8)
            packet = frames.ip(source, target, frames.udp(source, target, 1, PORT, token))
            wire.send(frames.ethernet(own.mac("eth0"), GATEWAY_MAC, packet))
            assert heard(listener, token) is expected, source
