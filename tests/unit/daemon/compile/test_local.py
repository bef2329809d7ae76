from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.compile.local import compile_local, contains, tunnel_family, vtep_mac
from daemon.config import Config
from datapath.text import parse_address, parse_prefix
from tests.unit.daemon.compile.nodes import link, local, node

V4, V6 = parse_address("192.168.7.1"), parse_address("fd07::1")


@pytest.mark.parametrize(
    ("ips", "overlay", "vxlan6", "mtu", "links"),
    [
        ("192.168.7.1", "vxlan", False, 1450, {"weft.vxlan"}),
        ("fd07::1", "vxlan", False, 1430, {"weft.vxlan6"}),
        ("192.168.7.1 fd07::1", "vxlan", False, 1450, {"weft.vxlan"}),
        ("192.168.7.1 fd07::1", "vxlan", True, 1430, {"weft.vxlan", "weft.vxlan6"}),
        ("192.168.7.1 fd07::1", "auto", False, 1450, {"weft.vxlan"}),
        ("192.168.7.1 fd07::1", "direct", False, 1500, {"weft.vxlan"}),
    ],
)
def test_mtu_and_tunnel_ends_follow_from_the_underlay(
    ips: str, overlay: str, vxlan6: bool, mtu: int, links: set[str]
) -> None:
    made = local(Config(overlay=overlay), ips=ips, vxlan6=vxlan6)  # type: ignore[arg-type]
    assert made.mtu == mtu
    assert {vtep.link for vtep in made.vteps.values()} == links
    assert made.problems == ()


def test_sources_are_the_nodes_addresses_else_the_tunnels() -> None:
    made = local(ips="192.168.7.1", cidrs="10.244.1.0/24 fd44::/64")
    assert made.sources == (V4, parse_address("fd44::"))
    assert local(ips="192.168.7.1 fd07::1", cidrs="10.244.1.0/24 fd44::/64").sources == (V4, V6)


def test_without_node_or_pod_cidr_there_is_no_network_and_the_reason_is_told() -> None:
    made, (problem,) = compile_local("a", None, [link()], Config())
    assert made is None
    assert problem.name == "NodeMissing"
    assert "'a'" in problem.message
    made, (problem,) = compile_local("a", node("a", "192.168.7.1"), [link()], Config())
    assert made is None
    assert problem.name == "PodCidrMissing"


def test_an_internal_ip_that_no_link_carries_leaves_by_the_default_route() -> None:
    nat = link("ens5", "10.9.8.7/20", default=True)
    made, problems = compile_local("a", node("a", "203.0.113.9", "10.244.1.0/24"), [nat], Config())
    assert made is not None
    assert made.underlays[4].link == "ens5"
    assert made.vteps[4].local == made.sources[0] == parse_address("10.9.8.7")
    assert problems == ()


def test_without_any_way_out_the_address_is_named() -> None:
    made, (problem,) = compile_local("a", node("a", "203.0.113.9", "10.244.1.0/24"), [link()], Config())
    assert made is None
    assert "203.0.113.9" in problem.message


def test_a_node_without_internal_ip_uses_the_default_route() -> None:
    made, _ = compile_local("a", node("a", "", "10.244.1.0/24"), [link(default=True)], Config())
    assert made is not None
    assert made.vteps[4].local == V4
    made, (problem,) = compile_local("a", node("a", "", "10.244.1.0/24"), [link()], Config())
    assert made is None
    assert problem.name == "InternalIPMissing"


def test_an_address_that_is_away_for_a_moment_keeps_its_way() -> None:
    before = local(ips="192.168.7.1 fd07::1", cidrs="10.244.1.0/24 fd44::/64")
    elsewhere = link("eth9", "172.31.0.9/16", default=True)
    made, problems = compile_local(
        "a",
        node("a", "192.168.7.1 fd07::1", "10.244.1.0/24 fd44::/64"),
        [link(addresses="fd07::1/64"), elsewhere],
        Config(),
        previous=before,
    )
    assert made is not None
    assert made.underlays == before.underlays
    assert made.vteps == before.vteps
    assert [(problem.name, problem.key) for problem in problems] == [("InternalIPMissing", "IPv4")]


def test_an_mtu_that_does_not_fit_is_named() -> None:
    assert [problem.name for problem in local(Config(mtu=1480)).problems] == ["MtuTooLarge"]
    assert local(Config(mtu=1400)).mtu == 1400
    made, problems = compile_local("a", node("a", "192.168.7.1", "fd44::/64"), [link(mtu=1300)], Config())
    assert made is not None
    assert [problem.name for problem in problems] == ["MtuTooSmall"]


def test_links_that_live_by_advertisements_are_found_only_while_they_do() -> None:
    accepting = link(accept_ra=1, default=True)
    found = []
    for each in (accepting, link(accept_ra=1, forwarding=True), link(accept_ra=2), link(accept_ra=0)):
        made, _ = compile_local("a", node("a", "fd07::1", "fd44::/64"), [each], Config())
        assert made is not None
        found.append(made.accept_ra_links)
    assert found == [("eth0",), (), (), ()]


def test_mac_addresses_are_local_unicast_and_distinct() -> None:
    macs = {vtep_mac(f"node-{number}", family) for number in range(2000) for family in (4, 16)}
    assert len(macs) == 4000
    assert all(mac[0] & 3 == 2 for mac in macs)
    assert vtep_mac("a", 4) == vtep_mac("a", 4)


def test_nodes_tunnel_over_ipv4_where_they_can() -> None:
    assert tunnel_family({4, 16}, [V6, V4]) == 4
    assert tunnel_family({16}, [V4, V6]) == 16
    assert tunnel_family({4}, [V6]) is None


@given(st.binary(min_size=4, max_size=4), st.integers(0, 32), st.binary(min_size=4, max_size=4))
def test_containment_is_that_of_the_first_bits(prefix: bytes, length: int, address: bytes) -> None:
    mask = (1 << 32) - (1 << (32 - length))
    expected = int.from_bytes(prefix, "big") & mask == int.from_bytes(address, "big") & mask
    assert contains(prefix, length, address) == expected
    assert not contains(prefix, length, bytes(16))


def test_a_prefix_of_the_link_is_reached_directly() -> None:
    way = local().underlays[4]
    assert way.reaches(parse_address("192.168.7.200"))
    assert not way.reaches(parse_address("192.168.8.1"))
    assert way.connected == (parse_prefix("192.168.7.1/24"),)
