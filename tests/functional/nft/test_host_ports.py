"""Who reaches a pod by a port of its node, and whom the pod sees."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import pytest

from datapath.nft.frontends import Backend, Balance, Frontend, service_elements
from datapath.nft.hostports import HostPort, host_port_elements
from datapath.nft.rules import Family, Protocol
from datapath.text import parse_address
from tests.functional.nft import frames
from tests.functional.nft.world import EXEMPT, FAMILIES, NUMBERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datapath.desired import SetElements
    from tests.functional.nft.spaces import Space
    from tests.functional.nft.world import Pod, World

pytestmark = [pytest.mark.root, pytest.mark.parametrize("family", [4, 6])]

PORT, TARGET = 8053, 5353
UDP = Protocol.UDP
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
# Connection tracking remembers a flow, so no two use one port.
_ports = count(20_000)


def led(pod: Pod, *ports: HostPort) -> tuple[SetElements, ...]:
    return host_port_elements([parse_address(pod.address(each)) for each in (4, 6)], ports)


def expose(world: World, *elements: SetElements) -> None:
    world.program(world.a, more=elements)


def seen(
    client: Space, target: str, pod: Pod, family: int, *, port: int = PORT, at: int = TARGET
) -> str | None:
    """Ask at a port of the node; returns whom the pod saw, if client and pod heard of each other."""
    with (
        pod.space.receiver(pod.address(family), at) as server,
        client.socket(FAMILIES[family]) as asking,
    ):
        asking.bind(("", next(_ports)))
        try:
            asking.connect((target, port))
            asking.send(b"question")
            _, source = server.recvfrom(100)
            server.sendto(b"answer", source)
            assert asking.recv(100) == b"answer"
        except OSError:
            return None
        return str(source[0])


@pytest.fixture
def exposed(world: World) -> Iterator[World]:
    """The first pod at every address of its node."""
    world.a.space.set(net__ipv4__conf__weft00000000001__route_localnet="1")
    expose(world, *led(world.pod1, HostPort(b"", UDP, PORT, TARGET)))
    yield world
    world.a.space.set(net__ipv4__conf__weft00000000001__route_localnet="0")
    assert "host-ports" in world.a.space.run("nft", "list", "ruleset")


def test_from_outside_the_source_is_kept(exposed: World, family: int) -> None:
    outside = {4: "192.0.2.9", 6: "2001:db8::9"}[family]
    for target in (exposed.a.underlay(family), exposed.a.secondary(family), exposed.a.tunnel(family)):
        assert seen(exposed.outside, target, exposed.pod1, family) == outside


def test_from_a_pod_beside_it_the_source_is_kept(exposed: World, family: int) -> None:
    target = exposed.a.underlay(family)
    assert seen(exposed.pod2.space, target, exposed.pod1, family) == exposed.pod2.address(family)


def test_from_a_pod_of_another_node_the_source_is_that_node(exposed: World, family: int) -> None:
    target = exposed.a.underlay(family)
    assert seen(exposed.remote.space, target, exposed.pod1, family) == exposed.b.underlay(family)


def test_from_the_node_the_source_is_the_address_that_was_asked(exposed: World, family: int) -> None:
    target = exposed.a.underlay(family)
    assert seen(exposed.a.space, target, exposed.pod1, family) == target


def test_from_the_pod_itself_the_source_is_the_node(exposed: World, family: int) -> None:
    target = exposed.a.secondary(family)
    assert seen(exposed.pod1.space, target, exposed.pod1, family) == exposed.a.underlay(family)


def test_from_the_nodes_loopback_the_source_is_the_node(exposed: World, family: int) -> None:
    """The kernel routes nothing from ::1 to a pod, so that stays the node's own: refused at once."""
    expected = {4: exposed.a.underlay(4), 6: None}[family]
    assert seen(exposed.a.space, LOOPBACK[family], exposed.pod1, family) == expected
    if family == 6:
        with exposed.a.space.socket(FAMILIES[family]) as client:
            client.connect((LOOPBACK[family], PORT))
            client.send(b"question")
            with pytest.raises(ConnectionRefusedError):
                client.recv(100)


