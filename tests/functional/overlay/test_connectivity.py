"""Pods of two nodes reach each other in every mode, over every mixture of families, with rp_filter=1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from datapath.text import parse_address
from tests.functional.overlay.segment import node, ping, reaches, until

if TYPE_CHECKING:
    from collections.abc import Callable

MODES = [
    ("vxlan", "4", "4"),
    ("vxlan", "6", "6"),
    ("vxlan", "46", "46"),
    ("vxlan", "4", "46"),
    ("vxlan", "6", "46"),
    ("direct", "46", "46"),
    ("auto", "46", "46"),
    ("auto", "4", "46"),
    ("auto", "6", "46"),
]
OVERHEAD = {"4": 28, "6": 48}


@pytest.mark.parametrize(("overlay", "underlay", "inner"), MODES)
async def test_pods_and_nodes_reach_pods(
    pair: Callable[..., Any], overlay: str, underlay: str, inner: str
) -> None:
    made = await pair(overlay, underlay, inner)
    await until(made.connected, within=3)
    for pod in made.pods.values():
        for address in pod.addresses.values():
            assert await reaches(made.a.space, address), "a node reaches its own and remote pods"
    assert await made.a.differences() == []
    assert made.a.findings.rows() == ()
    assert made.a.space.run("nft", "list", "ruleset")


@pytest.mark.parametrize(
    ("overlay", "underlay", "mtu"), [("vxlan", "4", 1450), ("vxlan", "6", 1430), ("direct", "46", 1500)]
)
async def test_packets_of_the_full_mtu_pass_unfragmented(
    pair: Callable[..., Any], overlay: str, underlay: str, mtu: int
) -> None:
    made = await pair(overlay, underlay, "46")
    assert made.a.reconciler.local.mtu == mtu
    await until(made.connected, within=3)
    for address in made.pods["b"].addresses.values():
        headers = 28 if len(address) == 4 else 48
        assert await reaches(made.pods["a"].space, address, size=mtu - headers)
        assert not await ping(made.pods["a"].space, address, size=mtu - headers + 1)


async def test_auto_takes_direct_routes_and_keeps_the_receiver_up(pair: Callable[..., Any]) -> None:
    made = await pair("auto")
    routes = made.a.space.run("ip", "route", "show", "proto", "119")
    [direct] = [line for line in routes.splitlines() if line.startswith("10.244.2.0/24 ")]
    assert "via 192.168.7.2 dev eth0 " in direct
    assert "src 192.168.7.1" in direct
    assert "unreachable 10.244.1.0/24" in routes
    assert "state UNKNOWN" in made.a.space.run("ip", "link", "show", "weft.vxlan")


async def test_a_node_beyond_the_segment_is_reached_by_vxlan_in_auto_mode(pair: Callable[..., Any]) -> None:
    made = await pair("auto", "4", "4")
    # b moves to another segment behind a router, which is the bridge's namespace here.
    made.segment.bridge.ip("addr add 192.168.7.254/24 dev br0", "addr add 192.168.8.254/24 dev br0")
    made.segment.bridge.set(net__ipv4__ip_forward="1")
    made.a.space.ip("route add default via 192.168.7.254")
    made.b.space.ip("addr flush dev eth0", "addr add 192.168.8.2/24 dev eth0")
    made.b.space.ip("route add default via 192.168.8.254")
    moved = node("b", ips=["192.168.8.2"], cidrs=["10.244.2.0/24"])
    made.segment.publish(made.node("a", 1), moved)
    await until(made.connected, within=3)
    assert "10.244.2.0/24 via 10.244.2.0 dev weft.vxlan" in made.a.space.run("ip", "route")
    assert await made.a.differences() == []
    assert await made.b.differences() == []


@pytest.mark.parametrize("overlay", ["vxlan", "auto"])
async def test_pods_reach_nodes_although_their_own_address_would_not_pass(
    pair: Callable[..., Any], overlay: str
) -> None:
    made = await pair(overlay)
    await until(made.connected, within=3)
    for address in ("192.168.7.1", "192.168.7.2", "fd07::1", "fd07::2"):
        assert await reaches(made.pods["a"].space, parse_address(address)), address
