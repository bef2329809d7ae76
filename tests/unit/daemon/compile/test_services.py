"""What becomes of connections to each frontend of one Service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from daemon.compile.endpoints import Site
from daemon.compile.services import HealthCheck, Kind, compile_service
from datapath import text
from datapath.nft.frontends import Absence, Balance, Snat
from tests.unit.daemon.compile.shop import SITE, backends, frontend, service, slice_

if TYPE_CHECKING:
    from daemon.compile.services import Compiled

BOTH = ("10.0.0.1@here", "10.0.0.2")
EVERYBODY, OURS = backends("10.0.0.1 10.0.0.2"), backends("10.0.0.1")
CLUSTER_IP, NODE, EXTERNAL, BALANCED = (
    "tcp 10.96.0.7 80",
    "tcp node 30080",
    "tcp 203.0.113.1 80",
    "tcp 203.0.113.9 80",
)
EXPOSED: dict[str, Any] = {
    "ports": "http:tcp:80:30080",
    "external": "203.0.113.1",
    "balanced": "203.0.113.9",
    "type": "LoadBalancer",
}


def compiled(*endpoints: str, site: Site = SITE, **fields: Any) -> Compiled:
    return compile_service(service(**fields), [slice_(*endpoints)], site)


def balance(of: str, *endpoints: str, site: Site = SITE, **fields: Any) -> Balance:
    return compiled(*endpoints, site=site, **fields).balances[frontend(of)]


def sources(of: str, site: Site = SITE, **fields: Any) -> list[str] | None:
    """The sources of a frontend as FIRST-LAST."""
    ranges = balance(of, *BOTH, site=site, **{**EXPOSED, **fields}).sources
    if ranges is None:
        return None
    return [f"{text.address(each.first)}-{text.address(each.last)}" for each in ranges]


def test_a_cluster_ip_is_masqueraded_for_strangers_only() -> None:
    assert compiled(*BOTH).balances == {frontend(CLUSTER_IP): Balance(EVERYBODY, Snat.FOREIGN)}


def test_external_frontends_with_policy_cluster_are_masqueraded_for_all() -> None:
    result = compiled(*BOTH, **EXPOSED)
    for each in (NODE, EXTERNAL, BALANCED):
        assert result.balances[frontend(each)] == Balance(EVERYBODY, Snat.ALWAYS)
    assert result.kinds == {
        frontend(CLUSTER_IP): Kind.CLUSTER_IP,
        frontend(NODE): Kind.NODE_PORT,
        frontend(EXTERNAL): Kind.EXTERNAL_IP,
        frontend(BALANCED): Kind.LOAD_BALANCER,
    }


def test_external_ips_of_a_service_of_type_cluster_ip() -> None:
    assert balance(EXTERNAL, *BOTH, external="203.0.113.1") == Balance(EVERYBODY, Snat.ALWAYS)


def test_a_headless_service_compiles_to_nothing() -> None:
    result = compiled(*BOTH, cluster_ips="", ports="")
    assert (result.balances, result.serving, result.health_check) == ({}, {}, None)


def test_protocols_share_a_port() -> None:
    slices = [slice_("10.0.0.1", ports="a:tcp:1 b:udp:2 c:sctp:3")]
    result = compile_service(service(ports="a:tcp:53 b:udp:53 c:sctp:53"), slices, SITE)
    assert {each.protocol: found.backends for each, found in result.balances.items()} == {
        6: backends("10.0.0.1", 1),
        17: backends("10.0.0.1", 2),
        132: backends("10.0.0.1", 3),
    }


def test_a_dual_stack_service_has_each_family_apart() -> None:
    slices = [slice_("10.0.0.1"), slice_("fd00::1", "fd00::2", name="web-2")]
    both = service(
        "10.96.0.7 fd00:96::7", "http:tcp:80:30080", external="203.0.113.1 2001:db8::1", type="NodePort"
    )
    found = compile_service(both, slices, SITE).balances
    assert {each: found[each].backends for each in found} == {
        frontend("tcp 10.96.0.7 80"): backends("10.0.0.1"),
        frontend("tcp 203.0.113.1 80"): backends("10.0.0.1"),
        frontend("tcp node 30080"): backends("10.0.0.1"),
        frontend("tcp fd00:96::7 80"): backends("fd00::1 fd00::2"),
        frontend("tcp 2001:db8::1 80"): backends("fd00::1 fd00::2"),
        frontend("tcp node6 30080"): backends("fd00::1 fd00::2"),
    }


def test_a_family_without_a_cluster_ip_is_not_served() -> None:
    found = compiled(*BOTH, external="2001:db8::1", ports="http:tcp:80:30080", type="NodePort").balances
    assert set(found) == {frontend(CLUSTER_IP), frontend(NODE)}


def test_without_endpoints_anywhere_all_frontends_refuse() -> None:
    policies: list[dict[str, Any]] = [{}, {"external_local": True, "internal_local": True}]
    for policy in policies:
        for found in compiled("10.0.0.1 unready", **EXPOSED, **policy).balances.values():
            assert (found.backends, found.outside, found.absence) == ((), None, Absence.REFUSE)


def test_a_service_without_slices_refuses() -> None:
    assert compile_service(service(), [], SITE).balances[frontend(CLUSTER_IP)].absence is Absence.REFUSE


def test_internal_local_means_endpoints_of_this_node() -> None:
    found = balance(CLUSTER_IP, *BOTH, internal_local=True)
    assert found == Balance(OURS, Snat.FOREIGN)


def test_internal_local_with_endpoints_elsewhere_only_drops() -> None:
    found = balance(CLUSTER_IP, "10.0.0.2", internal_local=True)
    assert (found.backends, found.absence) == ((), Absence.DROP)


def test_internal_local_is_no_matter_for_external_frontends() -> None:
    for each in (NODE, EXTERNAL, BALANCED):
        assert balance(each, *BOTH, **EXPOSED, internal_local=True) == Balance(EVERYBODY, Snat.ALWAYS)


def test_external_local_keeps_the_source_and_treats_outsiders_apart() -> None:
    for each in (NODE, EXTERNAL, BALANCED):
        found = balance(each, *BOTH, **EXPOSED, external_local=True)
        assert found == Balance(EVERYBODY, Snat.NEVER, outside=OURS)


def test_external_local_is_no_matter_for_the_cluster_ip() -> None:
    assert balance(CLUSTER_IP, *BOTH, **EXPOSED, external_local=True) == Balance(EVERYBODY, Snat.FOREIGN)


def test_external_local_with_endpoints_elsewhere_only_drops_outsiders() -> None:
    found = balance(BALANCED, "10.0.0.2", **EXPOSED, external_local=True)
    assert (found.backends, found.outside) == (backends("10.0.0.2"), ())


def test_external_local_with_internal_local() -> None:
    result = compiled(*BOTH, **EXPOSED, external_local=True, internal_local=True).balances
    assert result[frontend(CLUSTER_IP)] == Balance(OURS, Snat.FOREIGN)
    assert result[frontend(BALANCED)] == Balance(EVERYBODY, Snat.NEVER, outside=OURS)


def test_external_local_uses_terminating_endpoints_of_this_node_last() -> None:
    found = balance(BALANCED, "10.0.0.1@here lingering", "10.0.0.2", **EXPOSED, external_local=True)
    assert (found.backends, found.outside) == (backends("10.0.0.2"), OURS)


def test_external_local_is_ignored_where_nothing_is_externally_reachable() -> None:
    result = compiled(*BOTH, external_local=True, health_check_node_port=31000)
    assert result.balances == {frontend(CLUSTER_IP): Balance(EVERYBODY, Snat.FOREIGN)}
    assert result.health_check is None
    found = balance(EXTERNAL, *BOTH, external="203.0.113.1", external_local=True)
    assert found.outside == OURS


def test_topology_narrows_the_cluster_set_and_not_the_local_one() -> None:
    hinted = ("10.0.0.1@here zone=east", "10.0.0.2 zone=west")
    found = balance(BALANCED, *hinted, **EXPOSED, external_local=True)
    assert (found.backends, found.outside) == (backends("10.0.0.2"), OURS)


def test_source_ranges_are_for_load_balancer_ips_only() -> None:
    fields: dict[str, Any] = {"ranges": "192.0.2.0/24 198.51.100.0/24"}
    assert sources(BALANCED, **fields) == ["192.0.2.0-192.0.2.255", "198.51.100.0-198.51.100.255"]
    for each in (CLUSTER_IP, NODE, EXTERNAL):
        assert sources(each, **fields) is None


def test_source_ranges_go_with_every_policy() -> None:
    found = balance(
        BALANCED, *BOTH, **EXPOSED, ranges="192.0.2.0/24", external_local=True, affinity_seconds=9
    )
    assert found.sources
    assert (found.outside, found.affinity_seconds) == (OURS, 9)


@pytest.mark.parametrize("ranges", ["", "0.0.0.0/0", "192.0.2.0/24 0.0.0.0/0", "2001:db8::/32"])
def test_no_range_of_the_family_or_one_of_everything_restricts_nobody(ranges: str) -> None:
    assert sources(BALANCED, ranges=ranges) is None


def test_ranges_of_another_family_restrict_that_family() -> None:
    fields: dict[str, Any] = {
        "cluster_ips": "10.96.0.7 fd00:96::7",
        "balanced": "203.0.113.9 2001:db8::9",
        "ranges": "192.0.2.0/24 ::/0",
    }
    assert sources(BALANCED, **fields) == ["192.0.2.0-192.0.2.255"]
    assert sources("tcp 2001:db8::9 80", **fields) is None


def test_ranges_that_overlap_become_disjoint() -> None:
    assert sources(BALANCED, ranges="192.0.2.0/24 192.0.2.128/25 192.0.0.0/16") == ["192.0.0.0-192.0.255.255"]


def test_a_range_that_contains_the_node_also_admits_the_vips() -> None:
    fields: dict[str, Any] = {"balanced": "203.0.113.9 203.0.113.10", "ranges": "192.168.0.0/16"}
    assert sources(BALANCED, **fields) == [
        "192.168.0.0-192.168.255.255",
        "203.0.113.9-203.0.113.9",
        "203.0.113.10-203.0.113.10",
    ]
    elsewhere = Site("here", "west", (text.parse_address("10.1.2.3"), text.parse_address("fd07::1")))
    assert sources(BALANCED, site=elsewhere, **fields) == ["192.168.0.0-192.168.255.255"]


def test_an_address_of_the_other_family_is_in_no_range() -> None:
    site = Site("here", "west", (text.parse_address("c0a8::1"),))
    assert sources(BALANCED, site=site, ranges="192.168.0.0/16") == ["192.168.0.0-192.168.255.255"]


def test_an_address_that_is_external_and_the_load_balancers_is_restricted() -> None:
    assert sources(BALANCED, external="203.0.113.9", ranges="192.0.2.0/24") == ["192.0.2.0-192.0.2.255"]


def test_affinity_is_that_of_all_frontends() -> None:
    result = compiled(*BOTH, **EXPOSED, affinity_seconds=30)
    assert len(result.balances) == 4
    assert {found.affinity_seconds for found in result.balances.values()} == {30}
    assert {found.affinity_seconds for found in compiled(*BOTH, **EXPOSED).balances.values()} == {0}


def test_udp_frontends_tell_who_may_answer() -> None:
    slices = [slice_("10.0.0.1", "10.0.0.2 lingering", "10.0.0.3 dying", ports="d:udp:53 t:tcp:53")]
    ported = service(ports="d:udp:53:30053 t:tcp:53:30053", type="NodePort")
    result = compile_service(ported, slices, SITE)
    answering = set(backends("10.0.0.1 10.0.0.2", 53))
    assert result.serving == {frontend("udp 10.96.0.7 53"): answering, frontend("udp node 30053"): answering}


def test_udp_frontends_that_nobody_serves_are_told_too() -> None:
    result = compile_service(service(ports="d:udp:53"), [], SITE)
    assert result.serving == {frontend("udp 10.96.0.7 53"): frozenset()}


def test_the_health_check_of_a_load_balancer_with_policy_local() -> None:
    local: dict[str, Any] = {"external_local": True, "health_check_node_port": 31000}
    assert compiled(*BOTH, **EXPOSED, **local).health_check == HealthCheck(31000, 1)
    assert compiled("10.0.0.2", **EXPOSED, **local).health_check == HealthCheck(31000, 0)
    assert compiled(*BOTH, **EXPOSED, health_check_node_port=31000).health_check is None
    ported = {**EXPOSED, "type": "NodePort", **local}
    assert compiled(*BOTH, **ported).health_check is None


def test_health_checks_count_an_endpoint_of_two_families_and_ports_once() -> None:
    checked = service(
        "10.96.0.7 fd00:96::7",
        "http:tcp:80 admin:tcp:81",
        type="LoadBalancer",
        external_local=True,
        health_check_node_port=31000,
    )
    ports = "http:tcp:80 admin:tcp:81"
    slices = [slice_("10.0.0.1@here", ports=ports), slice_("fd00::1@here", ports=ports, name="web-2")]
    assert compile_service(checked, slices, SITE).health_check == HealthCheck(31000, 1)


def test_who_is_local_is_told() -> None:
    assert compiled(*BOTH).local == set(OURS)


def test_what_of_this_node_makes_a_difference_is_told() -> None:
    assert not compiled(*BOTH).by_zone
    assert compiled("10.0.0.1 zone=west").by_zone
    assert not compiled(*BOTH, **EXPOSED).by_address
    assert compiled(*BOTH, **EXPOSED, ranges="192.0.2.0/24").by_address


def test_two_ports_with_one_number_and_protocol_are_one_frontend_the_first() -> None:
    slices = [slice_("10.0.0.1", ports="a:tcp:1 b:tcp:2")]
    found = compile_service(service(ports="a:tcp:80 b:tcp:80"), slices, SITE).balances
    assert found[frontend(CLUSTER_IP)].backends == backends("10.0.0.1", 1)
