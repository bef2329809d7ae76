"""No VXLAN frame that a pod or an outsider crafts is delivered, to whatever address and by whatever trick.

Each test proves by a frame of the peer node that the receiver works and would have seen the forged one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.functional.nft import frames
from tests.functional.nft.frames import DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, UDP
from tests.functional.nft.world import HOST_MAC, VNI, VXLAN_PORT

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from tests.functional.nft.spaces import Space
    from tests.functional.nft.world import Node, Pod, World

pytestmark = pytest.mark.root

INNER_PORT = 7700
SPORT = 54321
GATEWAY_MAC = bytes.fromhex(HOST_MAC.replace(":", ""))
_identities = itertools.count(100)


class Victim:
    """A node that listens on its tunnel address for what is delivered out of the overlay."""

    def __init__(self, node: Node, listener: socket.socket) -> None:
        self.node = node
        self._listener = listener

    def forged(self) -> tuple[bytes, bytes]:
        """A VXLAN payload with a forged inner packet for this node, and the token in it."""
        token = os.urandom(8)
        target = self.node.tunnel(4)
        inner = frames.ip("10.244.77.7", target, frames.udp("10.244.77.7", target, 1, INNER_PORT, token))
        mac = bytes.fromhex(self.node.vtep().replace(":", ""))
        return frames.vxlan(VNI, frames.ethernet(b"\x02\0\0\0\0\x77", mac, inner)), token

    def got(self, token: bytes) -> bool:
        try:
            while self._listener.recv(2048) != token:
                pass
        except TimeoutError:
            return False
        return True


@contextlib.contextmanager
def victim(node: Node) -> Iterator[Victim]:
    with node.space.receiver(node.tunnel(4), INNER_PORT) as listener:
        yield Victim(node, listener)


def addresses(node: Node, family: int) -> tuple[str, ...]:
    return (node.underlay(family), node.secondary(family), node.tunnel(family))


def datagram(source: str, target: str, payload: bytes, *, port: int = VXLAN_PORT) -> bytes:
    return frames.udp(source, target, SPORT, port, payload)


def send_from_pod(pod: Pod, *packets: bytes) -> None:
    with pod.space.wire("eth0") as wire:
        own = pod.space.mac("eth0")
        for packet in packets:
            wire.send(frames.ethernet(own, GATEWAY_MAC, packet))


def send_on_segment(space: Space, target: Space, *packets: bytes) -> None:
    with space.wire("eth0") as wire:
        for packet in packets:
            wire.send(frames.ethernet(space.mac("eth0"), target.mac("eth0"), packet))


def assert_listening(world: World, seen: Victim) -> None:
    """The peer's VXLAN is delivered, so a frame that was not delivered was refused."""
    peer = world.b if seen.node is world.a else world.a
    payload, token = seen.forged()
    packet = frames.ip(
        peer.underlay(4), seen.node.underlay(4), datagram(peer.underlay(4), seen.node.underlay(4), payload)
    )
    send_on_segment(peer.space, seen.node.space, packet)
    assert seen.got(token)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("place", ["own", "other"])
def test_a_pod_reaches_no_address_of_any_node(world: World, family: int, place: str) -> None:
    node = world.a if place == "own" else world.b
    source = world.pod1.address(family)
    with victim(node) as seen:
        everybody = {4: ("255.255.255.255", "192.0.2.255"), 6: ("ff02::1",)}[family]
        for target in (*addresses(node, family), *everybody):
            payload, token = seen.forged()
            send_from_pod(world.pod1, frames.ip(source, target, datagram(source, target, payload)))
            assert not seen.got(token), target
        assert_listening(world, seen)


