from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from daemon.compile.local import compile_local, link_local, vtep_mac
from daemon.compile.overlay import local_fragment, remote
from daemon.config import Config
from datapath.describe import describe
from datapath.nft.tables import DIRECT
from datapath.text import address, mac
from tests.unit.daemon.compile.nodes import link, local, node

if TYPE_CHECKING:
    from daemon.compile.overlay import Remote

B4 = mac(vtep_mac("b", 4))
B6 = mac(vtep_mac("b", 16))
LINK_LOCAL_B4 = address(link_local(vtep_mac("b", 4)))


def words(fragment: object) -> list[str]:
    return [describe(value) for value in fragment.objects]  # type: ignore[attr-defined]


def direct(made: Remote) -> list[str]:
    """The peer's addresses towards which pods keep theirs."""
    return [address(key) for each in made.fragment.elements if each.name == DIRECT for key in each.elements]


def test_a_vxlan_peer_needs_an_entry_and_per_pod_cidr_a_neighbour_and_a_route() -> None:
    here = local(ips="192.168.7.1 fd07::1", cidrs="10.244.1.0/24 fd44:0:0:1::/64")
    made = remote(here, node("b", "192.168.7.2 fd07::2", "10.244.2.0/24 fd44:0:0:2::/64"))
    assert words(made.fragment) == [
        f"{B4} dst 192.168.7.2 dev weft.vxlan",
        f"10.244.2.0 lladdr {B4} dev weft.vxlan",
        "10.244.2.0/24 via 10.244.2.0 dev weft.vxlan src 10.244.1.0 onlink",
        f"{LINK_LOCAL_B4} lladdr {B4} dev weft.vxlan",
        f"fd44:0:0:2::/64 via {LINK_LOCAL_B4} dev weft.vxlan src fd44:0:0:1:: onlink",
    ]
    assert direct(made) == []
    assert made.problems == ()


def test_a_link_local_address_is_made_of_the_mac_address() -> None:
    assert address(link_local(bytes.fromhex("021122334455"))) == "fe80::11:22ff:fe33:4455"


def test_a_peer_with_ipv6_alone_is_reached_over_ipv6() -> None:
    here = local(ips="192.168.7.1 fd07::1", cidrs="10.244.1.0/24", vxlan6=True)
    made = remote(here, node("b", "fd07::2", "10.244.2.0/24"))
    assert words(made.fragment) == [
        f"{B6} dst fd07::2 dev weft.vxlan6",
        f"10.244.2.0 lladdr {B6} dev weft.vxlan6",
        "10.244.2.0/24 via 10.244.2.0 dev weft.vxlan6 src 10.244.1.0 onlink",
    ]


@pytest.mark.parametrize("overlay", ["auto", "direct"])
def test_a_neighbour_on_the_segment_gets_a_direct_route(overlay: str) -> None:
    here = local(Config(overlay=overlay), ips="192.168.7.1 fd07::1", cidrs="10.244.1.0/24 fd44::/64")  # type: ignore[arg-type]
    made = remote(here, node("b", "192.168.7.2 fd07::2", "10.244.2.0/24 fd45::/64"))
    assert words(made.fragment) == [
        "10.244.2.0/24 via 192.168.7.2 dev eth0 src 192.168.7.1",
        "fd45::/64 via fd07::2 dev eth0 src fd07::1",
    ]
    assert direct(made) == ["192.168.7.2", "fd07::2"]


def test_auto_mixes_by_family_and_by_segment() -> None:
    here = local(Config(overlay="auto"), ips="192.168.7.1", cidrs="10.244.1.0/24 fd44::/64")
    near = remote(here, node("b", "192.168.7.2", "10.244.2.0/24 fd45::/64"))
    assert words(near.fragment)[0] == "10.244.2.0/24 via 192.168.7.2 dev eth0 src 192.168.7.1"
    assert f"fd45::/64 via {LINK_LOCAL_B4} dev weft.vxlan src fd44:: onlink" in words(near.fragment)
    far = remote(here, node("b", "192.168.99.2", "10.244.2.0/24"))
    assert "10.244.2.0/24 via 10.244.2.0 dev weft.vxlan src 10.244.1.0 onlink" in words(far.fragment)
    assert direct(far) == []


@pytest.mark.parametrize(
    ("ips", "reason"),
    [
        ("192.168.99.2", "192.168.99.2 is not on the segment of eth0"),
        ("fd07::2", "it has no IPv4 InternalIP"),
    ],
)
def test_direct_alone_says_whom_it_can_not_reach(ips: str, reason: str) -> None:
    made = remote(local(Config(overlay="direct")), node("b", ips, "10.244.2.0/24"))
    assert made.fragment.objects == ()
    (problem,) = made.problems
    assert (problem.name, problem.key) == ("NoDirectRoute", "b")
    assert reason in problem.message


def test_a_node_without_a_common_family_or_address_is_named() -> None:
    for ips, reason in (("fd07::2", "no address family"), ("", "no InternalIP")):
        made = remote(local(), node("b", ips, "10.244.2.0/24"))
        assert made.fragment.objects == ()
        assert [problem.name for problem in made.problems] == ["NodeUnreachable"]
        assert reason in made.problems[0].message


def test_a_node_that_is_not_ready_yet_is_no_problem() -> None:
    made = remote(local(), node("b", "192.168.7.2"))
    assert made.fragment.objects == ()
    assert made.problems == ()


@pytest.mark.parametrize("cidr", ["10.244.1.0/24", "10.244.0.0/16", "10.244.1.128/25"])
def test_a_pod_cidr_that_overlaps_ours_is_left_out(cidr: str) -> None:
    made = remote(local(), node("b", "192.168.7.2", f"{cidr} fd45::/64"))
    assert [problem.name for problem in made.problems] == ["PodCidrConflict"]
    assert not any(cidr in each for each in words(made.fragment))
    assert any("fd45::/64" in each for each in words(made.fragment))


def test_the_annotation_replaces_the_internal_ip_as_target() -> None:
    made = remote(local(), node("b", "192.168.7.2", "10.244.2.0/24", underlay="203.0.113.2"))
    assert f"{B4} dst 203.0.113.2 dev weft.vxlan" in words(made.fragment)


def test_the_local_part() -> None:
    here = local(Config(vni=7, vxlan_port=8472), ips="192.168.7.1", cidrs="10.244.1.0/24 fd44::/64")
    own = mac(vtep_mac("a", 4))
    assert words(local_fragment(here)) == [
        "net/ipv4/ip_forward = 1",
        "net/ipv6/conf/all/forwarding = 1",
        f"weft.vxlan vxlan id 7 dstport 8472 local 192.168.7.1 address {own} mtu 1450",
        "net/ipv4/conf/weft.vxlan/rp_filter = 2",
        "net/ipv6/conf/weft.vxlan/disable_ipv6 = 0",
        "net/ipv6/conf/weft.vxlan/accept_ra = 0",
        "10.244.1.0/32 dev weft.vxlan",
        "fd44::/128 dev weft.vxlan",
        "unreachable 10.244.1.0/24",
        "unreachable fd44::/64",
    ]


def test_advertisements_are_seen_to_before_forwarding() -> None:
    here, _ = compile_local(
        "a", node("a", "fd07::1", "fd44::/64"), [link(accept_ra=1, default=True)], Config()
    )
    assert here is not None
    assert words(local_fragment(here))[:2] == [
        "net/ipv6/conf/eth0/accept_ra = 2",
        "net/ipv6/conf/all/forwarding = 1",
    ]
