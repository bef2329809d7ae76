"""Policies as weftctl lists them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from daemon.admin.policy_answers import listing
from daemon.admin.sources import PolicySources
from daemon.compile.policy_tables import PolicyTables
from daemon.denials import Denials
from daemon.findings import Findings
from daemon.metrics import Metrics
from daemon.podnames import PodNames
from datapath.nft.counters import Count
from datapath.policy import Direction
from tests.unit.daemon.compile.town import pods, shop

if TYPE_CHECKING:
    from daemon.compile.policy import Policies
    from datapath.nft.policy_inspection import ExpectedVerdict
    from datapath.policy import PolicyPart
    from tests.unit.daemon.compile.town import Town

IN = Direction.INGRESS


@dataclass
class Counted:
    """Accounts as a test sets them."""

    accepted: dict[PolicyPart, Count] = field(default_factory=dict)
    denied: Counter[tuple[str, Direction]] = field(default_factory=Counter)
    refreshed: int = 0

    async def refresh(self) -> None:
        self.refreshed += 1


async def agrees(_expected: ExpectedVerdict) -> tuple[str, ...]:
    return ()


def denials(model: Policies) -> Denials:
    """Nothing is denied until a test says so."""
    return Denials(model, PodNames(model, {}), Metrics(), Findings())


def sources(town: Town, accounts: Counted | None = None) -> PolicySources:
    """What the admin service of node `here` reads."""
    model, tables = town.models["here"], PolicyTables()
    tables.take(model, model.changes())
    return PolicySources(model, tables, accounts or Counted(), denials(model), agrees, {}, {})


@pytest.fixture
def town() -> Town:
    return shop()


def test_policies_in_force_with_their_pods_and_counts(town: Town) -> None:
    town.policy("shop/p", ingress=[{"from": [pods("app=web")], "ports": [{"port": 80}]}])
    town.policy("shop/none", "app=absent")
    accounts = Counted({("shop/p", IN): Count(3, 180)}, Counter({("shop/db", IN): 7}))
    answer = listing(sources(town, accounts))
    (policy,) = answer.policies
    assert (policy.name, policy.direction, list(policy.pods)) == (
        "shop/p",
        "ingress",
        ["shop/db", "shop/web"],
    )
    assert list(policy.rules) == ["from pods app=web of namespace shop, at TCP 80"], "of both families once"
    assert (policy.packets, policy.bytes) == (3, 180)
    assert not policy.problems
    assert [(each.name, each.direction, each.denied_packets) for each in answer.pods] == [
        ("shop/db", "ingress", 7),
        ("shop/web", "ingress", 0),
    ]
    assert all(list(each.policies) == ["shop/p"] for each in answer.pods)


def test_each_direction_is_a_row_of_its_own(town: Town) -> None:
    town.policy("shop/p", "app=db", policyTypes=["Ingress", "Egress"])
    answer = listing(sources(town))
    assert [(each.direction, list(each.rules)) for each in answer.policies] == [
        ("egress", []),
        ("ingress", []),
    ]
    assert [each.direction for each in answer.pods] == ["ingress", "egress"]


def test_what_could_not_be_understood_is_told(town: Town) -> None:
    town.policy("shop/p", "app=db", ingress=[{"from": [{"ipBlock": {"cidr": "nonsense"}}]}])
    (policy,) = listing(sources(town)).policies
    assert len(policy.problems) == 1
    assert "nonsense" in policy.problems[0]
