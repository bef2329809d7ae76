"""What NetworkPolicies mean, point by point, from manifests to the model's answer on both nodes.

Two parts of the semantics are not the model's: replies and related packets pass whatever policies say, as
does neighbour discovery. The model answers for what starts a connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.daemon.compile.town import block, pods, shop, spaces

if TYPE_CHECKING:
    from tests.unit.daemon.compile.town import Town

ALL = ("shop/web", "shop/db", "shop/far", "bank/web", "bank/db", "8.8.8.8")
BOTH = {"policyTypes": ["Ingress", "Egress"]}


@pytest.fixture
def town() -> Town:
    return shop()


def sources(town: Town, destination: str, port: str = "tcp 80", family: int = 4) -> set[str]:
    """Who of ALL reaches a pod, itself aside."""
    return {
        each
        for each in ALL
        if each != destination and not (family == 6 and "." in each)
        if town.reaches(each, destination, port, family)
    }


def targets(town: Town, source: str, port: str = "tcp 80") -> set[str]:
    return {each for each in ALL if each != source and town.reaches(source, each, port)}


# Isolation.


def test_without_a_policy_everybody_talks_to_everybody(town: Town) -> None:
    assert all(town.reaches(a, b) for a in ALL for b in ALL)
    assert not any(model.in_force or model.needs_all_pods for model in town.models.values())


def test_isolation_is_per_pod_and_per_direction(town: Town) -> None:
    town.policy("shop/p", "app=db")
    assert sources(town, "shop/db") == set()
    assert targets(town, "shop/db") == set(ALL) - {"shop/db"}
    assert sources(town, "shop/web") == set(ALL) - {"shop/web"}


def test_without_policy_types_egress_is_isolated_only_if_there_are_egress_rules(town: Town) -> None:
    town.policy("shop/p", "app=db", egress=[{"to": [pods("app=web")]}])
    assert targets(town, "shop/db") == {"shop/web", "shop/far"}
    assert sources(town, "shop/db") == set()


def test_egress_alone_leaves_ingress_open(town: Town) -> None:
    town.policy("shop/p", "app=db", policyTypes=["Egress"])
    assert targets(town, "shop/db") == set()
    assert sources(town, "shop/db") == set(ALL) - {"shop/db"}


def test_a_flow_needs_the_sources_egress_and_the_destinations_ingress(town: Town) -> None:
    town.policy("shop/out", "app=web", policyTypes=["Egress"], egress=[{"to": [pods("app=db")]}])
    assert town.reaches("shop/far", "shop/db")
    town.policy("shop/in", "app=db", ingress=[{"ports": [{"port": 443}]}])
    assert not town.reaches("shop/far", "shop/db", "tcp 80")
    assert town.reaches("shop/far", "shop/db", "tcp 443")
    assert not town.reaches("shop/far", "shop/web", "tcp 443")


def test_policies_add_up(town: Town) -> None:
    town.policy("shop/a", "app=db", ingress=[{"from": [pods("app=web")]}])
    town.policy("shop/b", "", ingress=[{"from": [spaces("team=b")]}])
    assert sources(town, "shop/db") == {"shop/web", "shop/far", "bank/web", "bank/db"}
    assert sources(town, "shop/web") == {"bank/web", "bank/db"}


# Rules.


@pytest.mark.parametrize("ingress", [[], None])
def test_no_ingress_rules_deny_all(town: Town, ingress: Any) -> None:
    town.policy("shop/p", "app=db", ingress=ingress)
    assert sources(town, "shop/db") == set()


def test_an_empty_rule_allows_all(town: Town) -> None:
    town.policy("shop/p", "app=db", ingress=[{}])
    assert sources(town, "shop/db") == set(ALL) - {"shop/db"}
    assert town.reaches("shop/web", "shop/db", "gre")


@pytest.mark.parametrize("nothing", [[], None])
def test_empty_peers_and_ports_are_any(town: Town, nothing: Any) -> None:
    town.policy("shop/p", "app=db", ingress=[{"from": nothing, "ports": [{"port": 80}]}])
    assert sources(town, "shop/db") == set(ALL) - {"shop/db"}
    assert sources(town, "shop/db", "tcp 81") == set()
    town.policy("shop/p", "app=db", ingress=[{"from": [pods("app=web")], "ports": nothing}])
    assert sources(town, "shop/db", "tcp 81") == {"shop/web", "shop/far"}


@pytest.mark.parametrize("selector", [None, {}])
def test_an_empty_pod_selector_selects_the_whole_namespace(town: Town, selector: Any) -> None:
    town.policy("shop/p", podSelector=selector)
    assert sources(town, "shop/db") == sources(town, "shop/web") == sources(town, "shop/far") == set()
    assert sources(town, "bank/db") == set(ALL) - {"bank/db"}


# Peers.


def test_a_pod_selector_alone_means_the_policys_namespace(town: Town) -> None:
    town.policy("shop/p", "app=db", ingress=[{"from": [pods("app=web")]}])
    assert sources(town, "shop/db") == {"shop/web", "shop/far"}


def test_a_namespace_selector_alone_means_all_its_pods(town: Town) -> None:
    town.policy("shop/p", "app=db", ingress=[{"from": [spaces("team=b")]}])
    assert sources(town, "shop/db") == {"bank/web", "bank/db"}


def test_both_selectors_in_one_item_must_both_hold(town: Town) -> None:
    town.policy("shop/p", "app=db", ingress=[{"from": [spaces("team=b") | pods("app=web")]}])
    assert sources(town, "shop/db") == {"bank/web"}


def test_of_separate_items_one_must_hold(town: Town) -> None:
    town.policy("shop/p", "app=db", ingress=[{"from": [spaces("team=b"), pods("app=web")]}])
    assert sources(town, "shop/db") == {"bank/web", "bank/db", "shop/web", "shop/far"}


def test_an_empty_namespace_selector_is_every_pod_and_nobody_outside(town: Town) -> None:
    town.policy("shop/p", "app=db", ingress=[{"from": [spaces()]}])
    assert sources(town, "shop/db") == {"shop/web", "shop/far", "bank/web", "bank/db"}
    assert not town.reaches("192.168.7.2", "shop/db")


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ({"key": "app", "operator": "In", "values": ["web", "x"]}, {"shop/web", "shop/far"}),
        ({"key": "tier", "operator": "NotIn", "values": ["data"]}, {"shop/web", "shop/far", "shop/api"}),
        ({"key": "tier", "operator": "Exists"}, {"shop/api"}),
        ({"key": "tier", "operator": "DoesNotExist"}, {"shop/web", "shop/far"}),
    ],
)
def test_match_expressions(town: Town, expression: Any, allowed: set[str]) -> None:
    """NotIn selects pods without the label too."""
    town.pod("shop/api", "10.244.2.30", "app=api tier=front", node="there")
    town.policy("shop/p", "app=db", ingress=[{"from": [{"podSelector": {"matchExpressions": [expression]}}]}])
    found = {each for each in (*ALL, "shop/api") if each != "shop/db" and town.reaches(each, "shop/db")}
    assert found == allowed


# Blocks of addresses.


def test_an_exception_denies_nothing_that_another_rule_allows(town: Town) -> None:
    everybody_but = block("10.0.0.0/8", "10.244.2.0/24")
    town.policy("shop/p", "app=db", ingress=[{"from": [everybody_but]}])
    assert not town.reaches("shop/far", "shop/db")
    town.policy("shop/p", "app=db", ingress=[{"from": [everybody_but]}, {"from": [pods("app=web")]}])
    assert town.reaches("shop/far", "shop/db")
    town.policy("shop/p", "app=db", ingress=[{"from": [everybody_but, block("10.244.2.12/32")]}])
    assert town.reaches("shop/far", "shop/db")
    assert not town.reaches("bank/web", "shop/db")


def test_pods_within_a_block_match_it(town: Town) -> None:
    town.policy("shop/p", "app=db", ingress=[{"from": [block("10.244.2.0/24")]}])
    assert sources(town, "shop/db") == {"shop/far", "bank/web"}


def test_everything_of_ipv4_is_nothing_of_ipv6(town: Town) -> None:
    town.policy("shop/p", "app=db", ingress=[{"from": [block("0.0.0.0/0")]}])
    assert sources(town, "shop/db") == set(ALL) - {"shop/db"}
    assert sources(town, "shop/db", family=6) == set()
    town.policy("shop/p", "app=db", ingress=[{"from": [block("::/0")]}])
    assert sources(town, "shop/db") == set()
    assert "bank/web" in sources(town, "shop/db", family=6)


def test_sloppy_cidrs_mean_what_they_say(town: Town) -> None:
    town.policy("shop/p", "app=db", ingress=[{"from": [block("10.244.002.077/24")]}])
    assert sources(town, "shop/db") == {"shop/far", "bank/web"}


def test_the_address_is_that_of_the_pod_after_service_dnat(town: Town) -> None:
    """A ClusterIP in a policy means nothing: what is matched is the endpoint's address and port."""
    town.policy(
        "shop/p",
        "app=web",
        policyTypes=["Egress"],
        egress=[{"to": [block("10.96.0.10/32")], "ports": [{"port": 80}]}],
    )
    assert targets(town, "shop/web") == set()
    assert town.reaches("shop/web", "10.96.0.10", "tcp 80")


