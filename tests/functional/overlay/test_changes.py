"""Nodes come, go and change, daemons stop and start: the kernel follows, and the rest is not touched."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from daemon.config import Config
from datapath.desired import VXLAN_LINK
from tests.functional.overlay.segment import Segment, node, ping, reaches, until

if TYPE_CHECKING:
    from collections.abc import Callable

STALE = (
    "link add weft0123456789a type veth peer name foreign0",
    "link add weft.vxlan6 type vxlan id 7 dstport 4790 local fd07::1 nolearning",
    "route add 10.99.0.0/24 dev eth0 proto 119",
    "route add unreachable fd99::/64 proto 119",
    "neigh add 10.99.0.0 lladdr 02:00:00:00:00:99 dev weft.vxlan nud permanent",
    "addr add 10.99.1.1/32 dev weft.vxlan",
)


def listing(made: Any) -> str:
    commands = ("ip -o link", "ip route", "ip -6 route", "ip neigh", "bridge fdb")
    return "".join([made.a.space.run(*command.split()) for command in commands])


def ours(text: str) -> list[str]:
    """Lines about our links and routes, but for neighbours that the kernel learns."""
    return [line for line in text.splitlines() if "weft" in line and "extern_learn" not in line]


async def in_line(made: Any) -> bool:
    return not await made.a.differences() and not await made.b.differences()


async def test_a_node_joins_and_leaves(pair: Callable[..., Any]) -> None:
    made = await pair()
    before = listing(made)
    config = made.a.config
    late = made.segment.add("c", addresses=["192.168.7.3/24", "fd07::3/64"], config=config)
    made.segment.publish(made.node("a", 1), made.node("b", 2), made.node("c", 3))
    await late.start()
    pod = await late.pod()
    for family, address in pod.addresses.items():
        for other in made.pods.values():

            async def reached(inside: Any = other.space, to: bytes = address) -> bool:
                return await ping(inside, to)

            await until(reached, within=2)
            assert await reaches(pod.space, other.addresses[family])
    assert "192.168.7.3" in listing(made)
    made.segment.publish(made.node("a", 1), made.node("b", 2))

    async def gone() -> bool:
        return "192.168.7.3" not in listing(made).replace("192.168.7.3 dev eth0", "")

    await until(gone, within=2)
    await until(lambda: in_line(made), within=2)
    assert ours(listing(made)) == ours(before)


async def test_a_peer_gets_another_address(pair: Callable[..., Any]) -> None:
    made = await pair()
    made.b.space.ip("addr flush dev eth0")
    made.segment.address(made.b, ["192.168.7.22/24", "fd07::22/64"])
    moved = node("b", ips=["192.168.7.22", "fd07::22"], cidrs=["10.244.2.0/24", "fd44:0:0:2::/64"])
    made.segment.publish(made.node("a", 1), moved)
    await until(made.connected, within=3)
    await until(lambda: in_line(made), within=2)
    assert "local 192.168.7.22" in made.b.space.run("ip", "-d", "link", "show", VXLAN_LINK)
    assert "192.168.7.2 " not in made.a.space.run("bridge", "fdb", "show", "dev", VXLAN_LINK)
    assert "src 192.168.7.22" in made.b.space.run("ip", "route", "show", "dev", "weft0000000000a")
    assert made.b.findings.rows() == ()


async def test_a_peer_gets_another_pod_cidr(pair: Callable[..., Any]) -> None:
    made = await pair("vxlan", "4", "4")
    moved = node("b", ips=["192.168.7.2"], cidrs=["10.244.77.0/24"])
    made.segment.publish(made.node("a", 1), moved)

    async def followed() -> bool:
        routes = made.a.space.run("ip", "route")
        return "10.244.77.0/24 via 10.244.77.0 dev weft.vxlan" in routes and "10.244.2.0" not in routes

    await until(followed, within=2)
    pod = await made.b.pod(20)
    assert await reaches(made.pods["a"].space, pod.addresses[4])
    assert await in_line(made)


async def test_two_nodes_claim_one_pod_cidr_and_the_result_does_not_depend_on_the_order(
    pair: Callable[..., Any],
) -> None:
    made = await pair("vxlan", "4", "4")
    rival = node("aa", ips=["192.168.7.9"], cidrs=["10.244.2.0/24"])
    made.segment.publish(made.node("a", 1), made.node("b", 2), rival)
    await until(lambda: in_line(made), within=2)
    made.segment.publish(made.node("a", 1), made.node("b", 2))
    await until(made.connected, within=2)
    assert await in_line(made)


async def test_a_peer_with_our_own_pod_cidr_changes_nothing_and_is_named(pair: Callable[..., Any]) -> None:
    made = await pair("vxlan", "4", "4")
    made.segment.publish(
        made.node("a", 1), made.node("b", 2), node("c", ips=["192.168.7.3"], cidrs=["10.244.1.0/25"])
    )

    async def named() -> bool:
        return [row.name for row in made.a.findings.rows()] == ["PodCidrConflict"]

    await until(named, within=2)
    await until(made.connected, within=3)
    assert await in_line(made)


async def test_a_restart_finds_nothing_to_do_and_touches_nothing(pair: Callable[..., Any]) -> None:
    made = await pair()
    await until(made.connected, within=3)
    await made.a.stop()
    process = await asyncio.create_subprocess_exec(
        "ip", "-n", made.a.space.name, "monitor", "link", "address", "route", "neigh",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    generation = made.a.space.run("nft", "-j", "list", "ruleset")
    await asyncio.sleep(0.2)
    made.a.restart()
    await made.a.start()
    await asyncio.sleep(0.1)
    process.terminate()
    assert process.stdout is not None
    seen = (await process.stdout.read()).decode()
    await process.wait()
    assert [line for line in seen.splitlines() if "weft" in line or "119" in line] == []
    assert made.a.space.run("nft", "-j", "list", "ruleset") == generation
    assert made.a.reconciler.repairs == 0
    await until(made.connected, within=3)


async def test_stale_objects_of_an_earlier_life_are_pruned(pair: Callable[..., Any]) -> None:
    made = await pair()
    await made.a.stop()
    made.a.space.ip(*STALE)
    made.a.space.run("bridge", "fdb", "append", "02:00:00:00:00:99", "dst", "192.168.7.99", "dev", VXLAN_LINK)
    made.a.space.nft("table ip weft { set extra { type ipv4_addr; }; }")
    made.a.restart()
    await made.a.start()
    await until(lambda: in_line(made), within=2)

    left: list[str] = []

    async def clean() -> bool:
        found = listing(made) + made.a.space.run("ip", "addr") + made.a.space.run("nft", "list", "ruleset")
        marks = ("10.99.", "fd99", "weft.vxlan6", "00:00:99", "foreign0", "extra")
        left[:] = [mark for mark in marks if mark in found]
        return not left

    await until(clean, within=2)
    await until(made.connected, within=2)


async def test_nothing_is_deleted_before_the_attachments_are_known(pair: Callable[..., Any]) -> None:
    made = await pair()
    await made.a.stop()
    made.a.space.ip("route add 10.99.0.0/24 dev eth0 proto 119")
    made.a.restart()
    await made.a.start(adopt=False)
    await made.a.writer.resync("test")
    found = listing(made)
    assert "weft0000000000a" in found
    assert "10.99.0.0/24" in found
    await until(made.connected, within=3)


async def test_a_port_that_another_link_holds_is_a_clear_error(pair: Callable[..., Any]) -> None:
    segment = Segment()
    try:
        member = segment.add("a", addresses=["192.168.7.1/24"], config=Config(vxlan_port=8472, vni=1))
        member.space.ip("link add flannel.1 up type vxlan id 1 dstport 8472 local 192.168.7.1")
        segment.publish(node("a", ips=["192.168.7.1"], cidrs=["10.244.1.0/24"]))
        await member.start()
        (row,) = member.findings.rows()
        assert row.name == "KernelRefused"
        assert "UDP port 8472 (VNI 1) is held by VXLAN link flannel.1 (VNI 1)" in row.message
        member.space.ip("link del flannel.1")

        async def recovered() -> bool:
            return not member.findings.rows() and not await member.differences()

        await until(recovered, within=4)
    finally:
        await segment.stop()
        segment.close()


async def test_checksum_offload_can_be_switched_off(pair: Callable[..., Any]) -> None:
    made = await pair("vxlan", "4", "4", tx_checksum_offload="off")
    await until(made.connected, within=3)
    assert await in_line(made)
    assert "tx-checksum-ip-generic: off" in made.a.space.run("ethtool", "-k", VXLAN_LINK)


async def test_forwarding_does_not_cost_the_node_its_router_advertisements(pair: Callable[..., Any]) -> None:
    made = await pair("vxlan", "6", "6")
    assert made.a.space.read("/proc/sys/net/ipv6/conf/eth0/accept_ra").strip() == "2"
    assert made.a.space.read("/proc/sys/net/ipv6/conf/all/forwarding").strip() == "1"
