"""The model of all policies: who is isolated, what is in use, and what a change touches."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from daemon.cluster.decode_pods import pod as decode_pod
from daemon.cluster.decode_policies import network_policy
from daemon.compile.policy_subjects import Attached
from daemon.compile.policy_verdict import Flow, Reason, verdict
from datapath.policy import Direction, Members, Rules, Subject
from datapath.text import parse_address
from tests.unit.daemon.compile.town import block, link, pods, shop, spaces

if TYPE_CHECKING:
    from daemon.compile.policy import Policies
    from tests.unit.daemon.compile.town import Town

IN, OUT = Direction.INGRESS, Direction.EGRESS
DB = "weft-shop-db"


@pytest.fixture
def town() -> Town:
    return shop()


@pytest.fixture
def model(town: Town) -> Policies:
    found = town.models["here"]
    found.changes()
    return found


def ingress(model: Policies, link: str) -> tuple[str, ...] | None:
    return model.subjects[link].ingress


def egress(model: Policies, link: str) -> tuple[str, ...] | None:
    return model.subjects[link].egress


def needs_all_pods(model: Policies) -> bool:
    return model.needs_all_pods


def attached(town: Town, name: str, /, **changes: str) -> Attached:
    raw = decode_pod(town.objects["Pod", name])
    return Attached(link(raw), raw.namespace, raw.name, raw.uid, raw.ips)._replace(**changes)  # type: ignore[arg-type]


def test_subjects_are_the_pods_of_this_node(town: Town, model: Policies) -> None:
    assert set(model.subjects) == {"weft-shop-web", DB, "weft-bank-db"}
    assert model.subjects[DB] == Subject(
        DB, "shop/db", (parse_address("10.244.1.11"), parse_address("fd00:0:0:1::11"))
    )
    assert model.subject(parse_address("10.244.1.11")) is model.subjects[DB]
    assert model.subject(parse_address("10.244.2.12")) is None


def test_isolation_names_the_policies_sorted(town: Town, model: Policies) -> None:
    town.policy("shop/b", "app=db")
    town.policy("shop/a", "", policyTypes=["Egress"])
    town.policy("shop/c", "", policyTypes=["Ingress", "Egress"])
    assert ingress(model, DB) == ("shop/b", "shop/c")
    assert egress(model, DB) == ("shop/a", "shop/c")
    assert ingress(model, "weft-shop-web") == ("shop/c",)
    assert ingress(model, "weft-bank-db") is None
    assert model.changes().subjects == {DB, "weft-shop-web"}


def test_only_policies_that_select_pods_of_this_node_are_compiled(town: Town, model: Policies) -> None:
    town.policy("bank/p", "app=web", ingress=[{"from": [spaces()]}])
    assert not model.in_force
    assert not model.rules
    assert not model.peers
    assert town.models["there"].in_force
    assert set(town.models["there"].rules) == {("bank/p", IN)}
    town.pod("bank/web", "10.244.1.20", "app=web")
    assert set(model.rules) == {("bank/p", IN)}
    assert not town.models["there"].rules


def test_a_changed_policy_touches_its_own_rules_only(town: Town, model: Policies) -> None:
    town.policy("shop/a", "", policyTypes=["Ingress", "Egress"])
    town.policy("shop/b", "")
    assert model.changes().rules == {("shop/a", IN), ("shop/a", OUT), ("shop/b", IN)}
    town.policy("shop/a", "", policyTypes=["Ingress", "Egress"], egress=[{}])
    changes = model.changes()
    assert changes.rules == {("shop/a", OUT)}
    assert not changes.subjects
    town.policy("shop/a", "", policyTypes=["Egress"])
    changes = model.changes()
    assert changes.rules == {("shop/a", IN), ("shop/a", OUT)}
    assert changes.subjects == {"weft-shop-web", DB}
    assert model.rules == {("shop/a", OUT): Rules(), ("shop/b", IN): Rules()}


def test_sets_are_shared_by_policies_and_kept_while_one_changes(town: Town, model: Policies) -> None:
    town.policy("shop/a", "app=db", ingress=[{"from": [spaces("team=b")]}])
    town.policy("shop/b", "app=web", ingress=[{"from": [spaces("team=b")]}])
    (name,) = model.peers
    (rule,) = model.rules["shop/a", IN].ipv4
    assert rule.peer == Members(name)
    model.changes()
    town.policy("shop/a", "app=db", ingress=[{"from": [spaces("team=b")], "ports": [{"port": 1}]}])
    assert not model.changes().peers
    town.drop("NetworkPolicy", "shop/a")
    assert set(model.peers) == {name}
    town.drop("NetworkPolicy", "shop/b")
    assert not model.peers
    assert set(model.changes().peers) == {name}


def test_scopes_of_sets_can_be_told(town: Town, model: Policies) -> None:
    rule = {"from": [spaces("team=b"), block("10.0.0.0/8")], "ports": [{"port": "http"}]}
    town.policy("shop/a", "app=db", ingress=[rule])
    names = [*model.peers, *model.nodes, *model.ports]
    assert len(names) == 3
    assert all(model.scope(name) for name in names)
    assert model.scope("peers-of-nobody") is None


def test_a_pod_that_changes_labels_touches_its_addresses_only(town: Town, model: Policies) -> None:
    town.policy("shop/a", "app=db", ingress=[{"from": [pods("app=web")]}])
    (name,) = model.peers
    model.changes()
    town.pod("shop/far", "10.244.2.12 fd00:0:0:2::12", "app=other", node="there")
    changes = model.changes()
    assert changes.peers == {name: {parse_address("10.244.2.12"), parse_address("fd00:0:0:2::12")}}
    assert not replace(changes, peers={})
    town.pod("shop/far", "10.244.2.12 fd00:0:0:2::12", "app=another", node="there")
    assert not model.changes()


def test_what_is_the_same_touches_nothing(town: Town, model: Policies) -> None:
    town.policy("shop/a", "app=db", ingress=[{"from": [pods("app=web")], "ports": [{"port": "http"}]}])
    model.changes()
    town.put(*town.objects.values())
    assert not model.changes()


def test_when_all_pods_of_the_cluster_are_needed(town: Town, model: Policies) -> None:
    town.policy("shop/a", "app=db", ingress=[{"from": [block("10.0.0.0/8")], "ports": [{"port": "http"}]}])
    assert model.in_force
    assert not needs_all_pods(model)
    town.policy("shop/b", "app=db", policyTypes=["Egress"], egress=[{"ports": [{"port": "http"}]}])
    assert needs_all_pods(model)
    town.drop("NetworkPolicy", "shop/b")
    assert not needs_all_pods(model)
    town.policy("shop/b", "app=db", ingress=[{"from": [pods()]}])
    assert needs_all_pods(model)


def test_a_pod_that_is_not_known_is_closed_where_a_policy_may_select_it(town: Town, model: Policies) -> None:
    stranger = attached(town, "shop/db", host_link="weft new", name="new", uid="")
    model.put_attached("weft new", stranger)
    model.compile()
    assert ingress(model, "weft new") is None
    assert egress(model, "weft new") is None
    town.policy("bank/p", "app=none")
    assert ingress(model, "weft new") is None
    town.policy("shop/p", "app=none")
    assert ingress(model, "weft new") == ()
    assert egress(model, "weft new") is None
    town.policy("shop/q", "app=none", policyTypes=["Egress"])
    assert egress(model, "weft new") == ()
    assert not model.in_force
    town.drop("NetworkPolicy", "shop/p")
    assert ingress(model, "weft new") is None


def test_nothing_reaches_a_pod_that_is_not_known(town: Town, model: Policies) -> None:
    town.policy("shop/p", "app=none")
    address = parse_address("10.244.1.99")
    model.put_attached("weft new", Attached("weft new", "shop", "new", "", (address,)))
    model.compile()
    found = verdict(model, Flow(parse_address("8.8.8.8"), address, 6, 80))
    assert not found.allowed
    assert found.ingress is not None
    assert found.ingress.reason is Reason.UNKNOWN


def test_a_pod_becomes_known_when_its_object_comes(town: Town, model: Policies) -> None:
    town.policy("shop/p", "app=db")
    model.put_attached("weft new", attached(town, "shop/db", host_link="weft new", name="new", uid=""))
    model.compile()
    assert ingress(model, "weft new") == ()
    born = replace(decode_pod(town.objects["Pod", "shop/db"]), name="new")
    model.put_pod("shop/new", born)
    model.compile()
    assert ingress(model, "weft new") == ("shop/p",)
    model.put_pod("shop/new", None)
    model.compile()
    assert ingress(model, "weft new") == ()


def test_an_attachment_of_nobody_is_closed_by_any_policy(town: Town, model: Policies) -> None:
    """After the loss of the database an attachment may be known by its link alone."""
    model.put_attached("weft x", Attached("weft x", "", "", "", (parse_address("10.244.1.99"),)))
    model.compile()
    assert ingress(model, "weft x") is None
    town.policy("bank/p", "app=none")
    assert ingress(model, "weft x") == ()


def test_an_old_sandbox_of_another_pod_of_that_name_is_not_taken_for_it(town: Town, model: Policies) -> None:
    """A StatefulSet's pod that is made anew has the name of the one before, and perhaps other labels."""
    town.policy("shop/p", "app=db")
    town.policy("shop/q", "app=web", ingress=[{"from": [pods("app=db")]}])
    (name,) = model.peers
    old = attached(town, "shop/db", host_link="weft old", uid="another")._replace(
        addresses=(parse_address("10.244.1.77"),)
    )
    model.put_attached("weft old", old)
    model.compile()
    assert ingress(model, "weft old") == ()
    assert ingress(model, DB) == ("shop/p",)
    assert parse_address("10.244.1.77") not in model.peers[name]
    model.put_attached("weft old", None)
    model.compile()
    assert "weft old" not in model.subjects


