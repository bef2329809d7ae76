"""What others do is noticed, what the writer's own socket does is not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from datapath.desired import ADDRESS, FDB, LINK, NEIGHBOUR, ROUTE, FdbEntry, Neighbour, Route
from datapath.netlink.addresses import RTM_NEWADDR
from datapath.netlink.links import set_link
from datapath.netlink.neighbours import new_fdb, new_neighbour
from datapath.netlink.routes import RTM_NEWROUTE, del_route, new_route
from datapath.netlink.transport import Socket
from datapath.observe import Observer
from datapath.text import parse_address, parse_mac
from datapath.watch import Noticed, Watch
from tests.functional.datapath.conftest import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.functional.datapath.conftest import Node

MAC = parse_mac("02:00:00:00:00:02")
NETWORK, PEER = parse_address("10.2.0.0"), parse_address("192.0.2.2")


class Ear:
    """The event loop's own, where the daemon has its writer's."""

    def overhear(self, descriptor: int, heard: Callable[[], None]) -> None:
        def once() -> None:
            self.ignore(descriptor)
            heard()

        asyncio.get_running_loop().add_reader(descriptor, once)

    def ignore(self, descriptor: int) -> None:
        asyncio.get_running_loop().remove_reader(descriptor)


async def collected(watch: Watch) -> Noticed:
    """Everything noticed until nothing more comes."""
    found = Noticed()
    while True:
        try:
            async with asyncio.timeout(0.5):
                more = await watch.next()
        except TimeoutError:
            return found
        found.objects |= more.objects
        found.links |= more.links
        found.addresses |= more.addresses
        found.forwarding |= more.forwarding
        found.overrun |= more.overrun


def vxlan() -> int:
    run("ip link add weft.vxlan type vxlan id 5 dstport 4789 local 192.0.2.1 nolearning")
    run("ip link set weft.vxlan up")
    run("ip link add eth0 type veth peer name far")
    run("ip link add weft0123456789a type veth peer name far1")
    for link in ("far", "far1", "eth0", "weft0123456789a"):
        run(f"ip link set {link} up")
    run("ip addr add 10.1.0.0/32 dev weft.vxlan")
    run("ip route add 10.2.0.0/24 dev weft.vxlan proto 119")
    run("ip neigh add 10.2.0.0 lladdr 02:00:00:00:00:02 dev weft.vxlan nud permanent")
    run("bridge fdb append 02:00:00:00:00:02 dst 192.0.2.2 dev weft.vxlan")
    with Socket() as route:
        return Observer(route).read().indexes["weft.vxlan"]


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ("ip link del weft.vxlan", (LINK, "weft.vxlan")),
        ("ip link set weft.vxlan down", (LINK, "weft.vxlan")),
        ("ip link set weft.vxlan address 02:00:00:00:00:77", (LINK, "weft.vxlan")),
        ("ip link set weft0123456789a down", (LINK, "weft0123456789a")),
        ("ip link del weft0123456789a", (LINK, "weft0123456789a")),
        ("ip addr del 10.1.0.0/32 dev weft.vxlan", (ADDRESS, ("weft.vxlan", parse_address("10.1.0.0")))),
        ("ip route del 10.2.0.0/24", (ROUTE, (NETWORK, 24, 0))),
        ("ip route replace 10.2.0.0/24 dev lo", (ROUTE, (NETWORK, 24, 0))),
        ("ip neigh del 10.2.0.0 dev weft.vxlan", (NEIGHBOUR, ("weft.vxlan", NETWORK))),
        ("bridge fdb del 02:00:00:00:00:02 dev weft.vxlan", (FDB, ("weft.vxlan", MAC))),
    ],
)
async def test_objects_are_named_by_their_keys(node: Node, command: str, key: object) -> None:
    vxlan()
    watch = Watch(Ear(), own_port=node.host.port)
    try:
        run(command)
        assert key in (await collected(watch)).objects
    finally:
        watch.close()


async def test_links_and_addresses_of_the_machine(node: Node) -> None:
    vxlan()
    watch = Watch(Ear(), own_port=node.host.port)
    try:
        run("ip addr add 198.51.100.1/24 dev eth0")
        assert parse_address("198.51.100.1") in (await collected(watch)).addresses
        run("ip link set eth0 down")
        assert "eth0" in (await collected(watch)).links
        run("ip addr del 198.51.100.1/24 dev eth0")
        assert parse_address("198.51.100.1") in (await collected(watch)).addresses
    finally:
        watch.close()


@pytest.mark.parametrize(
    "setting",
    ["net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0", "net.ipv4.conf.weft/vxlan.rp_filter=1"],
)
async def test_settings_that_stop_traffic(node: Node, setting: str) -> None:
    vxlan()
    watch = Watch(Ear(), own_port=node.host.port)
    try:
        run(f"sysctl -qw {setting}")
        assert (await collected(watch)).forwarding
    finally:
        watch.close()


async def test_routes_of_other_tables_do_not_reach_the_daemon(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    vxlan()
    heard: list[int] = []
    watch = Watch(Ear(), own_port=node.host.port)
    monkeypatch.setattr(watch, "_judge", lambda notification: heard.append(notification.kind))
    try:
        run("ip route add 203.0.113.0/24 dev eth0 table 77")
        run("ip addr add 198.51.100.1/32 dev eth0")
        await collected(watch)
        assert heard == [RTM_NEWADDR]
        run("ip route add 203.0.113.0/24 dev eth0")
        await collected(watch)
        assert heard == [RTM_NEWADDR, RTM_NEWROUTE]
    finally:
        watch.close()


async def test_our_own_writes_are_not_noticed(node: Node) -> None:
    index = vxlan()
    watch = Watch(Ear(), own_port=node.host.port)
    try:
        route = Route(parse_address("10.3.0.0"), 24, "weft.vxlan")
        node.host.batch(
            [
                new_route(route, index),
                del_route(route, index),
                new_neighbour(Neighbour("weft.vxlan", parse_address("10.3.0.0"), MAC), index),
                new_fdb(FdbEntry("weft.vxlan", MAC, PEER), index),
            ],
            "test",
        )
        # The kernel's own news about the new link may still come in between.
        written = {
            (ROUTE, route.key),
            (NEIGHBOUR, ("weft.vxlan", route.destination)),
            (FDB, ("weft.vxlan", MAC)),
        }
        assert not (await collected(watch)).objects & written
        with Socket() as other:
            other.batch([new_route(route, index)], "test")
        assert (await collected(watch)).objects & written == {(ROUTE, route.key)}
    finally:
        watch.close()


async def test_lost_notifications_are_noticed_as_such(node: Node) -> None:
    import socket as sockets

    index = vxlan()
    watch = Watch(Ear())
    try:
        with sockets.socket(fileno=__import__("os").dup(watch._socket.fileno())) as same:
            same.setsockopt(sockets.SOL_SOCKET, 33, 4096)
        many = [new_route(Route(bytes((10, 9, number, 0)), 24, "weft.vxlan"), index) for number in range(200)]
        node.host.batch(many, "test")
        assert (await collected(watch)).overrun
        node.host.batch([set_link("weft.vxlan", up=False)], "test")
        assert (LINK, "weft.vxlan") in (await collected(watch)).objects
    finally:
        watch.close()
