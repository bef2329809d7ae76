"""The transport and the encoders on a real kernel, compared with what `ip` and `bridge` list."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from datapath import text
from datapath.desired import FdbEntry, LinkAddress, Neighbour, Route, RouteKind, VxlanLink
from datapath.errors import NamespaceError, NetlinkError, NetlinkOverrunError
from datapath.netlink.addresses import del_address, new_address
from datapath.netlink.links import (
    RTNLGRP_LINK,
    decode_link,
    decode_link_name,
    del_link,
    get_link,
    get_links,
    new_vxlan,
    set_link,
)
from datapath.netlink.neighbours import (
    decode_fdb,
    decode_neighbour,
    del_fdb,
    del_neighbour,
    get_fdb,
    get_neighbours,
    new_fdb,
    new_neighbour,
)
from datapath.netlink.routes import (
    RTNLGRP_IPV4_ROUTE,
    decode_route,
    del_route,
    get_routes,
    new_route,
)
from datapath.netlink.transport import Message, Socket
from datapath.netns import THREAD_NAMESPACE, current_namespace, entered, identity, open_namespace
from tests.functional.datapath.conftest import run

if TYPE_CHECKING:
    from tests.functional.datapath.conftest import Node

A, M = text.parse_address, text.parse_mac
LOCAL = {4: "192.0.2.1", 16: "fd00:ffff::1"}


def listed(command: str) -> list[dict[str, Any]]:
    return list(json.loads(run(command)))


def overlay(node: Node, local: str = "192.0.2.1") -> int:
    """A VXLAN link that is up; returns its index."""
    link = VxlanLink("weft.vxlan", 77, 8472, M("02:00:00:00:00:07"), A(local), 1400)
    node.host.batch((new_vxlan(link),), "create")
    index = decode_link(node.host.request(get_link("weft.vxlan"), "read")).index
    node.host.batch((set_link(index, up=True),), "up")
    return index


@pytest.mark.parametrize("local", ["192.0.2.1", "fd00:ffff::1"])
def test_a_vxlan_link_is_listed_as_meant(node: Node, local: str) -> None:
    index = overlay(node, local)
    [link] = listed("ip -j -d link show weft.vxlan")
    data = link["linkinfo"]["info_data"]
    assert (link["ifindex"], link["address"], link["mtu"]) == (index, "02:00:00:00:00:07", 1400)
    assert "UP" in link["flags"]
    assert (data["id"], data["port"], data.get("local") or data.get("local6")) == (77, 8472, local)
    assert data.get("learning") in (None, False)
    payload = node.host.request(get_link(index), "read")
    state = decode_link(payload)
    assert decode_link_name(payload) == (state.index, state.name, state.up)
    assert state.vxlan is not None
    assert (state.vxlan.vni, state.vxlan.local, state.vxlan.learning) == (77, A(local), False)
    node.host.batch((del_link("weft.vxlan"),), "delete")
    assert {"weft.vxlan"}.isdisjoint(link["ifname"] for link in listed("ip -j link"))


def test_routes_are_listed_as_meant_and_go(node: Node) -> None:
    index = overlay(node)
    v4, v6 = A(LOCAL[4]), A(LOCAL[16])
    routes = [
        Route(A("10.2.0.0"), 24, "weft.vxlan", gateway=A("10.2.0.0"), onlink=True),
        Route(A("10.3.0.7"), 32, "weft.vxlan", source=v4),
        Route(A("10.4.0.0"), 24, None, kind=RouteKind.UNREACHABLE),
        Route(A("10.5.0.0"), 24, "weft.vxlan", metric=7),
        Route(A("fd00:2::"), 64, "weft.vxlan", gateway=A("fd00:2::"), onlink=True),
        Route(A("fd00:3::7"), 128, "weft.vxlan", source=v6),
        Route(A("fd00:4::"), 64, None, kind=RouteKind.UNREACHABLE),
    ]
    links = [index if route.link else 0 for route in routes]
    for _ in range(2):
        node.host.batch([new_route(*pair) for pair in zip(routes, links, strict=True)], "write")
    four = {route["dst"]: route for route in listed("ip -j -d route show proto 119")}
    assert four["10.2.0.0/24"] | {"gateway": "10.2.0.0", "flags": ["onlink"]} == four["10.2.0.0/24"]
    assert four["10.3.0.7"] | {"prefsrc": LOCAL[4], "scope": "link"} == four["10.3.0.7"]
    assert four["10.4.0.0/24"]["type"] == "unreachable"
    assert four["10.5.0.0/24"]["metric"] == 7
    six = {route["dst"]: route for route in listed("ip -j -d -6 route show proto 119")}
    assert six["fd00:2::/64"]["gateway"] == "fd00:2::"
    assert six["fd00:3::7"]["prefsrc"] == LOCAL[16]
    assert six["fd00:4::/64"]["type"] == "unreachable"
    states = [
        decode_route(payload).route({index: "weft.vxlan"})
        for family in (2, 10)
        for payload in node.host.dump(get_routes(family, protocol=119), "read")
    ]
    assert sorted(states, key=repr) == sorted(routes, key=repr)
    node.host.batch([del_route(*pair) for pair in zip(routes, links, strict=True)], "delete")
    assert listed("ip -j route show proto 119") + listed("ip -j -6 route show proto 119") == []


def test_routes_to_many_nodes_share_no_next_hops_hash(node: Node) -> None:
    """Few have one scope; each takes the place of the one that an earlier version wrote, and is looked up."""
    index = overlay(node)
    prefixes = [A(f"10.{number >> 8}.{number & 255}.0") for number in range(1, 1001)]
    routes = [Route(prefix, 24, "weft.vxlan", gateway=prefix, onlink=True) for prefix in prefixes]
    run("ip route add 10.1.7.0/24 via 10.1.7.0 dev weft.vxlan proto 119 onlink")
    node.host.batch([new_route(route, index) for route in routes], "write")
    found = listed("ip -j route show proto 119")
    assert len(found) == len(routes)
    scopes = Counter(route.get("scope", "global") for route in found)
    assert max(scopes.values()) <= 1000 / 199 + 1
    [way] = listed("ip -j route get 10.1.7.9")
    assert (way["gateway"], way["dev"]) == ("10.1.7.0", "weft.vxlan")
    node.host.batch([del_route(route, index) for route in routes], "delete")
    assert listed("ip -j route show proto 119") == []


def test_a_route_of_another_protocol_is_not_deleted(node: Node) -> None:
    index = overlay(node)
    run("ip route add 10.2.0.0/24 dev weft.vxlan proto static")
    with pytest.raises(NetlinkError, match="ESRCH"):
        node.host.batch((del_route(Route(A("10.2.0.0"), 24, "weft.vxlan"), index),), "delete")
    assert listed("ip -j route show 10.2.0.0/24")


def test_neighbours_and_forwarding_entries_are_listed_as_meant_and_go(node: Node) -> None:
    index = overlay(node)
    neighbours = [
        Neighbour("weft.vxlan", A("10.2.0.0"), M("02:00:00:00:00:21")),
        Neighbour("weft.vxlan", A("fd00:2::"), M("02:00:00:00:00:21")),
    ]
    entry = FdbEntry("weft.vxlan", M("02:00:00:00:00:21"), A("203.0.113.2"))
    moved = FdbEntry("weft.vxlan", M("02:00:00:00:00:21"), A("203.0.113.3"))
    for fdb in (entry, moved):
        writes = [new_neighbour(neighbour, index) for neighbour in neighbours]
        node.host.batch([*writes, new_fdb(fdb, index)], "write")
        [found] = listed("bridge -j fdb show dev weft.vxlan")
        assert (found["mac"], found["dst"], found["state"]) == (
            "02:00:00:00:00:21",
            text.address(fdb.remote),
            "permanent",
        )
    states = listed("ip -j neigh show dev weft.vxlan")
    assert {(state["dst"], state["lladdr"], *state["state"]) for state in states} == {
        ("10.2.0.0", "02:00:00:00:00:21", "PERMANENT"),
        ("fd00:2::", "02:00:00:00:00:21", "PERMANENT"),
    }
    [read] = [decode_fdb(payload) for payload in node.host.dump(get_fdb(index), "read")]
    assert (read.link_index, read.mac, read.remote) == (index, moved.mac, moved.remote)
    for family, neighbour in zip((2, 10), neighbours, strict=True):
        payloads = node.host.dump(get_neighbours(family, index), "read")
        read_back = [decode_neighbour(payload) for payload in payloads]
        assert [state.mac for state in read_back if state.permanent] == [neighbour.mac]
    deletes = [del_neighbour(neighbour, index) for neighbour in neighbours]
    node.host.batch([*deletes, del_fdb(moved, index)], "delete")
    assert listed("ip -j neigh show dev weft.vxlan") + listed("bridge -j fdb show dev weft.vxlan") == []


def test_addresses_are_listed_as_meant_and_go(node: Node) -> None:
    index = overlay(node)
    own = [LinkAddress("weft.vxlan", A("10.9.0.0"), 32), LinkAddress("weft.vxlan", A("fd00:9::"), 128)]
    for _ in range(2):
        node.host.batch([new_address(address, index, prefix_route=False) for address in own], "write")
    [link] = listed("ip -j addr show weft.vxlan")
    ours = {info["local"]: info for info in link["addr_info"] if info["scope"] == "global"}
    assert {address: info["prefixlen"] for address, info in ours.items()} == {"10.9.0.0": 32, "fd00:9::": 128}
    assert not any(info.get("tentative") for info in ours.values())
    node.host.batch([del_address(address, index) for address in own], "delete")
    [link] = listed("ip -j addr show weft.vxlan")
    assert not [info for info in link["addr_info"] if info["scope"] == "global"]


def test_each_refusal_has_its_place_and_the_kernels_words(node: Node) -> None:
    up = set_link(1, up=True)
    missing = set_link(99, up=True)
    bad = new_route(Route(A("10.0.0.0"), 8, "none", source=A("203.0.113.9")), 1)
    errors = node.host.batch_collect([up, missing, up, bad, missing, up], "try")
    assert [(error.index, error.code) for error in errors] == [
        (1, errno.ENODEV),
        (3, errno.EINVAL),
        (4, errno.ENODEV),
    ]
    assert errors[1].detail == "Invalid prefsrc address"
    with pytest.raises(NetlinkError, match=r"^try: No such device") as caught:
        node.host.batch([up, missing, bad], "try")
    assert caught.value.index == 1


def test_a_batch_of_any_size_passes(node: Node) -> None:
    index = overlay(node)
    routes = [
        new_route(Route(bytes((10, number >> 8, number & 255, 0)), 24, "weft.vxlan"), index)
        for number in range(8000)
    ]
    assert sum(16 + len(message.payload) for message in routes) > 256 << 10
    node.host.batch(routes, "write")
    assert len(node.host.dump(get_routes(2, protocol=119), "read")) == 8000
    broken = [*routes[:7000], set_link(99, up=True), *routes[7000:]]
    assert [error.index for error in node.host.batch_collect(broken, "write")] == [7000]


def test_a_dump_of_a_kind_lists_no_other(node: Node) -> None:
    overlay(node)
    assert [decode_link(payload).name for payload in node.host.dump(get_links("vxlan"), "read")] == [
        "weft.vxlan"
    ]
    assert len(node.host.dump(get_links(), "read")) == 2


def test_notifications_come_and_tell_whose_change_it_was(node: Node) -> None:
    with Socket(groups=(RTNLGRP_LINK, RTNLGRP_IPV4_ROUTE)) as listener:
        assert listener.receive() == []
        index = overlay(node)
        heard = listener.receive(wait=True)
        assert decode_link(heard[0].payload).name == "weft.vxlan"
        while listener.receive():
            pass
        node.host.batch((new_route(Route(A("10.2.0.0"), 24, "weft.vxlan"), index),), "write")
        run("ip route add 10.3.0.0/24 dev weft.vxlan")
        [ours], [other] = listener.receive(wait=True), listener.receive(wait=True)
    assert decode_route(ours.payload).destination == A("10.2.0.0")
    assert ours.port == node.host.port
    assert decode_route(other.payload).destination == A("10.3.0.0")
    assert other.port not in (0, node.host.port)


def read_all(listener: Socket) -> None:
    while listener.receive():
        pass


def test_lost_notifications_are_an_overrun(node: Node) -> None:
    index = overlay(node)
    with Socket(groups=(RTNLGRP_IPV4_ROUTE,), bulk=False) as listener:
        for _ in range(3):
            node.host.batch(
                [
                    new_route(Route(bytes((10, number >> 8, number & 255, 0)), 24, "weft.vxlan"), index)
                    for number in range(4000)
                ],
                "write",
            )
        with pytest.raises(NetlinkOverrunError, match="read all again"):
            read_all(listener)


def test_a_socket_stays_in_the_namespace_where_it_was_made(node: Node) -> None:
    path = node.pod()
    descriptor = open_namespace(path)
    try:
        with Socket(namespace=descriptor) as inside:
            run(f"ip -n {os.path.basename(path)} link add there type veth peer name other")
            names = {decode_link(payload).name for payload in inside.dump(get_links(), "read")}
        assert {"there", "other"} <= names
        assert identity(descriptor) == identity(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        here = os.stat("/proc/thread-self/ns/net").st_ino
        with entered(descriptor):
            assert os.stat("/proc/thread-self/ns/net").st_ino == identity(descriptor)[1]
        assert os.stat("/proc/thread-self/ns/net").st_ino == here
    finally:
        os.close(descriptor)


def test_an_unknown_message_type_is_refused(node: Node) -> None:
    with pytest.raises(NetlinkError, match="ENOTSUP"):
        node.host.batch((Message(200, 0, bytes(16)),), "try")


def test_without_root_a_change_is_refused_in_words(node: Node) -> None:
    program = (
        "import os\n"
        "from datapath.netlink.transport import Socket\n"
        "from datapath.netlink.links import set_link\n"
        "os.setuid(65534)\n"
        "Socket().batch((set_link(1, up=False),), 'lo can not be stopped')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "lo can not be stopped: Operation not permitted [EPERM]" in done.stderr


def test_a_thread_enters_a_namespace_and_comes_back_whatever_happens(node: Node) -> None:
    def where() -> int:
        return os.stat(THREAD_NAMESPACE).st_ino

    def fail(visit: entered) -> None:
        with visit:
            assert where() == os.fstat(other).st_ino != here
            raise ZeroDivisionError

    other, here, home = open_namespace(node.pod()), where(), current_namespace()
    before = len(os.listdir("/proc/self/fd"))
    try:
        for known in (None, home):
            visit = entered(other, known)
            for _ in range(2):
                with pytest.raises(ZeroDivisionError):
                    fail(visit)
                assert where() == here
        with open("/proc/self/ns/mnt", "rb") as wrong:
            for known in (None, home):
                with pytest.raises(NamespaceError, match="can't be entered: Invalid argument"):
                    entered(wrong.fileno(), known).__enter__()
        assert where() == here
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        os.close(other)
        os.close(home)
