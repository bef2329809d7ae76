"""Policies as fragments, change by change: what comes before what, what stays, and what is swept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from daemon.compile.policy_tables import TABLES, TUNNEL_KEY, PolicyTables
from datapath.fragments import Fragments
from datapath.nft.elements import interface, key
from datapath.nft.policy import FAMILIES, SUBJECTS, TABLE, closed_fragment
from datapath.nft.rules import Family
from datapath.policy import Direction
from tests.unit.daemon.compile.town import block, packed, pods, shop

if TYPE_CHECKING:
    from datapath.desired import Fragment, FragmentKey
    from datapath.nft.rules import Table
    from tests.unit.daemon.compile.town import Town

    Taken = dict[FragmentKey, Fragment | None]

IN, OUT = Direction.INGRESS, Direction.EGRESS
DB = "weft-shop-db"


class Desired:
    """A town's node with its fragments, brought up to date on demand."""

    def __init__(self, town: Town) -> None:
        self.town = town
        self.model = town.models["here"]
        self.tables = PolicyTables()
        self.fragments = Fragments()

    def follow(self) -> Taken:
        taken = self.tables.take(self.model, self.model.changes())
        self._put(taken)
        return taken

    def sweep(self) -> Taken:
        taken = self.tables.sweep()
        self._put(taken)
        return taken

    def _put(self, taken: Taken) -> None:
        for name, fragment in taken.items():
            self.fragments.replace(name, fragment)

    def table(self, family: Family = Family.IPV4) -> Table:
        return self.fragments.tables[int(family), TABLE]

    def chains(self, prefix: str = "") -> set[str]:
        return {each.name for each in self.table().chains if each.name.startswith(prefix)}

    def sets(self, prefix: str = "") -> set[str]:
        return {each.name for each in self.table().sets if each.name.startswith(prefix)}

    def held(self, name: str, family: Family = Family.IPV4) -> set[bytes]:
        return set(self.fragments.elements((int(family), TABLE, name)))

    def leads_to(self, link: str, direction: Direction = IN) -> bytes:
        found = self.fragments.elements((int(Family.IPV4), TABLE, SUBJECTS[direction]))
        return found[key(interface(link))]

    def state(self) -> tuple[object, object]:
        """All that is desired; sets that nobody names are as good as empty ones."""
        sets = {name: dict(each) for name, each in self.fragments.sets().items() if each}
        tables = {
            name: (sorted(map(repr, each.sets)), sorted(map(repr, each.chains)))
            for name, each in self.fragments.tables.items()
        }
        return sets, tables


@pytest.fixture
def desired() -> Desired:
    found = Desired(shop())
    found.follow()
    return found


def test_without_policies_there_are_no_tables(desired: Desired) -> None:
    assert not desired.fragments.tables
    assert not desired.tables.superfluous
    assert set(dict(desired.fragments.items())) <= {TUNNEL_KEY}


def test_a_policy_brings_both_tables_before_the_elements(desired: Desired) -> None:
    desired.town.policy("shop/p", "app=db", ingress=[{"from": [pods("app=web")]}])
    taken = desired.follow()
    assert next(iter(taken)) == TABLES
    assert set(desired.fragments.tables) == {(int(each), TABLE) for each in FAMILIES}
    assert ("policy", "subject", DB) in taken
    (peers,) = desired.sets("peers-")
    assert desired.held(peers) == {key(packed("10.244.1.10")), key(packed("10.244.2.12"))}
    assert desired.held(peers, Family.IPV6) == {
        key(packed("fd00:0:0:1::10")),
        key(packed("fd00:0:0:2::12")),
    }


def test_a_changed_policy_is_another_chain_beside_the_old_one(desired: Desired) -> None:
    desired.town.policy("shop/p", "app=db", ingress=[{"from": [pods("app=web")]}])
    desired.follow()
    before, old = desired.leads_to(DB), desired.chains()
    desired.town.policy("shop/p", "app=db", ingress=[{"from": [block("10.0.0.0/8")]}])
    taken = desired.follow()
    assert next(iter(taken)) == TABLES
    assert desired.leads_to(DB) != before
    assert desired.chains() > old, "what was led to is there still"
    swept = desired.sweep()
    assert TABLES in swept
    assert not [name for name in swept if name[:2] == ("policy", "subject")]
    assert len(desired.chains()) == len(old)
    assert not desired.sets("peers-")
    assert not desired.sweep()


