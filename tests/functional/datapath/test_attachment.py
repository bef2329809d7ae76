"""Pods are wired, reached, cut off, and nothing stays: on a real kernel, in namespaces of the test's own."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from datapath import attachment
from datapath.attachment import DOOMED_GROUP, GATEWAYS, attach, detach, host_objects
from datapath.desired import LinkAddress, Route
from datapath.errors import (
    AttachError,
    InterfaceExistsError,
    NamespaceGoneError,
    NetlinkError,
    NotANamespaceError,
)
from datapath.netlink.addresses import decode_address, get_addresses
from datapath.netlink.links import decode_link, del_link, get_link, set_link
from datapath.netlink.routes import decode_route, get_routes
from datapath.netlink.transport import Socket
from datapath.netns import entered, open_namespace
from datapath.text import parse_address
from tests.functional.datapath.conftest import NODE4, NODE6, remembered, request, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from datapath.attachment import AttachRequest
    from datapath.netlink.transport import Reply
    from tests.functional.datapath.conftest import Node


PODS = 100


def reach(netns: str, made: AttachRequest) -> None:
    """The node reaches the pod and the pod the node in each family, with the right source."""
    descriptor = open_namespace(netns)
    try:
        for address in made.addresses:
            family, here = (socket.AF_INET, NODE4) if len(address) == 4 else (socket.AF_INET6, NODE6)
            there = socket.inet_ntop(family, address)
            with entered(descriptor):
                inside = socket.socket(family, socket.SOCK_DGRAM)
            outside = socket.socket(family, socket.SOCK_DGRAM)
            with inside, outside:
                inside.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", 0))
                outside.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", 0))
                assert exchange(outside, inside, there) == here
                assert exchange(inside, outside, here) == there
    finally:
        os.close(descriptor)


def exchange(sender: socket.socket, receiver: socket.socket, to: str) -> str:
    """Send until it arrives; returns the source that the receiver sees."""
    receiver.settimeout(0.1)
    for _ in range(20):
        sender.sendto(b"x", (to, receiver.getsockname()[1]))
        try:
            return str(receiver.recvfrom(16)[1][0])
        except TimeoutError:
            continue
    raise AssertionError(f"nothing arrives at {to}")


def test_the_pod_sends_from_the_first_moment_on_a_busy_machine(node: Node) -> None:
    netns = node.pod()
    ends = threading.Event()

    def busy() -> None:
        """Have links and namespaces come and go: the kernel holds the lock of links meanwhile."""
        pair = "ip link add one up type veth peer name two; ip link set two up"
        while not ends.is_set():
            subprocess.run(["unshare", "-n", "sh", "-c", pair], check=True, timeout=30)

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    lost = 0
    descriptor = open_namespace(netns)
    try:
        with entered(descriptor):
            inside = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with inside, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside:
            outside.bind((NODE4, 0))
            outside.settimeout(0.2)
            for _ in range(PODS):
                made = request(netns)
                attach(node.host, made)
                try:
                    inside.sendto(b"x", outside.getsockname())
                    outside.recv(16)
                except TimeoutError:
                    lost += 1
                node.host.batch((del_link(made.host_link),), "away")
    finally:
        os.close(descriptor)
        ends.set()
        for thread in threads:
            thread.join()
    assert lost == 0


def test_a_pod_hears_another_from_the_first_moment(node: Node) -> None:
    """The kernel takes in packets to an IPv6 address a little later than it has it, here in one of twelve."""
    run("sysctl -qw net.ipv6.conf.all.forwarding=1")
    paths = [node.pod(), node.pod()]
    spaces = [open_namespace(path) for path in paths]
    lost = []
    try:
        for number in range(PODS):
            first, second = (request(path, 5 + place) for place, path in enumerate(paths))
            attach(node.host, first)
            attach(node.host, second)
            sockets = []
            for space in spaces:
                with entered(space):
                    sockets.append(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            with sockets[0] as speaker, sockets[1] as listener:
                listener.bind((socket.inet_ntop(socket.AF_INET6, second.addresses[1]), 0))
                listener.settimeout(0.5)
                speaker.sendto(b"x", listener.getsockname())
                try:
                    listener.recv(16)
                except TimeoutError:
                    lost.append(number)
            node.host.batch([del_link(each.host_link) for each in (first, second)], "away")
    finally:
        for space in spaces:
            os.close(space)
    assert lost == []


@pytest.mark.parametrize("families", ["4", "6", "46"])
def test_pod_and_node_reach_each_other_with_their_own_addresses(node: Node, families: str) -> None:
    netns = node.pod()
    made = request(netns, families=families)
    attached = attach(node.host, made)
    reach(netns, made)
    link = decode_link(node.host.request(get_link(made.host_link), "read"))
    assert (link.index, link.peer_index) == (attached.host_index, attached.pod_index)
    assert (link.mac, link.mtu, link.alias, link.up) == (b"\xee" * 6, 1450, "alias of 5", True)
    assert "mtu 1450" in run(f"ip -n {os.path.basename(netns)} link show eth0")
    assert "02:00:00:00:00:05" in run(f"ip -n {os.path.basename(netns)} link show eth0")


def test_strict_reverse_path_filter_on_both_sides(node: Node) -> None:
    strict = ("net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.default.rp_filter=1")
    for setting in strict:
        run(f"sysctl -qw {setting}")
    netns = node.pod(*strict)
    made = request(netns)
    attach(node.host, made)
    assert run(f"sysctl -n net.ipv4.conf.{made.host_link}.rp_filter") == "1\n"
    reach(netns, made)


def test_ipv6_is_switched_on_in_pods_that_inherit_it_off(node: Node) -> None:
    netns = node.pod("net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
    made = request(netns)
    attach(node.host, made)
    reach(netns, made)
    assert "::1" in run(f"ip -n {os.path.basename(netns)} -6 addr show lo")


def test_ipv4_pod_leaves_ipv6_off(node: Node) -> None:
    netns = node.pod("net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
    attach(node.host, request(netns, families="4"))
    assert run(f"ip -n {os.path.basename(netns)} -6 addr") == ""


def test_node_objects_are_what_the_reconciler_expects(node: Node) -> None:
    made = request(node.pod())
    index = attach(node.host, made).host_index
    sources = made.sources
    expected = host_objects(remembered(made), sources)
    routes = {
        decode_route(payload).route({index: made.host_link})
        for family in (socket.AF_INET, socket.AF_INET6)
        for payload in node.host.dump(get_routes(family, protocol=119), "read")
    }
    assert routes == {value for value in expected if isinstance(value, Route)}
    states = [
        decode_address(payload)
        for family in (socket.AF_INET, socket.AF_INET6)
        for payload in node.host.dump(get_addresses(family, index), "read")
    ]
    found = {LinkAddress(made.host_link, state.address, state.length) for state in states}
    assert found == {value for value in expected if isinstance(value, LinkAddress)}


@pytest.mark.parametrize("first", ["node", "pod"])
def test_another_mac_address_given_by_a_later_plugin_cuts_nothing_off(node: Node, first: str) -> None:
    """Without a default route on the node: no proxy ARP could answer for the gateway then."""
    netns = node.pod()
    made = request(netns)
    attach(node.host, made)
    name = os.path.basename(netns)
    run(f"ip -n {name} link set eth0 address 02:00:00:00:00:77")
    neighbours = run(f"ip -n {name} neigh show nud permanent")
    assert neighbours == "", "the kernel kept the permanent neighbours, so this test shows nothing"
    started = time.monotonic()
    if first == "node":
        run("ping -c1 -W1 10.0.0.5")
        run("ping -c1 -W1 fd00::5")
    else:
        run(f"ip netns exec {name} ping -c1 -W1 {NODE4}")
        run(f"ip netns exec {name} ping -c1 -W1 {NODE6}")
    reach(netns, made)
    assert time.monotonic() - started < 3
    assert run("ip neigh").count("02:00:00:00:00:77") == 2


def advertise_router(interface: str, source: str) -> None:
    """Send an ICMPv6 router advertisement (RFC 4861, section 4.2) to all nodes of a link."""
    index = socket.if_nametoindex(interface)
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        raw.bind((source, 0, 0, index))
        advertisement = struct.pack(">BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
        raw.sendto(advertisement, ("ff02::1", 0, 0, index))


def test_neither_side_takes_a_default_route_from_the_other(node: Node) -> None:
    eager = ("net.ipv6.conf.default.accept_ra=2", "net.ipv6.conf.all.accept_ra=2")
    for setting in eager:
        run(f"sysctl -qw {setting}")
    netns = node.pod(*eager)
    made = request(netns)
    attach(node.host, made)
    name = os.path.basename(netns)
    run(f"ip addr add fe80::2/64 dev {made.host_link} nodad")
    run(f"ip -n {name} addr add fe80::99/64 dev eth0 nodad")

    def learned() -> tuple[bool, bool]:
        """Advertise in both directions; whether the node and the pod take the route."""
        advertise_router(made.host_link, "fe80::2")
        descriptor = open_namespace(netns)
        with entered(descriptor):
            advertise_router("eth0", "fe80::99")
        os.close(descriptor)
        time.sleep(0.1)
        return "via fe80::99" in run("ip -6 route"), "via fe80::2" in run(f"ip -n {name} -6 route")

    assert learned() == (False, False)
    # The same advertisements are taken where nobody forbids it, so the sending works.
    run(f"sysctl -qw net.ipv6.conf.{made.host_link}.accept_ra=2")
    run(f"ip netns exec {name} sysctl -qw net.ipv6.conf.eth0.accept_ra=2")
    assert learned() == (True, True)


def test_fifty_pods_come_and_go_without_a_trace(node: Node) -> None:
    paths = [node.pod() for _ in range(50)]
    before = node.state(*paths)
    made = [request(path, number + 1) for number, path in enumerate(paths)]
    for each in made:
        attach(node.host, each)
    reach(paths[49], made[49])
    for each in made:
        assert detach(node.host, remembered(each)).found
    node.reap()
    assert node.state(*paths) == before


def test_detach_leaves_no_route_no_neighbour_and_a_dead_link(node: Node) -> None:
    made = request(node.pod())
    attach(node.host, made)
    reach(made.netns, made)
    assert detach(node.host, remembered(made)).found
    assert run("ip route show proto 119") + run("ip -6 route show proto 119") == ""
    assert run("ip neigh") == ""
    link = decode_link(node.host.request(get_link(made.host_link), "read"))
    assert (link.up, link.alias, link.group) == (False, "", DOOMED_GROUP)
    assert detach(node.host, remembered(made)).found
    node.reap()
    assert not detach(node.host, remembered(made)).found


def test_detach_after_the_namespace_is_gone(node: Node) -> None:
    made = request(node.pod())
    attach(node.host, made)
    run(f"ip netns delete {os.path.basename(made.netns)}")
    detach(node.host, remembered(made))
    assert run("ip route show proto 119") + run("ip neigh") == ""


def test_attach_again_while_the_detached_pair_waits_to_be_destroyed(node: Node) -> None:
    made = request(node.pod())
    for _ in range(3):
        attach(node.host, made)
        reach(made.netns, made)
        assert detach(node.host, remembered(made)).found


def test_a_detached_link_does_not_stand_in_the_way_of_its_address(node: Node) -> None:
    first = request(node.pod())
    attach(node.host, first)
    detach(node.host, remembered(first))
    second = request(node.pod())
    attach(node.host, second)
    assert f"dev {second.host_link} " in run("ip route show 10.0.0.5")
    reach(second.netns, second)


def test_a_route_of_someone_else_to_the_address_is_replaced(node: Node) -> None:
    run("ip link add other type veth peer name rehto")
    run("ip link set other up")
    run("ip route add 10.0.0.5/32 dev other")
    run("ip -6 route add fd00::5/128 dev other")
    made = request(node.pod())
    attach(node.host, made)
    for routes in (run("ip route show 10.0.0.5"), run("ip -6 route show fd00::5")):
        assert f"dev {made.host_link} " in routes
        assert "dev other" not in routes
    reach(made.netns, made)


def test_what_a_killed_attach_left_is_replaced(node: Node) -> None:
    made = request(node.pod())
    run(f"ip link add {made.host_link} type veth peer name left")
    attach(node.host, made)
    assert " left@" not in run("ip -o link")
    reach(made.netns, made)


def test_an_occupied_interface_name_is_an_error_and_stays_as_it_is(node: Node) -> None:
    netns = node.pod()
    made = request(netns)
    attach(node.host, made)
    before = node.state(netns)
    other = request(netns, 6)
    with pytest.raises(InterfaceExistsError, match="has an interface eth0 already"):
        attach(node.host, other)
    with pytest.raises(InterfaceExistsError):
        attach(node.host, made)
    assert node.state(netns) == before
    reach(netns, made)


def test_a_namespace_that_is_gone_or_none(node: Node, tmp_path: os.PathLike[str]) -> None:
    before = node.state()
    with pytest.raises(NamespaceGoneError, match="sandbox was removed"):
        attach(node.host, request("/run/netns/weft-t-never"))
    plain = os.path.join(tmp_path, "plain")
    with open(plain, "w", encoding="ascii"):
        pass
    with pytest.raises(NotANamespaceError, match="HostToContainer"):
        attach(node.host, request(plain))
    descriptors = len(os.listdir("/proc/self/fd"))
    for none in (str(tmp_path), "/dev/null", "/proc/self/status", "/sys/kernel"):
        with pytest.raises(NotANamespaceError, match="is no namespace"):
            attach(node.host, request(none))
    with pytest.raises(NotANamespaceError, match="another kind"):
        attach(node.host, request("/proc/self/ns/mnt"))
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert node.state() == before


def test_a_missing_source_address_is_named_and_undone(node: Node) -> None:
    netns = node.pod()
    run(f"ip addr del {NODE4}/32 dev lo")
    expected = node.state(netns)
    with pytest.raises(AttachError, match="Invalid prefsrc address"):
        attach(node.host, request(netns))
    assert node.state(netns) == expected
    run(f"ip addr add {NODE4}/32 dev lo")
    attach(node.host, request(netns))


@pytest.mark.parametrize("step", range(5))
def test_a_failure_at_any_step_leaves_nothing(node: Node, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps: the pair's creation, two settings in between, the pod's batch, the node's batch."""
    netns = node.pod()
    before = node.state(netns)
    calls = iter(range(100))
    batch = Socket.batch_filled
    write = attachment._write_setting

    def failing(work: Callable[[], list[Reply] | None]) -> list[Reply] | None:
        number = next(calls)
        result = work()
        if number == step + (step > 0):
            raise NetlinkError(12, "injected")
        return result

    def broken_batch(self: Socket, *arguments: Any) -> list[Reply]:
        return failing(lambda: batch(self, *arguments)) or []

    def broken_write(path: str, value: str) -> None:
        failing(lambda: write(path, value))

    with monkeypatch.context() as patch:
        patch.setattr(Socket, "batch_filled", broken_batch)
        patch.setattr(attachment, "_write_setting", broken_write)
        with pytest.raises(AttachError, match="injected"):
            attach(node.host, request(netns))
    assert node.state(netns) == before
    made = request(netns)
    attach(node.host, made)
    reach(netns, made)


