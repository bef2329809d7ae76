from __future__ import annotations

from typing import TYPE_CHECKING

from datapath.text import parse_prefix
from datapath.underlay import HostLink, read_links
from tests.functional.datapath.conftest import run

if TYPE_CHECKING:
    from tests.functional.datapath.conftest import Node


def make() -> None:
    for name in ("eth0", "eth1", "weft.vxlan"):
        run(f"ip link add {name} type veth peer name far-{name[-4:]}")
        run(f"ip link set far-{name[-4:]} up")
        run(f"ip link set {name} up")
    run("ip addr add 192.168.7.1/24 dev eth0")
    run("ip addr add fd07::1/64 dev eth0 nodad")
    run("ip addr add 10.9.8.7/20 dev eth1")
    run("ip addr add 169.254.9.9/16 dev eth1")
    run("ip addr add 10.1.0.0/32 dev weft.vxlan")


def test_links_of_others_are_read_with_their_global_addresses(node: Node) -> None:
    make()
    run("sysctl -qw net.ipv6.conf.eth0.accept_ra=2")
    addresses = (parse_prefix("192.168.7.1/24"), parse_prefix("fd07::1/64"))
    assert read_links(node.host) == (
        HostLink("eth0", 1500, addresses, accept_ra=2, forwarding=True),
        HostLink("eth1", 1500, (parse_prefix("10.9.8.7/20"),), accept_ra=1, forwarding=True),
    )


def test_default_routes_are_found_in_either_family(node: Node) -> None:
    make()
    run("ip route add default via 10.9.0.1 dev eth1")
    assert [link.default for link in read_links(node.host)] == [False, True]
    run("ip -6 route add default via fd07::99 dev eth0")
    assert [link.default for link in read_links(node.host)] == [True, True]


def test_unreachable_defaults_are_none(node: Node) -> None:
    make()
    run("ip route add unreachable default")
    run("ip -6 route add blackhole default")
    assert [link.default for link in read_links(node.host)] == [False, False]


def test_nothing_is_found_where_nothing_is(node: Node) -> None:
    assert read_links(node.host) == ()