def test_without_our_rules_the_same_frame_is_delivered(world: World) -> None:
    """The attack is real: a pod's frame, masqueraded by whoever, reaches the inside of another node."""
    source, target = world.pod1.address(4), world.b.underlay(4)
    world.a.space.nft("flush ruleset")
    world.a.space.nft(
        "table ip other { chain post {"
        " type nat hook postrouting priority srcnat; oifname eth0 masquerade; }; }"
    )
    try:
        with victim(world.b) as seen:
            payload, token = seen.forged()
            send_from_pod(world.pod1, frames.ip(source, target, datagram(source, target, payload)))
            assert seen.got(token)
    finally:
        world.a.space.nft("delete table ip other")


def test_a_pod_with_a_nodes_address_reaches_nothing(world: World) -> None:
    with victim(world.a) as seen:
        for source in (world.b.underlay(4), world.a.underlay(4)):
            payload, token = seen.forged()
            target = world.a.underlay(4)
            send_from_pod(world.pod1, frames.ip(source, target, datagram(source, target, payload)))
            assert not seen.got(token), source
        assert_listening(world, seen)


def fragments_ipv4(source: str, target: str, payload: bytes) -> tuple[bytes, ...]:
    """The UDP header alone first, the rest after it."""
    whole = datagram(source, target, payload)
    identity = next(_identities)
    return (
        frames.ipv4(source, target, whole[:8], identity=identity, more=True),
        frames.ipv4(source, target, whole[8:], identity=identity, offset=8),
    )


def fragments_reversed(source: str, target: str, payload: bytes) -> tuple[bytes, ...]:
    return fragments_ipv4(source, target, payload)[::-1]


def with_ip_options(source: str, target: str, payload: bytes) -> tuple[bytes, ...]:
    return (frames.ipv4(source, target, datagram(source, target, payload), options=b"\1" * 8),)


@pytest.mark.parametrize("shape", [fragments_ipv4, fragments_reversed, with_ip_options])
@pytest.mark.parametrize("place", ["own", "other"])
def test_ipv4_shapes_do_not_help_a_pod(
    world: World, shape: Callable[[str, str, bytes], tuple[bytes, ...]], place: str
) -> None:
    node = world.a if place == "own" else world.b
    with victim(node) as seen:
        payload, token = seen.forged()
        send_from_pod(world.pod1, *shape(world.pod1.address(4), node.underlay(4), payload))
        assert not seen.got(token)
        # The shape itself is one that the peer's VXLAN is delivered in.
        peer = world.b if node is world.a else world.a
        payload, token = seen.forged()
        send_on_segment(peer.space, node.space, *shape(peer.underlay(4), node.underlay(4), payload))
        assert seen.got(token)


@pytest.mark.parametrize("shape", [fragments_ipv4, fragments_reversed])
def test_fragments_do_not_help_a_pod_where_nothing_is_masqueraded(
    world: World, shape: Callable[[str, str, bytes], tuple[bytes, ...]]
) -> None:
    """It is not NAT that has the kernel put fragments together first."""
    world.program(world.a, masquerade=False)
    with victim(world.a) as seen:
        payload, token = seen.forged()
        send_from_pod(world.pod1, *shape(world.pod1.address(4), world.a.underlay(4), payload))
        assert not seen.got(token)
        assert_listening(world, seen)


def hop_by_hop(source: str, target: str, payload: bytes) -> tuple[bytes, ...]:
    body = frames.options(DESTINATION_OPTIONS) + frames.options(UDP) + datagram(source, target, payload)
    return (frames.ipv6(source, target, body, following=HOP_BY_HOP),)


def atomic_fragment(source: str, target: str, payload: bytes) -> tuple[bytes, ...]:
    body = frames.fragment(UDP, 0, datagram(source, target, payload), more=False)
    return (frames.ipv6(source, target, body, following=FRAGMENT),)


def fragments_ipv6(source: str, target: str, payload: bytes) -> tuple[bytes, ...]:
    whole = datagram(source, target, payload)
    identity = next(_identities)
    return tuple(
        frames.ipv6(
            source,
            target,
            frames.fragment(UDP, offset, part, more=more, identity=identity),
            following=FRAGMENT,
        )
        for offset, part, more in ((0, whole[:8], True), (8, whole[8:], False))
    )