def test_a_pod_of_this_node_has_the_addresses_of_its_attachment(town: Town, model: Policies) -> None:
    """The object tells them late, and keeps them when they are another's already."""
    town.policy("shop/p", "app=db", ingress=[{"from": [pods("app=web")]}])
    (name,) = model.peers
    web = parse_address("10.244.1.10")
    assert web in model.peers[name]
    model.put_attached("weft-shop-web", None)
    assert web not in model.peers[name]
    model.put_attached("weft-shop-web", attached(town, "shop/web")._replace(addresses=(web,)))
    assert web in model.peers[name]


def test_an_ended_pod_whose_sandbox_is_still_there_is_not_isolated(town: Town, model: Policies) -> None:
    town.policy("shop/p", "")
    model.put_pod("shop/db", replace(decode_pod(town.objects["Pod", "shop/db"]), finished=True))
    model.compile()
    assert ingress(model, DB) is None


def test_a_link_that_goes_to_another_pod(town: Town, model: Policies) -> None:
    town.policy("shop/p", "app=db")
    model.put_attached(DB, attached(town, "shop/web", host_link=DB))
    model.compile()
    assert ingress(model, DB) is None
    assert not model.in_force


def test_compiling_in_slices_isolates_last_and_never_allows_more(town: Town, model: Policies) -> None:
    specs = {f"shop/p{number}": {"ingress": [{"from": [spaces()]}]} for number in range(5)}
    for name, spec in specs.items():
        where, _, own = name.partition("/")
        raw = {"metadata": {"namespace": where, "name": own}, "spec": spec}
        model.put_policy(name, network_policy(raw))
    steps = 0
    while model.pending:
        assert ingress(model, DB) is None
        model.compile(2)
        steps += 1
    assert steps == 3
    assert ingress(model, DB) == tuple(sorted(specs))
    assert len(model.rules) == 5