def test_a_load_balancers_client_is_policed_as_the_pod_sees_it(town: Town) -> None:
    """With Local the client's own address, with Cluster and a remote pod that of the ingress node."""
    town.policy("shop/p", "app=db", ingress=[{"from": [block("203.0.113.0/24")]}])
    assert town.reaches("203.0.113.5", "shop/db")
    assert not town.reaches("192.168.7.2", "shop/db")
    town.policy("shop/p", "app=db", ingress=[{"from": [block("192.168.7.0/24")]}])
    assert town.reaches("192.168.7.2", "shop/db")


# Ports.


def test_a_named_port_is_what_the_destination_calls_so(town: Town) -> None:
    town.policy("shop/p", "", ingress=[{"ports": [{"port": "http"}]}])
    for name, number in (("shop/web", 80), ("shop/db", 8080), ("shop/far", 8081)):
        for port in (80, 8080, 8081):
            assert town.reaches("8.8.8.8", name, f"tcp {port}") is (port == number), (name, port)


def test_a_named_port_is_resolved_at_the_destination_of_egress_too(town: Town) -> None:
    town.policy("bank/p", "", policyTypes=["Egress"], egress=[{"ports": [{"port": "http"}]}])
    for source in ("bank/web", "bank/db"):
        for name, number in (("shop/web", 80), ("shop/db", 8080), ("shop/far", 8081)):
            for port in (80, 8080, 8081):
                assert town.reaches(source, name, f"tcp {port}") is (port == number), (name, port)
    assert not town.reaches("bank/web", "8.8.8.8", "tcp 80")