def test_other_protocols_numbers_and_nodes_are_not_taken(exposed: World, family: int) -> None:
    target = exposed.a.underlay(family)
    assert seen(exposed.outside, target, exposed.pod1, family, port=PORT + 1) is None
    assert seen(exposed.outside, exposed.b.underlay(family), exposed.pod1, family) is None
    tcp = HostPort(b"", Protocol.TCP, PORT, TARGET)
    expose(exposed, *led(exposed.pod1, tcp))
    assert seen(exposed.outside, target, exposed.pod1, family) is None


def test_packets_that_only_pass_are_not_taken(exposed: World, family: int) -> None:
    """Whatever address a pod names as the node's: connections to others are theirs."""
    target = EXEMPT[family]
    everywhere, there = HostPort(b"", UDP, PORT, TARGET), HostPort(parse_address(target), UDP, PORT, TARGET)
    expose(exposed, *led(exposed.pod1, everywhere, there))
    with (
        exposed.outside.receiver(target, PORT) as server,
        exposed.pod2.space.socket(FAMILIES[family]) as client,
    ):
        client.sendto(b"question", (target, PORT))
        assert server.recv(100) == b"question"


def test_one_address_comes_before_all_addresses(world: World, family: int) -> None:
    one = HostPort(parse_address(world.a.secondary(family)), UDP, PORT, TARGET + 1)
    expose(world, *led(world.pod1, HostPort(b"", UDP, PORT, TARGET)), *led(world.pod2, one))
    outside = {4: "192.0.2.9", 6: "2001:db8::9"}[family]
    there, elsewhere = world.a.secondary(family), world.a.underlay(family)
    assert seen(world.outside, there, world.pod2, family, at=TARGET + 1) == outside
    assert seen(world.outside, elsewhere, world.pod1, family) == outside


def test_a_host_port_comes_before_a_node_port(world: World, family: int) -> None:
    number = NUMBERS[family]
    backend = Backend(parse_address(world.pod2.address(family)), TARGET)
    node_port = service_elements({Frontend(Family(number), None, UDP, PORT): Balance((backend,))})
    address = type(node_port[0])(
        (number, "weft"), "node-port-addresses", {parse_address(world.a.underlay(family)): b""}
    )
    target = world.a.underlay(family)
    expose(world, *node_port, address)
    assert seen(world.outside, target, world.pod2, family)
    expose(world, *node_port, address, *led(world.pod1, HostPort(b"", UDP, PORT, TARGET)))
    assert seen(world.outside, target, world.pod1, family)


def test_nobody_else_reaches_the_nodes_loopback(exposed: World, family: int) -> None:
    """With route_localnet the kernel would route to it (CVE-2020-8558)."""
    target, node, pod = LOOPBACK[family], exposed.a.space, exposed.pod1
    node.set(net__ipv4__conf__eth0__route_localnet="1")

    def arrives(sender: Space, source: str, mac: bytes) -> bool:
        packet = frames.ip(source, target, frames.udp(source, target, 7, 9999, b"forged"))
        with node.receiver(target, 9999) as server, sender.wire("eth0") as wire:
            wire.send(frames.ethernet(sender.mac("eth0"), mac, packet))
            try:
                return server.recv(100) == b"forged"
            except TimeoutError:
                return False

    outside = ({4: "192.0.2.9", 6: "2001:db8::9"}[family], node.mac("eth0"))
    inside = (pod.address(family), b"\xee" * 6)
    try:
        assert not arrives(exposed.outside, *outside)
        assert not arrives(pod.space, *inside)
        node.run("nft", "flush", "chain", "ip", "weft", "prerouting")
        # The kernel itself keeps such packets off ::1.
        assert arrives(exposed.outside, *outside) is (family == 4)
        assert arrives(pod.space, *inside) is (family == 4)
    finally:
        node.set(net__ipv4__conf__eth0__route_localnet="0")


def test_a_closed_port_is_refused_as_that_of_the_node(exposed: World, family: int) -> None:
    with exposed.outside.socket(FAMILIES[family]) as client:
        client.connect((exposed.a.underlay(family), PORT))
        client.send(b"question")
        with pytest.raises(ConnectionRefusedError):
            client.recv(100)