def test_a_policy_that_is_not_compiled_yet_allows_nothing(town: Town, model: Policies) -> None:
    town.policy("shop/p", "app=db", ingress=[{}])
    del model.rules["shop/p", IN]
    assert not town.reaches("8.8.8.8", "shop/db")


def test_the_nodes_own_addresses(town: Town, model: Policies) -> None:
    texts = ("192.168.7.1", "fd07::1", "10.244.1.0", "fd00:0:0:1::")
    assert model.own_addresses == set(map(parse_address, texts))
    bridge = parse_address("172.17.0.1")
    model.put_host_addresses([bridge])
    assert model.own_addresses == {*map(parse_address, texts), bridge}
    town.policy("shop/p", "")
    assert town.reaches("172.17.0.1", "shop/db")
    assert not town.reaches("172.17.0.1", "shop/far")
    model.put_node("here", None)
    assert model.own_addresses == {bridge}


def test_an_update_that_arrives_while_another_is_applied_is_told_next(town: Town, model: Policies) -> None:
    town.policy("shop/p", "app=db", ingress=[{"from": [pods("app=web")]}])
    (name,) = model.peers
    first = model.changes()
    town.pod("shop/far", "10.244.2.12", "app=other", node="there")
    town.pod("shop/late", "10.244.2.13", "app=web", node="there")
    assert first.peers[name].isdisjoint({parse_address("10.244.2.13")})
    assert model.changes().peers == {
        name: {*map(parse_address, ("10.244.2.12", "fd00:0:0:2::12", "10.244.2.13"))}
    }


def test_groups_are_what_pods_differ_by(model: Policies) -> None:
    assert model.groups == 4