def test_a_named_port_of_egress_holds_for_destinations_within_a_block(town: Town) -> None:
    rule = {"to": [block("10.244.2.0/24")], "ports": [{"port": "http"}]}
    town.policy("bank/p", "", policyTypes=["Egress"], egress=[rule])
    assert town.reaches("bank/db", "shop/far", "tcp 8081")
    assert not town.reaches("bank/db", "shop/web", "tcp 80")
    assert not town.reaches("bank/db", "10.244.2.99", "tcp 8081")


def test_a_name_belongs_to_one_protocol(town: Town) -> None:
    town.policy("shop/p", "app=web", ingress=[{"ports": [{"port": "dns"}]}])
    assert sources(town, "shop/web", "udp 53") == sources(town, "shop/web", "tcp 53") == set()
    town.policy("shop/p", "app=web", ingress=[{"ports": [{"port": "dns", "protocol": "UDP"}]}])
    assert town.reaches("shop/db", "shop/web", "udp 53")
    assert not town.reaches("shop/db", "shop/web", "tcp 53")


def test_a_name_that_nobody_has_matches_nothing(town: Town) -> None:
    town.policy("shop/p", "", ingress=[{"ports": [{"port": "metrics"}]}])
    assert sources(town, "shop/web") == sources(town, "shop/db") == set()


def test_sidecars_have_named_ports(town: Town) -> None:
    sidecar = {"restartPolicy": "Always", "ports": [{"name": "metrics", "containerPort": 9}]}
    town.pod("shop/car", "10.244.1.40", "app=car", initContainers=[sidecar])
    town.policy("shop/p", "app=car", ingress=[{"ports": [{"port": "metrics"}]}])
    assert town.reaches("shop/web", "shop/car", "tcp 9")
    assert not town.reaches("shop/web", "shop/car", "tcp 10")


def test_a_port_without_a_number_is_all_of_its_protocol(town: Town) -> None:
    town.policy("shop/p", "app=db", ingress=[{"ports": [{"protocol": "UDP"}]}])
    assert town.reaches("shop/web", "shop/db", "udp 1")
    assert town.reaches("shop/web", "shop/db", "udp 65535")
    assert not town.reaches("shop/web", "shop/db", "tcp 1")


def test_the_end_port_belongs_to_the_range(town: Town) -> None:
    town.policy("shop/p", "app=db", ingress=[{"ports": [{"port": 80, "endPort": 90}]}])
    found = [port for port in range(70, 100) if town.reaches("shop/web", "shop/db", f"tcp {port}")]
    assert found == list(range(80, 91))


def test_without_a_protocol_a_port_is_of_tcp(town: Town) -> None:
    town.policy("shop/p", "app=db", ingress=[{"ports": [{"port": 80}]}])
    assert town.reaches("shop/web", "shop/db", "tcp 80")
    assert not town.reaches("shop/web", "shop/db", "udp 80")
    assert not town.reaches("shop/web", "shop/db", "sctp 80")


