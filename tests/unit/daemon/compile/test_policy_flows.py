"""Connections under way: which may go on, and which changes are a reason to ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from daemon.compile.policy_flows import Effect, effect, isolated, judge, may_go_on
from daemon.compile.policy_subjects import Attached
from datapath.marking import Ends
from tests.unit.daemon.compile.town import THERE, block, packed, pods, raw_node, shop

if TYPE_CHECKING:
    from daemon.compile.policy import Policies
    from tests.unit.daemon.compile.town import Town

DB = packed("10.244.1.11")


@pytest.fixture
def town() -> Town:
    found = shop()
    found.policy("shop/web", "app=db", ingress=[{"from": [pods("app=web")], "ports": [{"port": 80}]}])
    return found


@pytest.fixture
def model(town: Town) -> Policies:
    here = town.models["here"]
    here.changes()
    return here


def ends(town: Town, source: str, destination: str, port: str = "tcp 80") -> Ends:
    flow = town.flow(source, destination, port)
    return Ends(flow.source, flow.destination, flow.protocol, flow.port or 0)


@pytest.mark.parametrize(
    ("source", "destination", "port", "allowed"),
    [
        ("shop/web", "shop/db", "tcp 80", True),
        ("shop/far", "shop/db", "tcp 80", True),
        ("shop/web", "shop/db", "tcp 81", False),
        ("shop/web", "shop/db", "udp 80", False),
        ("bank/db", "shop/db", "tcp 80", False),
        ("8.8.8.8", "shop/db", "icmp", False),
        ("shop/db", "bank/db", "tcp 1", True),
        ("shop/db", "shop/db", "tcp 1", True),
        ("192.168.7.1", "shop/db", "tcp 1", True),
        ("172.17.0.1", "shop/db", "tcp 1", True),
        ("192.168.7.2", "shop/db", "tcp 1", False),
    ],
)
def test_a_connection_goes_on_where_it_could_begin(
    town: Town, model: Policies, source: str, destination: str, port: str, allowed: bool
) -> None:
    local = {packed("172.17.0.1")}
    about = ends(town, source, destination, port)
    assert may_go_on(model, about, local) is allowed
    assert judge(model, [about], local) == {about: not allowed}


def test_an_address_of_the_node_does_not_excuse_what_a_pod_sends(town: Town, model: Policies) -> None:
    town.policy("shop/out", "app=db", policyTypes=["Egress"])
    assert may_go_on(model, ends(town, "shop/db", "172.17.0.1"), {DB, packed("172.17.0.1")}) is False


def test_of_a_pod_that_is_not_known_yet_nothing_is_known(town: Town, model: Policies) -> None:
    model.put_attached("weft-new", Attached("weft-new", "shop", "new", "u", (packed("10.244.1.99"),)))
    model.compile()
    unknown = ends(town, "8.8.8.8", "10.244.1.99")
    assert may_go_on(model, unknown) is None
    assert judge(model, [unknown]) == {}


def test_while_pods_of_other_nodes_are_not_known_only_pods_of_this_one_are_cut(
    town: Town, model: Policies
) -> None:
    assert may_go_on(model, ends(town, "shop/far", "shop/db", "tcp 81"), complete=False) is None
    assert may_go_on(model, ends(town, "bank/db", "shop/db"), complete=False) is False
    assert may_go_on(model, ends(town, "shop/web", "shop/db"), complete=False) is True


def test_whose_connections_are_looked_at(town: Town, model: Policies) -> None:
    assert isolated(model) == {DB, packed("fd00:0:0:1::11")}
    town.policy("bank/out", policyTypes=["Egress"])
    assert packed("10.244.1.21") in isolated(model)
    assert packed("10.244.1.10") not in isolated(model)


def test_without_a_change_there_is_no_reason(model: Policies) -> None:
    assert effect(model, model.changes()) is Effect.NONE


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda town: town.policy("shop/web", "app=db", ingress=[{}]), Effect.STRICTER),
        (lambda town: town.policy("shop/all", policyTypes=["Egress"]), Effect.STRICTER),
        (lambda town: town.policy("bank/far", "app=web", policyTypes=["Ingress"]), Effect.NONE),
        (lambda town: town.drop("NetworkPolicy", "shop/web"), Effect.LOOSER),
        (lambda town: town.pod("shop/more", "10.244.2.99", "app=web", node="there"), Effect.LOOSER),
        (lambda town: town.pod("shop/free", "10.244.1.99", "app=no"), Effect.LOOSER),
        (lambda town: town.pod("shop/new", "10.244.1.99", "app=db"), Effect.STRICTER),
        (lambda town: town.pod("shop/db", "10.244.1.11 fd00:0:0:1::11", "app=no"), Effect.LOOSER),
        (lambda town: town.pod("shop/web", "10.244.1.10 fd00:0:0:1::10", "app=no"), Effect.STRICTER),
        (lambda town: town.drop("Pod", "shop/far"), Effect.STRICTER),
        (lambda town: town.put(raw_node("third", "192.168.7.3", "10.244.3.0/24")), Effect.STRICTER),
        (lambda town: town.put(THERE), Effect.NONE),
    ],
    ids=[
        "another rule", "another policy", "a policy of nobody here", "no policy", "another peer",
        "another pod", "another isolated pod", "isolated no more", "a peer no more", "a peer that went",
        "another node", "nothing",
    ],
)  # fmt: skip
def test_what_a_change_may_do(town: Town, model: Policies, change: object, expected: Effect) -> None:
    change(town)  # type: ignore[operator]
    assert effect(model, model.changes()) is expected


def test_a_block_or_a_named_port_less_is_stricter(town: Town, model: Policies) -> None:
    town.policy("shop/named", "app=db", egress=[{"ports": [{"port": "http"}]}])
    town.policy("shop/block", "app=db", ingress=[{"from": [block("192.168.0.0/16")]}])
    model.changes()
    town.pod("shop/far", "10.244.2.12 fd00:0:0:2::12", "app=web", node="there", ports="more:tcp:1")
    assert effect(model, model.changes()) is Effect.STRICTER
    town.pod("shop/far", "10.244.2.12 fd00:0:0:2::12", "app=web", node="there", ports="http:tcp:8081")
    assert effect(model, model.changes()) is Effect.LOOSER
