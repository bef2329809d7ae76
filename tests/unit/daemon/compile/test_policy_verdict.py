"""What people are told: the reason at each end, and the policies behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from daemon.compile.policy_verdict import Reason, Verdict, verdict
from datapath.policy import Direction
from tests.unit.daemon.compile.town import block, pods, shop, spaces

if TYPE_CHECKING:
    from tests.unit.daemon.compile.town import Town


@pytest.fixture
def town() -> Town:
    found = shop()
    found.policy("shop/closed", "", policyTypes=["Ingress", "Egress"])
    found.policy("shop/web", "app=db", ingress=[{"from": [pods("app=web")], "ports": [{"port": 80}]}])
    found.policy("shop/banks", "app=db", ingress=[{"from": [spaces("team=b")]}])
    return found


def told(town: Town, source: str, destination: str, port: str = "tcp 80") -> Verdict:
    return verdict(town.models["here"], town.flow(source, destination, port))


def test_all_policies_that_isolate_and_those_that_allow(town: Town) -> None:
    found = told(town, "shop/far", "shop/db")
    assert found.allowed
    assert found.egress is None
    assert found.ingress is not None
    assert found.ingress.reason is Reason.ALLOWED
    assert found.ingress.subject.pod == "shop/db"
    assert found.ingress.direction is Direction.INGRESS
    assert found.ingress.isolating == ("shop/banks", "shop/closed", "shop/web")
    assert found.ingress.allowing == ("shop/web",)


def test_a_denied_flow_names_whom_it_failed_at(town: Town) -> None:
    found = told(town, "shop/web", "shop/db")
    assert not found.allowed
    assert found.egress is not None
    assert found.ingress is not None
    assert (found.egress.reason, found.egress.isolating) == (Reason.DENIED, ("shop/closed",))
    assert found.egress.allowing == ()
    assert found.ingress.reason is Reason.ALLOWED


def test_who_is_not_isolated(town: Town) -> None:
    found = told(town, "shop/far", "bank/db")
    assert found.ingress is not None
    assert found.ingress.reason is Reason.NOT_ISOLATED
    assert found.allowed


def test_who_is_on_no_pod_of_this_node_is_for_others_to_tell(town: Town) -> None:
    assert told(town, "shop/far", "8.8.8.8") == Verdict(None, None)


def test_a_pod_and_itself(town: Town) -> None:
    found = told(town, "shop/db", "shop/db")
    assert found.egress is not None
    assert found.ingress is not None
    assert found.egress.reason is found.ingress.reason is Reason.SELF
    assert found.ingress.isolating == ("shop/banks", "shop/closed", "shop/web")


def test_the_own_node(town: Town) -> None:
    found = told(town, "192.168.7.1", "shop/db")
    assert found.ingress is not None
    assert found.ingress.reason is Reason.OWN_NODE
    denied = told(town, "shop/web", "192.168.7.1")
    assert denied.egress is not None
    assert denied.egress.reason is Reason.DENIED


def test_a_rule_of_many_policies_is_told_for_each(town: Town) -> None:
    town.policy("shop/any", "", ingress=[{"from": [block("10.244.2.0/24")]}])
    found = told(town, "shop/far", "shop/db")
    assert found.ingress is not None
    assert found.ingress.allowing == ("shop/any", "shop/web")


def test_only_what_denies_does_not_allow() -> None:
    assert {each for each in Reason if not each.allows} == {Reason.DENIED, Reason.UNKNOWN}