def test_sctp_is_sctp(town: Town) -> None:
    town.policy("shop/p", "app=db", ingress=[{"ports": [{"port": 80, "protocol": "SCTP"}]}])
    assert town.reaches("shop/web", "shop/db", "sctp 80")
    assert not town.reaches("shop/web", "shop/db", "tcp 80")


@pytest.mark.parametrize("protocol", ["icmp", "gre"])
def test_protocols_without_ports_match_rules_without_ports_only(town: Town, protocol: str) -> None:
    town.policy("shop/p", "app=db", ingress=[])
    assert not town.reaches("shop/web", "shop/db", protocol)
    every_port = [{"protocol": "TCP"}, {"protocol": "UDP"}, {"protocol": "SCTP"}]
    town.policy("shop/p", "app=db", ingress=[{"ports": every_port}])
    assert not town.reaches("shop/web", "shop/db", protocol)
    town.policy("shop/p", "app=db", ingress=[{"from": [pods("app=web")]}])
    assert town.reaches("shop/web", "shop/db", protocol)


# Nodes.


def test_a_pod_of_the_hosts_network_is_no_subject(town: Town) -> None:
    town.pod("shop/host", "192.168.7.2", "app=db", node="there", hostNetwork=True)
    town.policy("shop/p", "app=db", **BOTH)
    assert town.reaches("shop/web", "192.168.7.2")
    assert town.reaches("192.168.7.2", "shop/web")


def test_a_pod_of_the_hosts_network_is_not_matched_by_selectors(town: Town) -> None:
    town.pod("shop/host", "192.168.7.2", "app=web", node="there", hostNetwork=True)
    town.policy("shop/p", "app=db", ingress=[{"from": [pods(), spaces()]}])
    assert not town.reaches("192.168.7.2", "shop/db")
    town.policy("shop/p", "app=db", ingress=[{"from": [block("192.168.7.2/32")]}])
    assert town.reaches("192.168.7.2", "shop/db")


@pytest.mark.parametrize("family", [4, 6])
def test_a_node_always_reaches_its_own_pods(town: Town, family: int) -> None:
    """kubelet's probes, in both families, from whichever of its addresses."""
    town.policy("shop/p", "", **BOTH)
    own = ("192.168.7.1", "10.244.1.0") if family == 4 else ("fd07::1", "fd00:0:0:1::")
    for address in own:
        assert town.reaches(address, "shop/db", family=family)
        assert not town.reaches(address, "shop/far", family=family)


def test_another_node_is_policed_as_an_address(town: Town) -> None:
    town.policy("shop/p", "app=db", ingress=[{"from": [block("192.168.7.2/32")]}])
    assert town.reaches("192.168.7.2", "shop/db")
    assert not town.reaches("192.168.7.3", "shop/db")


def test_another_node_counts_as_itself_when_it_comes_through_the_overlay(town: Town) -> None:
    """It then carries the first address of its podCIDR, of which no author of a policy thinks."""
    town.policy("shop/p", "app=db", ingress=[{"from": [block("192.168.7.2/32")]}])
    assert town.reaches("10.244.2.0", "shop/db")
    town.policy("shop/p", "app=db", ingress=[{"from": [block("0.0.0.0/0", "192.168.7.0/24")]}])
    assert not town.reaches("10.244.2.0", "shop/db")
    assert town.reaches("8.8.8.8", "shop/db")
    town.policy("shop/p", "app=db", ingress=[{"from": [block("10.244.0.0/16")]}])
    assert not town.reaches("10.244.2.0", "shop/db")
    assert town.reaches("10.244.2.1", "shop/db")
    town.policy("shop/p", "app=db", ingress=[{"from": [block("0.0.0.0/0")]}])
    assert town.reaches("10.244.2.0", "shop/db")


def test_the_way_from_a_pod_to_its_own_node_obeys_egress(town: Town) -> None:
    town.policy("shop/p", "app=web", policyTypes=["Egress"])
    assert not town.reaches("shop/web", "192.168.7.1")
    town.policy("shop/p", "app=web", policyTypes=["Egress"], egress=[{"to": [block("192.168.7.1/32")]}])
    assert town.reaches("shop/web", "192.168.7.1")
    assert town.reaches("shop/web", "10.244.1.0")


@pytest.mark.parametrize("family", [4, 6])
def test_a_pod_always_reaches_itself(town: Town, family: int) -> None:
    """Also by way of its own ClusterIP, which is its own address by then."""
    town.policy("shop/p", "", **BOTH)
    assert town.reaches("shop/db", "shop/db", family=family)
    assert not town.reaches("shop/db", "shop/web", family=family)