def test_the_thread_is_back_in_its_namespace_after_a_failure(node: Node) -> None:
    home = os.stat("/proc/thread-self/ns/net").st_ino
    with pytest.raises(AttachError):
        attach(node.host, request(node.pod(), mtu=1))
    assert os.stat("/proc/thread-self/ns/net").st_ino == home


def test_no_descriptor_is_left_open(node: Node) -> None:
    made = request(node.pod())
    attach(node.host, made)
    detach(node.host, remembered(made))
    node.reap()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        attach(node.host, made)
        with pytest.raises(InterfaceExistsError):
            attach(node.host, made)
        detach(node.host, remembered(made))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_link_brought_up_again_gets_its_objects_back(node: Node) -> None:
    """What the kernel drops with a link that goes down is what `host_objects` lists."""
    made = request(node.pod())
    index = attach(node.host, made).host_index
    node.host.batch((set_link(index, up=False), set_link(index, up=True)), "bounce")
    held = node.host.dump(get_addresses(socket.AF_INET6, index), "read")
    assert parse_address("fe80::1") not in {decode_address(payload).address for payload in held}
    assert not node.host.dump(get_routes(socket.AF_INET, protocol=119), "read")
    objects = host_objects(remembered(made), made.sources)
    assert {value.address for value in objects if isinstance(value, LinkAddress)} == set(GATEWAYS.values())
