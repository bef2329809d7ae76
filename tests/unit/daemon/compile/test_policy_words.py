"""Rules in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from daemon.compile.policy_words import protocol_name, rule_words
from datapath.policy import Direction
from tests.unit.daemon.compile.town import block, pods, shop, spaces

if TYPE_CHECKING:
    from tests.unit.daemon.compile.town import Town


@pytest.fixture
def town() -> Town:
    return shop()


def words(town: Town, direction: Direction = Direction.INGRESS) -> list[str]:
    model = town.models["here"]
    return [rule_words(model, rule, direction) for rule in model.rules["shop/p", direction].ipv4]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, "from anybody, at any port"),
        ({"from": [pods("app=web")]}, "from pods app=web of namespace shop, at any port"),
        ({"from": [spaces("team=b")]}, "from all pods of namespaces team=b, at any port"),
        ({"from": [spaces()]}, "from all pods of all namespaces, at any port"),
        ({"from": [block("10.0.0.0/8")]}, "from 10.0.0.0/8, at any port"),
        (
            {"ports": [{"port": 80}, {"port": 53, "endPort": 54, "protocol": "UDP"}]},
            "from anybody, at TCP 80, UDP 53-54",
        ),
        ({"ports": [{"port": "http"}]}, "from anybody, at the port called http of TCP"),
        (
            {"ports": [{"port": each} for each in (1, 3, 5, 7, 9)]},
            "from anybody, at TCP 1, TCP 3, TCP 5 and 2 more",
        ),
    ],
)
def test_what_a_rule_accepts(town: Town, rule: dict[str, Any], expected: str) -> None:
    town.policy("shop/p", "app=db", ingress=[rule])
    assert words(town) == [expected]


def test_egress_goes_to_somebody(town: Town) -> None:
    town.policy("shop/p", "app=db", policyTypes=["Egress"], egress=[{"to": [pods("app=web")]}])
    assert words(town, Direction.EGRESS) == ["to pods app=web of namespace shop, at any port"]


def test_protocols_without_a_name_have_their_number() -> None:
    assert [protocol_name(each) for each in (6, 58, 47)] == ["TCP", "ICMPv6", "protocol 47"]