# Change.


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended_is_neither_peer_nor_subject(town: Town, phase: str) -> None:
    """Its address may live on elsewhere: here at a pod with other labels."""
    town.policy("shop/p", "app=db", ingress=[{"from": [pods("app=web")]}])
    town.pod("shop/far", "10.244.2.12", "app=web", node="there", phase=phase)
    assert not town.reaches("10.244.2.12", "shop/db")
    town.pod("bank/heir", "10.244.2.12", "app=other", node="there")
    assert not town.reaches("10.244.2.12", "shop/db")
    town.pod("shop/db", "10.244.1.11", "app=db", phase=phase)
    town.pod("bank/other", "10.244.1.11", "app=other")
    assert town.reaches("8.8.8.8", "10.244.1.11")


def test_an_address_that_moves_on_is_its_new_owners(town: Town) -> None:
    """The former owner's object lingers for a moment: here it is gone second."""
    town.policy("shop/p", "app=db", ingress=[{"from": [pods("app=web")]}])
    town.pod("shop/new", "10.244.2.12", "app=web", node="there")
    town.drop("Pod", "shop/far")
    assert town.reaches("10.244.2.12", "shop/db")
    town.drop("Pod", "shop/new")
    assert not town.reaches("10.244.2.12", "shop/db")


def test_a_terminating_pod_is_subject_and_peer_until_it_is_gone(town: Town) -> None:
    town.policy("shop/p", "app=db", ingress=[{"from": [pods("app=web")]}])
    for name in ("shop/far", "shop/db"):
        raw = town.objects["Pod", name]
        dying = raw["metadata"] | {"deletionTimestamp": "2026-01-02T03:04:05Z"}
        town.put({**raw, "metadata": dying})
    assert sources(town, "shop/db") == {"shop/web", "shop/far"}
    town.drop("Pod", "shop/far")
    assert not town.reaches("10.244.2.12", "shop/db")


def test_labels_of_a_peer_count_as_they_are_now(town: Town) -> None:
    town.policy("shop/p", "app=db", ingress=[{"from": [pods("app=web")]}])
    town.pod("shop/far", "10.244.2.12", "app=other", node="there")
    assert sources(town, "shop/db") == {"shop/web"}
    town.pod("shop/far", "10.244.2.12", "app=web", node="there")
    assert sources(town, "shop/db") == {"shop/web", "shop/far"}


def test_labels_of_a_subject_count_as_they_are_now(town: Town) -> None:
    town.policy("shop/p", "app=db")
    town.pod("shop/db", "10.244.1.11", "app=free")
    assert "8.8.8.8" in sources(town, "shop/db")
    town.pod("shop/db", "10.244.1.11", "app=db")
    assert sources(town, "shop/db") == set()


def test_labels_of_a_namespace_count_as_they_are_now(town: Town) -> None:
    town.policy("shop/p", "app=db", ingress=[{"from": [spaces("team=b")]}])
    town.namespace("bank", "team=c")
    assert sources(town, "shop/db") == set()
    town.namespace("shop", "team=b")
    assert sources(town, "shop/db") == {"shop/web", "shop/far"}


def test_a_changed_selector_counts_at_once(town: Town) -> None:
    town.policy("shop/p", "app=db")
    town.policy("shop/p", "app=web")
    assert sources(town, "shop/db") == set(ALL) - {"shop/db"}
    assert sources(town, "shop/web") == sources(town, "shop/far") == set()


def test_without_its_last_policy_a_pod_is_open_again(town: Town) -> None:
    town.policy("shop/a", "app=db", **BOTH)
    town.policy("shop/b", "app=db")
    town.drop("NetworkPolicy", "shop/a")
    assert sources(town, "shop/db") == set()
    town.drop("NetworkPolicy", "shop/b")
    assert sources(town, "shop/db") == set(ALL) - {"shop/db"}
    assert not any(model.in_force for model in town.models.values())


def test_a_part_that_cannot_be_understood_allows_nothing(town: Town) -> None:
    rules = [{"from": [block("0.0.0.0/0", "nonsense")]}, {"from": [pods("app=web")]}]
    town.policy("shop/p", "app=db", ingress=rules)
    assert sources(town, "shop/db") == {"shop/web", "shop/far"}
    (problem,) = town.models["here"].problems()
    assert (problem.name, problem.key) == ("PolicyIncomplete", "shop/p")
    assert "shop/p" in problem.message
    assert "nonsense" in problem.message
    assert not list(town.models["there"].problems())
