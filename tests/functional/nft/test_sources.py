"""A pod sends from its own addresses and from no other."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from typing import TYPE_CHECKING

import pytest

from tests.functional.nft import frames
from tests.functional.nft.spaces import SETTLE_SECONDS, ask
from tests.functional.nft.world import FAMILIES, HOST_MAC, OUTSIDE

if TYPE_CHECKING:
    from tests.functional.nft.world import Pod, World

pytestmark = pytest.mark.root

PORT = 7900
GATEWAY_MAC = bytes.fromhex(HOST_MAC.replace(":", ""))
FORGED = {
    4: {
        "another pod of this node": "10.244.1.12",
        "an address that no pod has": "10.244.1.99",
        "a remote pod": "10.244.2.13",
        "this node": "192.0.2.1",
        "this node's tunnel address": "10.244.1.0",
        "another node": "192.0.2.2",
        "somebody outside": "203.0.113.77",
        "the gateway": "169.254.1.1",
        "nobody": "0.0.0.0",
        "this network": "0.1.2.3",
        "loopback": "127.0.0.1",
        "broadcast": "255.255.255.255",
        "multicast": "224.0.0.5",
    },
    6: {
        "another pod of this node": "fd00:244:1::12",
        "an address that no pod has": "fd00:244:1::99",
        "a remote pod": "fd00:244:2::13",
        "this node": "2001:db8::1",
        "this node's tunnel address": "fd00:244:1::",
        "another node": "2001:db8::2",
        "somebody outside": "2001:db8:113::77",
        "the gateway": "fe80::1",
        "another link-local address": "fe80::77",
        "nobody": "::",
        "loopback": "::1",
        "mapped": "::ffff:203.0.113.9",
        "multicast": "ff02::5",
    },
}
CASES = [(family, name) for family, forged in FORGED.items() for name in forged]
DISCOVERY = {"solicitation": 135, "advertisement": 136}
FORBIDDEN = {"router advertisement": 134, "redirect": 137, "echo request": 128}


def targets(world: World, family: int) -> dict[str, str]:
    """Where to send to, and all the ways that a packet can take: here, next door, overlay, outside."""
    return {
        "node": world.a.underlay(family),
        "pod": world.pod2.address(family),
        "remote pod": world.remote.address(family),
        "outside": OUTSIDE[family],
        "everybody": {4: "255.255.255.255", 6: "ff02::1"}[family],
    }


def arrivals(world: World, pod: Pod, family: int, source: str) -> set[str]:
    """The targets at which a datagram with this source arrives."""
    tokens = {os.urandom(8): name for name in targets(world, family)}
    spaces = (world.a.space, world.pod2.space, world.remote.space, world.outside)
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(space.socket(FAMILIES[family])) for space in spaces]
        for each in listeners:
            each.bind(("", PORT))
        wire = stack.enter_context(pod.space.wire("eth0"))
        own = pod.space.mac("eth0")
        for token, target in zip(tokens, targets(world, family).values(), strict=True):
            packet = frames.ip(source, target, frames.udp(source, target, 1, PORT, token))
            wire.send(frames.ethernet(own, GATEWAY_MAC, packet))
        time.sleep(SETTLE_SECONDS)
        found = set()
        for each in listeners:
            each.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    found.add(tokens[each.recv(100)])
    return found


@pytest.mark.parametrize("family", [4, 6])
def test_its_own_address_arrives_everywhere(world: World, family: int) -> None:
    found = arrivals(world, world.pod1, family, world.pod1.address(family))
    assert found >= {"node", "pod", "remote pod", "outside"}


@pytest.mark.parametrize(("family", "name"), CASES, ids=[f"{family}-{name}" for family, name in CASES])
def test_no_other_source_arrives_anywhere(world: World, family: int, name: str) -> None:
    assert arrivals(world, world.pod1, family, FORGED[family][name]) == set()


def test_without_our_rules_forged_sources_arrive(world: World) -> None:
    """What the test above proves is not proven by routing."""
    world.a.space.nft("flush ruleset")
    assert "pod" in arrivals(world, world.pod1, 4, "203.0.113.77")
    assert "pod" in arrivals(world, world.pod1, 6, "2001:db8:113::77")


@pytest.mark.parametrize("family", [4, 6])
def test_a_pod_without_elements_sends_nothing(world: World, family: int) -> None:
    """Fail closed: a veth that nobody has announced is mute."""
    table = {4: "ip", 6: "ip6"}[family]
    world.a.space.nft(f"flush set {table} weft sources")
    assert arrivals(world, world.pod1, family, world.pod1.address(family)) == set()


def test_neighbour_discovery_works_from_link_local_addresses(world: World) -> None:
    """The pod finds its gateway, and the node finds the pod's link-local address."""
    world.pod1.space.ip("neigh flush dev eth0")
    with (
        world.outside.receiver(OUTSIDE[6], PORT) as server,
        world.pod1.space.socket(FAMILIES[6]) as client,
    ):
        assert ask(client, (OUTSIDE[6], PORT), server)
    assert "REACHABLE" in world.pod1.space.run("ip", "-6", "neigh", "show", "fe80::1")


def icmpv6(source: str, target: str, kind: int, body: bytes) -> bytes:
    message = struct.pack("!BBH", kind, 0, 0) + body
    pseudo = frames.packed(source) + frames.packed(target) + struct.pack("!II", len(message), 58)
    message = message[:2] + struct.pack("!H", frames.checksum(pseudo + message)) + message[4:]
    return frames.ipv6(source, target, message, following=58, hops=255)


def refused(world: World) -> int:
    """How many packets the link-local chain has dropped."""
    listing = world.a.space.run("nft", "list", "chain", "ip6", "weft", "link-local")
    words = next(line for line in listing.splitlines() if "counter" in line).split()
    return int(words[words.index("packets") + 1])


@pytest.mark.parametrize(("name", "kind"), [*DISCOVERY.items(), *FORBIDDEN.items()])
def test_link_local_addresses_serve_discovery_alone(world: World, name: str, kind: int) -> None:
    before = refused(world)
    target = "fe80::1"
    body = bytes(4) + frames.packed(target) + bytes(8)
    with world.pod1.space.wire("eth0") as wire:
        packet = icmpv6("fe80::77", target, kind, body)
        wire.send(frames.ethernet(world.pod1.space.mac("eth0"), GATEWAY_MAC, packet))
    assert refused(world) - before == (1 if name in FORBIDDEN else 0)


def test_joining_a_multicast_group_is_not_refused(world: World) -> None:
    before = refused(world)
    with world.pod1.space.socket(FAMILIES[6]) as opened:
        index = int(world.pod1.space.run("cat", "/proc/net/igmp6").split()[0])
        group = frames.packed("ff05::77") + struct.pack("@I", index)
        opened.setsockopt(41, 20, group)  # IPPROTO_IPV6, IPV6_JOIN_GROUP
    assert refused(world) == before
