"""NetworkPolicies into values: defaults, nulls, and that what can't be understood never allows more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from daemon.cluster.decode import DecodeError
from daemon.cluster.decode_policies import label_selector, network_policy
from daemon.cluster.model import IPBlock, NetworkPolicy, PodPeer, PolicyPort, PolicyRule, Prefix
from daemon.cluster.selectors import EVERYTHING, Operator, Requirement, selector

if TYPE_CHECKING:
    from daemon.cluster.selectors import Selector

TCP, UDP, SCTP = 6, 17, 132
ANY = PolicyRule()


def policy(**spec: Any) -> NetworkPolicy:
    return network_policy({"metadata": {"namespace": "shop", "name": "p"}, "spec": spec})


def peers(*entries: Any) -> tuple[Any, ...] | None:
    (rule,) = policy(ingress=[{"from": list(entries)}]).ingress or ()
    return rule.peers


def ports(*entries: Any) -> tuple[PolicyPort, ...] | None:
    (rule,) = policy(ingress=[{"ports": list(entries)}]).ingress or ()
    return rule.ports


def equals(key: str, value: str) -> Selector:
    return selector(Requirement(key, Operator.IN, (value,)))


def block(text: bytes, length: int, *exceptions: Prefix) -> IPBlock:
    return IPBlock(Prefix(text, length), exceptions)


def test_the_names() -> None:
    assert policy().key == "shop/p"
    with pytest.raises(DecodeError, match=r"metadata\.namespace"):
        network_policy({"metadata": {"name": "p"}})


@pytest.mark.parametrize(
    ("spec", "ingress", "egress"),
    [
        ({}, (), None),
        ({"policyTypes": []}, (), None),
        ({"egress": []}, (), None),
        ({"egress": [{}]}, (), (ANY,)),
        ({"ingress": [{}]}, (ANY,), None),
        ({"ingress": None, "policyTypes": ["Ingress"]}, (), None),
        ({"policyTypes": ["Egress"]}, None, ()),
        ({"policyTypes": ["Egress"], "ingress": [{}]}, None, ()),
        ({"policyTypes": ["Ingress"], "egress": [{}]}, (), None),
        ({"policyTypes": ["Ingress", "Egress"], "egress": [{}]}, (), (ANY,)),
    ],
)
def test_which_directions_a_policy_isolates(spec: Any, ingress: Any, egress: Any) -> None:
    found = policy(**spec)
    assert (found.ingress, found.egress) == (ingress, egress)
    assert not found.faults


@pytest.mark.parametrize("value", [None, {}, {"matchLabels": {}}, {"matchExpressions": None}])
def test_without_conditions_a_policy_selects_every_pod_of_its_namespace(value: Any) -> None:
    assert policy(podSelector=value).pods == EVERYTHING


def test_label_selectors() -> None:
    assert label_selector(
        {
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["b", "a", "a"]},
                {"key": "env", "operator": "NotIn", "values": ["test"]},
                {"key": "x", "operator": "Exists"},
                {"key": "y", "operator": "DoesNotExist", "values": []},
            ],
        }
    ) == selector(
        Requirement("app", Operator.IN, ("web",)),
        Requirement("tier", Operator.IN, ("a", "b")),
        Requirement("env", Operator.NOT_IN, ("test",)),
        Requirement("x", Operator.EXISTS),
        Requirement("y", Operator.DOES_NOT_EXIST),
    )


@pytest.mark.parametrize(
    "bad",
    [
        "app=web",
        [],
        {"matchLabels": []},
        {"matchLabels": {"app": 1}},
        {"matchExpressions": {}},
        {"matchExpressions": ["x"]},
        {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]},
        {"matchExpressions": [{"key": "", "operator": "Exists"}]},
        {"matchExpressions": [{"key": "a", "operator": "In"}]},
        {"matchExpressions": [{"key": "a", "operator": "NotIn", "values": []}]},
        {"matchExpressions": [{"key": "a", "operator": "In", "values": [1]}]},
        {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]},
    ],
)
def test_a_policy_that_does_not_say_whom_it_selects_is_refused(bad: Any) -> None:
    with pytest.raises(DecodeError, match=r"spec\.podSelector"):
        policy(podSelector=bad)


@pytest.mark.parametrize("rule", [{}, {"from": None, "ports": None}, {"from": [], "ports": []}])
def test_empty_and_null_lists_in_a_rule_stand_for_whoever_and_whatever(rule: Any) -> None:
    assert policy(ingress=[rule]).ingress == (ANY,)


def test_peers() -> None:
    assert peers(
        {"podSelector": {"matchLabels": {"app": "web"}}},
        {"namespaceSelector": {}},
        {"namespaceSelector": {"matchLabels": {"team": "a"}}, "podSelector": {"matchLabels": {"app": "x"}}},
        {"podSelector": {}},
        {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
    ) == (
        PodPeer(equals("app", "web")),
        PodPeer(EVERYTHING, EVERYTHING),
        PodPeer(equals("app", "x"), equals("team", "a")),
        PodPeer(EVERYTHING),
        block(bytes([10, 0, 0, 0]), 8, Prefix(bytes([10, 1, 0, 0]), 16)),
    )


def test_sloppy_cidrs() -> None:
    assert peers(
        {"ipBlock": {"cidr": "010.1.2.3/8"}},
        {"ipBlock": {"cidr": "::ffff:10.0.0.0/104"}},
        {"ipBlock": {"cidr": "0.0.0.0/0"}},
        {"ipBlock": {"cidr": "fd00::1/64", "except": None}},
    ) == (
        block(bytes([10, 0, 0, 0]), 8),
        block(bytes(4), 0),
        block(bytes([0xFD]) + bytes(15), 64),
    )


def test_ports() -> None:
    assert ports(
        {"port": 80},
        {"protocol": "UDP", "port": 53},
        {"protocol": "SCTP"},
        {"port": 8000, "endPort": 8010, "protocol": "TCP"},
        {"port": "http"},
        {"port": "dns", "protocol": "UDP"},
        {},
    ) == (
        PolicyPort(TCP, 80, 80),
        PolicyPort(UDP, 53, 53),
        PolicyPort(SCTP, 0, 65535),
        PolicyPort(TCP, 8000, 8010),
        PolicyPort(TCP, 0, 0, "http"),
        PolicyPort(UDP, 0, 0, "dns"),
        PolicyPort(TCP, 0, 65535),
    )


def test_a_policy_like_many() -> None:
    found = policy(
        podSelector={"matchLabels": {"app": "db"}},
        policyTypes=["Ingress", "Egress"],
        ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": 5432}]}],
        egress=[],
    )
    assert found == NetworkPolicy(
        "shop",
        "p",
        equals("app", "db"),
        ingress=(PolicyRule((PodPeer(equals("app", "web")),), (PolicyPort(TCP, 5432, 5432),)),),
        egress=(),
    )


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({}, "neither"),
        ("x", "neither"),
        ({"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}, "both"),
        ({"ipBlock": {"cidr": "nonsense"}}, "CIDR"),
        ({"ipBlock": {}}, "CIDR"),
        ({"ipBlock": "10.0.0.0/8"}, "no object"),
        ({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["nonsense"]}}, "CIDR"),
        ({"ipBlock": {"cidr": "0.0.0.0/0", "except": "10.0.0.0/8"}}, "no list"),
        ({"podSelector": {"matchLabels": {"a": None}}}, "not the value"),
        ({"podSelector": [], "namespaceSelector": {}}, "not a label selector"),
        ({"namespaceSelector": "all"}, "not a label selector"),
    ],
)
def test_a_peer_that_is_none_allows_nobody(bad: Any, why: str) -> None:
    alone = policy(ingress=[{"from": [bad]}])
    assert alone.ingress == ()
    assert len(alone.faults) == 1
    assert why in alone.faults[0]
    assert "spec.ingress[0].from" in alone.faults[0]
    beside = policy(ingress=[{"from": [bad, {"podSelector": {}}]}])
    assert beside.ingress == (PolicyRule((PodPeer(EVERYTHING),)),)


@pytest.mark.parametrize(
    "bad",
    [
        "80",
        {"port": "80"},
        {"port": ""},
        {"port": 0},
        {"port": 65536},
        {"port": -1},
        {"port": True},
        {"port": 80, "protocol": "ICMP"},
        {"port": 80, "endPort": 79},
        {"port": 80, "endPort": 65536},
        {"endPort": 80},
        {"port": "http", "endPort": 80},
    ],
)
def test_a_port_that_is_none_allows_nothing(bad: Any) -> None:
    alone = policy(egress=[{"ports": [bad]}])
    assert alone.egress == ()
    assert len(alone.faults) == 1
    assert "spec.egress[0].ports" in alone.faults[0]
    beside = policy(egress=[{"ports": [bad, {"port": 1}]}])
    assert beside.egress == (PolicyRule(None, (PolicyPort(TCP, 1, 1),)),)


@pytest.mark.parametrize(
    "spec",
    [
        {"ingress": {}},
        {"ingress": "all"},
        {"ingress": [None]},
        {"ingress": [[]]},
        {"ingress": [{"from": {}}]},
        {"ingress": [{"ports": "all"}]},
    ],
)
def test_rules_that_are_none_isolate_and_allow_nothing(spec: Any) -> None:
    found = policy(**spec)
    assert found.ingress == ()
    assert found.faults


@pytest.mark.parametrize("types", ["Ingress", ["Sideways"], ["Ingress", "Sideways"], [1]])
def test_policy_types_that_are_none_isolate_in_both_directions(types: Any) -> None:
    found = policy(policyTypes=types)
    assert (found.ingress, found.egress) == ((), ())
    assert "policyTypes" in found.faults[0]


def test_rules_count_only_for_types_that_are_named() -> None:
    """Those of the other direction were ignored if the unknown type were left out, so they can't allow."""
    found = policy(policyTypes=["Egress", "Sideways"], ingress=[{}], egress=[{}])
    assert (found.ingress, found.egress) == ((), (ANY,))
    assert policy(policyTypes=3.5, ingress=[{}]).ingress == ()


def test_of_many_faults_the_first_are_told() -> None:
    assert len(policy(ingress=[{"from": ["x"]}] * 9).faults) == 4