def header_in_second_fragment(source: str, target: str, payload: bytes) -> tuple[bytes, ...]:
    """Destination options fill the first fragment, so only the second has the port."""
    whole = frames.options(UDP) + datagram(source, target, payload)
    identity = next(_identities)
    return tuple(
        frames.ipv6(
            source,
            target,
            frames.fragment(DESTINATION_OPTIONS, offset, part, more=more, identity=identity),
            following=FRAGMENT,
        )
        for offset, part, more in ((0, whole[:8], True), (8, whole[8:], False))
    )


@pytest.mark.parametrize("shape", [hop_by_hop, atomic_fragment, fragments_ipv6, header_in_second_fragment])
@pytest.mark.parametrize("place", ["own", "other"])
def test_ipv6_shapes_do_not_help_a_pod(
    world: World, shape: Callable[[str, str, bytes], tuple[bytes, ...]], place: str
) -> None:
    """Over an IPv6 underlay: a second device stands in for weft.vxlan6."""
    node = world.a if place == "own" else world.b
    with ipv6_underlay(node), victim(node) as seen:
        payload, token = seen.forged()
        send_from_pod(world.pod1, *shape(world.pod1.address(6), node.underlay(6), payload))
        assert not seen.got(token)
        peer = world.b if node is world.a else world.a
        payload, token = seen.forged()
        plain = datagram(peer.underlay(6), node.underlay(6), payload)
        send_on_segment(peer.space, node.space, frames.ip(peer.underlay(6), node.underlay(6), plain))
        assert seen.got(token)


@contextlib.contextmanager
def ipv6_underlay(node: Node) -> Iterator[None]:
    node.space.ip(
        f"link add name weft.vxlan6 address {node.vtep()} type vxlan id {VNI} dstport {VXLAN_PORT}"
        f" local {node.underlay(6)} nolearning udp6zerocsumrx",
        "link set weft.vxlan6 up",
    )
    try:
        yield
    finally:
        node.space.ip("link del weft.vxlan6")


@pytest.mark.parametrize("place", ["own", "other"])
def test_no_foreign_nat_leads_a_pod_to_the_port(world: World, place: str) -> None:
    """A service whose endpoint is a node's VXLAN port: the packet has that port only after the DNAT."""
    node = world.a if place == "own" else world.b
    source, vip = world.pod1.address(4), "10.96.0.99"
    with foreign_dnat(world.a, vip, node), victim(node) as seen:
        payload, token = seen.forged()
        send_from_pod(world.pod1, frames.ip(source, vip, datagram(source, vip, payload, port=53)))
        assert not seen.got(token)
        assert_listening(world, seen)


@pytest.mark.parametrize("sender", ["outside", "peer"])
@pytest.mark.parametrize("place", ["own", "other"])
def test_no_foreign_nat_leads_others_to_the_port(world: World, sender: str, place: str) -> None:
    """A NodePort whose endpoint is a node's VXLAN port, tried by an outsider and from the other node."""
    node = world.a if place == "own" else world.b
    space, source = (
        (world.outside, "192.0.2.9") if sender == "outside" else (world.b.space, world.b.underlay(4))
    )
    entry = world.a.secondary(4)
    with foreign_dnat(world.a, entry, node), victim(node) as seen:
        payload, token = seen.forged()
        send_on_segment(
            space, world.a.space, frames.ip(source, entry, datagram(source, entry, payload, port=53))
        )
        assert not seen.got(token)
        assert_listening(world, seen)


