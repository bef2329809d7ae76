"""Pods keep their address inside the cluster and take the node's address outside."""

from __future__ import annotations

import socket
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.functional.nft.spaces import ask
from tests.functional.nft.world import EXEMPT, FAMILIES, OUTSIDE

if TYPE_CHECKING:
    from tests.functional.nft.spaces import Space
    from tests.functional.nft.world import World

pytestmark = [pytest.mark.root, pytest.mark.parametrize("family", [4, 6])]

PORT = 7000
# Connection tracking remembers a flow, so no two use one port.
_ports = count(5000)


class Seen(NamedTuple):
    """The source that the receiver sees, and whether the port is the sender's."""

    address: str
    same_port: bool


def seen(sender: Space, target: str, receiver: Space, family: int, *, source: str = "") -> Seen | None:
    port = next(_ports)
    with receiver.receiver(target, PORT) as server, sender.socket(FAMILIES[family]) as client:
        client.bind((source, port))
        found = ask(client, (target, PORT), server)
    return None if found is None else Seen(found[0], found[1] == port)


def test_pod_to_the_outside_takes_the_nodes_address_and_a_random_port(world: World, family: int) -> None:
    found = [seen(pod.space, OUTSIDE[family], world.outside, family) for pod in (world.pod1, world.pod2)]
    assert all(each is not None and each.address == world.a.underlay(family) for each in found)
    # One equal port in 60,000 is luck, two are a fixed choice.
    assert not all(each is not None and each.same_port for each in found)


def test_answers_find_back_to_the_pod(world: World, family: int) -> None:
    with (
        world.outside.receiver(OUTSIDE[family], PORT) as server,
        world.pod1.space.socket(FAMILIES[family]) as client,
    ):
        client.connect((OUTSIDE[family], PORT))
        client.send(b"question")
        _, source = server.recvfrom(100)
        server.sendto(b"answer", source)
        assert client.recv(100) == b"answer"


def test_pod_to_pod_on_this_node_keeps_its_address(world: World, family: int) -> None:
    target = world.pod2.address(family)
    expected = Seen(world.pod1.address(family), True)
    assert seen(world.pod1.space, target, world.pod2.space, family) == expected


def test_pod_to_pod_on_another_node_keeps_its_address(world: World, family: int) -> None:
    target = world.remote.address(family)
    expected = Seen(world.pod1.address(family), True)
    assert seen(world.pod1.space, target, world.remote.space, family) == expected


def test_pod_to_own_node_keeps_its_address(world: World, family: int) -> None:
    target = world.a.underlay(family)
    expected = Seen(world.pod1.address(family), True)
    assert seen(world.pod1.space, target, world.a.space, family) == expected


def test_pod_to_a_vxlan_peers_node_takes_the_nodes_address(world: World, family: int) -> None:
    target = world.b.underlay(family)
    found = seen(world.pod1.space, target, world.b.space, family)
    assert found is not None
    assert found.address == world.a.underlay(family)


def test_pod_to_a_direct_peers_node_keeps_its_address(world: World, family: int) -> None:
    target = world.b.underlay(family)
    world.program(world.a, direct=[target])
    expected = Seen(world.pod1.address(family), True)
    assert seen(world.pod1.space, target, world.b.space, family) == expected


def test_exempt_destinations_see_the_pods_address(world: World, family: int) -> None:
    expected = Seen(world.pod1.address(family), True)
    assert seen(world.pod1.space, EXEMPT[family], world.outside, family) == expected
    world.program(world.a, exempt=False)
    found = seen(world.pod1.space, EXEMPT[family], world.outside, family)
    assert found is not None
    assert found.address == world.a.underlay(family)


def test_the_node_itself_is_never_masqueraded(world: World, family: int) -> None:
    source = world.a.tunnel(family)
    expected = Seen(source, True)
    assert seen(world.a.space, OUTSIDE[family], world.outside, family, source=source) == expected


def test_a_remote_pod_in_transit_is_not_masqueraded_here(world: World, family: int) -> None:
    gateway = world.a.tunnel(family)
    world.b.space.ip(f"route replace {OUTSIDE[family]} via {gateway} dev weft.vxlan onlink")
    try:
        # On its own node it goes into the overlay, which is no reason for masquerading either.
        found = seen(world.remote.space, OUTSIDE[family], world.outside, family)
    finally:
        world.b.space.ip(f"route replace {OUTSIDE[family]} via {world_outside(family)}")
    assert found == Seen(world.remote.address(family), True)


def test_vxlan_itself_is_neither_masqueraded_nor_tracked(world: World, family: int) -> None:
    with world.b.space.wire("eth0") as wire:
        assert seen(world.pod1.space, world.remote.address(family), world.remote.space, family)
        outer = [frame for frame in _received(wire) if frame[36:38] == (4789).to_bytes(2, "big")]
    assert outer
    assert {frame[26:30] for frame in outer} == {socket.inet_aton(world.a.underlay(4))}
    for node in (world.a, world.b):
        assert "dport=4789" not in node.space.read("/proc/thread-self/net/nf_conntrack")


def world_outside(family: int) -> str:
    return {4: "192.0.2.9", 6: "2001:db8::9"}[family]


def _received(wire: socket.socket) -> list[bytes]:
    frames = []
    try:
        while True:
            frames.append(wire.recv(2048))
    except TimeoutError:
        return frames