def test_what_is_changed_back_finds_its_chains(desired: Desired) -> None:
    desired.town.policy("shop/p", "app=db", ingress=[{"from": [pods("app=web")]}])
    desired.follow()
    before = desired.leads_to(DB)
    desired.town.policy("shop/p", "app=db")
    desired.follow()
    desired.town.policy("shop/p", "app=db", ingress=[{"from": [pods("app=web")]}])
    assert TABLES not in desired.follow()
    assert desired.leads_to(DB) == before


def test_policies_share_the_sets_of_the_same_peers(desired: Desired) -> None:
    for name in ("p", "q"):
        desired.town.policy(f"shop/{name}", "app=db", ingress=[{"from": [pods("app=web")]}])
    desired.follow()
    (peers,) = desired.sets("peers-")
    assert len(desired.chains("policy-")) == 2
    desired.town.drop("NetworkPolicy", "shop/p")
    desired.follow()
    desired.sweep()
    assert desired.sets("peers-") == {peers}
    assert desired.held(peers)
    assert len(desired.chains("policy-")) == 1


def test_a_pod_that_comes_changes_one_fragment(desired: Desired) -> None:
    desired.town.policy("shop/p", "app=db", ingress=[{"from": [pods("app=web")]}])
    desired.follow()
    desired.town.pod("shop/more", "10.244.2.99", "app=web", node="there")
    ((name, fragment),) = desired.follow().items()
    assert name[:2] == ("policy", "set")
    assert fragment is not None
    (peers,) = desired.sets("peers-")
    assert key(packed("10.244.2.99")) in desired.held(peers)


def test_pods_of_the_same_policies_share_a_chain(desired: Desired) -> None:
    desired.town.policy("shop/p", "", policyTypes=["Ingress", "Egress"])
    desired.follow()
    assert desired.leads_to(DB) == desired.leads_to("weft-shop-web")
    assert desired.leads_to(DB, OUT) == desired.leads_to("weft-shop-web", OUT)
    assert desired.leads_to(DB, OUT) != desired.leads_to(DB, IN)


def test_the_last_policy_takes_the_tables_with_it(desired: Desired) -> None:
    desired.town.policy("shop/p", "app=db", ingress=[{"from": [pods("app=web"), block("10.0.0.0/8")]}])
    desired.follow()
    desired.town.drop("NetworkPolicy", "shop/p")
    taken = desired.follow()
    assert taken[TABLES] is None
    assert not desired.fragments.tables
    assert set(dict(desired.fragments.items())) <= {TUNNEL_KEY}
    assert not desired.tables.superfluous


def test_a_pod_that_is_being_born_keeps_the_tables(desired: Desired) -> None:
    desired.town.policy("shop/p", "app=db")
    desired.follow()
    desired.fragments.replace(("policy-birth", "weft9"), closed_fragment("weft9", (IN,)))
    assert desired.chains("ingress-"), "the policies' own tables outrank those of births"
    desired.town.drop("NetworkPolicy", "shop/p")
    desired.follow()
    assert set(desired.fragments.tables) == {(int(each), TABLE) for each in FAMILIES}
    assert not desired.chains("ingress-")


def test_a_pod_that_is_not_known_yet_is_closed(desired: Desired) -> None:
    desired.town.policy("shop/p", "app=db")
    desired.town.models["here"].put_pod("shop/web", None)
    desired.town.models["here"].compile()
    desired.follow()
    assert desired.leads_to("weft-shop-web")


def test_step_by_step_is_as_from_scratch(desired: Desired) -> None:
    town = desired.town
    town.policy("shop/p", "app=db", ingress=[{"from": [pods("app=web")], "ports": [{"port": "http"}]}])
    desired.follow()
    town.policy("shop/q", "", egress=[{"to": [block("10.0.0.0/8", "10.9.0.0/16")]}], policyTypes=["Egress"])
    desired.follow()
    town.pod("shop/web", "10.244.1.10", "app=other")
    town.policy("shop/p", "app=db", ingress=[{"from": [pods()], "ports": [{"port": 1, "endPort": 9}]}])
    desired.follow()
    town.drop("NetworkPolicy", "shop/q")
    desired.follow()
    desired.sweep()
    fresh = Desired(shop())
    fresh.town.pod("shop/web", "10.244.1.10", "app=other")
    fresh.town.policy("shop/p", "app=db", ingress=[{"from": [pods()], "ports": [{"port": 1, "endPort": 9}]}])
    fresh.follow()
    assert desired.state() == fresh.state()