@contextlib.contextmanager
def foreign_dnat(node: Node, address: str, target: Node) -> Iterator[None]:
    node.space.nft(
        f"""
        table ip proxy {{
            chain pre {{
                type nat hook prerouting priority dstnat;
                ip daddr {address} udp dport 53 dnat to {target.underlay(4)}:{VXLAN_PORT}
            }}
            chain post {{ type nat hook postrouting priority srcnat; ct status dnat masquerade; }}
        }}""".replace("masquerade; }", "masquerade\n }")
    )
    try:
        yield
    finally:
        node.space.nft("delete table ip proxy")


@pytest.mark.parametrize("source", ["192.0.2.9", "192.0.2.77", "192.0.2.102", "10.244.2.13"])
def test_an_outsider_is_no_node(world: World, source: str) -> None:
    """Any source but the peer's underlay address, even another address of the peer."""
    with victim(world.a) as seen:
        payload, token = seen.forged()
        target = world.a.underlay(4)
        send_on_segment(
            world.outside, world.a.space, frames.ip(source, target, datagram(source, target, payload))
        )
        assert not seen.got(token)
        assert_listening(world, seen)


def test_a_node_is_heard_at_the_underlay_address_only(world: World) -> None:
    source = world.b.underlay(4)
    with victim(world.a) as seen:
        for target in (world.a.secondary(4), world.a.tunnel(4)):
            payload, token = seen.forged()
            packet = frames.ip(source, target, datagram(source, target, payload))
            send_on_segment(world.b.space, world.a.space, packet)
            assert not seen.got(token), target
        assert_listening(world, seen)


def test_vxlan_within_vxlan_is_refused(world: World) -> None:
    """From a node's overlay device nobody speaks VXLAN, whatever the addresses inside say."""
    source, target = world.b.underlay(4), world.a.underlay(4)
    with victim(world.a) as seen:
        payload, token = seen.forged()
        nested = frames.ip(source, target, datagram(source, target, payload))
        mac = bytes.fromhex(world.a.vtep().replace(":", ""))
        outer = frames.vxlan(VNI, frames.ethernet(b"\x02\0\0\0\0\2", mac, nested))
        send_on_segment(
            world.b.space, world.a.space, frames.ip(source, target, datagram(source, target, outer))
        )
        assert not seen.got(token)
        assert_listening(world, seen)


def test_a_pods_flow_does_not_capture_the_overlay(world: World) -> None:
    """A flow masqueraded to the VXLAN port would make the peer's frames its replies, were they tracked."""
    peer_port = 40000
    world.a.space.nft(
        f"""table ip other {{
            chain post {{
                type nat hook postrouting priority srcnat - 1;
                iifname {world.pod1.link} udp dport {peer_port} masquerade to :{VXLAN_PORT}
            }}
        }}"""
    )
    try:
        with victim(world.a) as seen, world.pod1.space.wire("eth0") as pod:
            source, target = world.pod1.address(4), world.b.underlay(4)
            send_from_pod(
                world.pod1, frames.ip(source, target, frames.udp(source, target, 9, peer_port, b"x"))
            )
            deadline = time.monotonic() + 2
            while f"dport={VXLAN_PORT}" not in world.a.space.read("/proc/thread-self/net/nf_conntrack"):
                assert time.monotonic() < deadline, "the flow was to occupy the port"
            payload, token = seen.forged()
            mine = world.a.underlay(4)
            packet = frames.ip(target, mine, frames.udp(target, mine, peer_port, VXLAN_PORT, payload))
            send_on_segment(world.b.space, world.a.space, packet)
            assert seen.got(token)
            with contextlib.suppress(TimeoutError):
                while True:
                    assert token not in pod.recv(2048)
    finally:
        world.a.space.nft("delete table ip other")


def test_pods_still_talk_udp_on_other_ports(world: World) -> None:
    target = world.remote.address(4)
    with world.remote.space.receiver(target, VXLAN_PORT + 1) as listener:
        source = world.pod1.address(4)
        send_from_pod(
            world.pod1, frames.ip(source, target, datagram(source, target, b"hello", port=VXLAN_PORT + 1))
        )
        assert listener.recv(100) == b"hello"
