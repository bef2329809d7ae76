"""What somebody does to the kernel is noticed and repaired in under a second, and pods talk again."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import pytest

from tests.functional.overlay.segment import until

if TYPE_CHECKING:
    from collections.abc import Callable

REPAIR_SECONDS = 1.0

READDRESS = ["ip addr replace 192.168.7.1/24 dev eth0", "ip addr replace fd07::1/64 dev eth0 nodad"]
ACTS = {
    "the VXLAN link is deleted": ["ip link del weft.vxlan"],
    "the VXLAN link goes down": ["ip link set weft.vxlan down"],
    "the VXLAN link goes down and up": ["ip link set weft.vxlan down", "ip link set weft.vxlan up"],
    "the VXLAN link gets another MAC address": ["ip link set weft.vxlan address 02:11:22:33:44:55"],
    "the VXLAN link gets another MTU": ["ip link set weft.vxlan mtu 1300"],
    "the tunnel address is removed": ["ip addr flush dev weft.vxlan"],
    "all our routes are flushed": ["ip route flush proto 119", "ip -6 route flush proto 119"],
    "a route is replaced": ["ip route replace 10.244.2.0/24 dev eth0"],
    "a route is appended to ours": ["ip route append 10.244.2.0/24 dev eth0 proto 119"],
    "the neighbours are flushed": [
        "ip neigh flush dev weft.vxlan nud permanent",
        "ip -6 neigh flush dev weft.vxlan nud permanent",
    ],
    "the forwarding entries are deleted": ["bridge fdb flush dev weft.vxlan"],
    "nftables is flushed": ["nft flush ruleset"],
    "our tables are deleted": ["nft delete table ip weft", "nft delete table ip6 weft"],
    "a chain is flushed": ["nft flush chain ip weft egress"],
    "an element is deleted": ["nft delete element ip weft nodes { 192.168.7.2 }"],
    "forwarding is switched off": [
        "sysctl -qw net.ipv4.ip_forward=0",
        "sysctl -qw net.ipv6.conf.all.forwarding=0",
    ],
    "reverse path filtering is made strict": ["sysctl -qw net.ipv4.conf.weft/vxlan.rp_filter=1"],
    "the underlay goes down and up": ["ip link set eth0 down", "ip link set eth0 up", *READDRESS],
    "the InternalIP is deleted and added again": ["ip addr flush dev eth0 scope global", *READDRESS],
    "a pod's link goes down": ["ip link set weft0000000000a down"],
    "a pod's link goes down and up": ["ip link set weft0000000000a down", "ip link set weft0000000000a up"],
    "a pod's routes are deleted": [
        "ip route flush dev weft0000000000a",
        "ip -6 route flush dev weft0000000000a",
    ],
}
DIRECT = (
    "all our routes are flushed",
    "a route is replaced",
    "the underlay goes down and up",
    "the InternalIP is deleted and added again",
    "nftables is flushed",
)
ONLY_DIRECT = ("the underlay goes down and up",)
"""By VXLAN nothing of ours is lost with the underlay."""


def disturb(made: Any, act: str) -> None:
    for command in ACTS[act]:
        made.a.space.run(*shlex.split(command), check="flush" not in command)


@pytest.mark.parametrize(
    ("overlay", "act"),
    [("vxlan", act) for act in ACTS if act not in ONLY_DIRECT] + [("auto", act) for act in DIRECT],
)
async def test_repair(pair: Callable[..., Any], overlay: str, act: str) -> None:
    made = await pair(overlay)
    await until(made.connected, within=3)
    repairs = made.a.reconciler.repairs

    async def repaired() -> bool:
        return made.a.reconciler.repairs > repairs and not await made.a.differences()

    disturb(made, act)
    seconds = await until(repaired, within=REPAIR_SECONDS)
    await until(made.connected, within=2)
    print(f"{overlay}: {act}: repaired after {seconds:.3f} s")
    assert await made.a.differences() == []
    assert await made.b.differences() == []
    assert made.a.findings.rows() == ()
