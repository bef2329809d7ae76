"""One policy into rules: what is joined, what is shared, and what depends on the family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daemon.cluster.decode_policies import label_selector, network_policy
from daemon.cluster.selectors import EVERYTHING
from daemon.compile.policy_rules import (
    BlockScope,
    PodScope,
    PortScope,
    compile_policy,
    set_name,
)
from datapath.nft.elements import prefix
from datapath.policy import Blocks, Direction, Members, NamedPorts, PortRange, Ports, Rule, Rules
from datapath.text import parse_prefix
from tests.unit.daemon.compile.town import block, pods, select, spaces

if TYPE_CHECKING:
    from daemon.compile.policy_rules import CompiledPolicy, Scope

IN, OUT = Direction.INGRESS, Direction.EGRESS
WEB = PodScope("shop", label_selector(select("app=web")))


def compiled(**spec: Any) -> CompiledPolicy:
    return compile_policy(network_policy({"metadata": {"namespace": "shop", "name": "p"}, "spec": spec}))


def ingress(*rules: Any) -> Rules:
    return compiled(ingress=list(rules)).rules[IN]


def cidrs(*texts: str) -> Blocks:
    found = tuple(prefix(*parse_prefix(text)) for text in texts)
    return Blocks(found, set_name(BlockScope(found)))


def test_a_direction_that_is_not_isolated_has_no_rules_and_one_that_is_may_have_none() -> None:
    assert compiled().rules == {IN: Rules()}
    assert compiled(policyTypes=["Egress"]).rules == {OUT: Rules()}
    assert compiled(policyTypes=["Ingress", "Egress"]).rules == {IN: Rules(), OUT: Rules()}


def test_anybody_anything() -> None:
    assert ingress({}) == Rules((Rule(),), (Rule(),))
    assert compiled(ingress=[{}]).sets == {}


def test_peers_are_shared_sets_of_both_families() -> None:
    rule = Rule(Members(set_name(WEB)))
    assert ingress({"from": [pods("app=web")]}) == Rules((rule,), (rule,))
    assert compiled(ingress=[{"from": [pods("app=web")]}]).sets == {set_name(WEB): WEB}


def test_scopes_of_peers() -> None:
    peers = [pods(), spaces(), spaces("team=a"), spaces("team=a") | pods("app=web")]
    team, web = label_selector(select("team=a")), label_selector(select("app=web"))
    assert set(compiled(ingress=[{"from": peers}]).sets.values()) == {
        PodScope("shop", EVERYTHING),
        PodScope(EVERYTHING, EVERYTHING),
        PodScope(team, EVERYTHING),
        PodScope(team, web),
    }


def test_blocks_of_a_rule_are_one_list_by_family() -> None:
    found = ingress({"from": [block("10.0.0.0/9"), block("fd00::/8"), block("10.64.0.0/10")]})
    assert found == Rules((Rule(cidrs("10.0.0.0/9")),), (Rule(cidrs("fd00::/8")),))


def test_exceptions_are_cut_from_their_own_block_only() -> None:
    found = ingress({"from": [block("10.0.0.0/8", "10.0.0.0/9"), block("10.0.0.0/16")]})
    assert found.ipv4 == (Rule(cidrs("10.0.0.0/16", "10.128.0.0/9")),)


def test_a_block_of_which_nothing_is_left_allows_nobody() -> None:
    assert ingress({"from": [block("10.0.0.0/8", "0.0.0.0/0")]}) == Rules()


def test_a_block_of_the_other_family_is_none() -> None:
    assert ingress({"from": [block("10.0.0.0/8")]}).ipv6 == ()


def test_all_addresses_need_not_ask_for_nodes() -> None:
    whole = Blocks((prefix(bytes(4), 0),), "")
    assert ingress({"from": [block("0.0.0.0/0")]}).ipv4 == (Rule(whole),)
    assert compiled(ingress=[{"from": [block("0.0.0.0/0")]}]).sets == {}
    (one,) = ingress({"from": [block("0.0.0.0/0", "10.0.0.1/32")]}).ipv4
    assert isinstance(one.peer, Blocks)
    assert one.peer.nodes


def test_numbers_of_a_rule_are_one_list_and_names_stand_alone() -> None:
    rules = ingress(
        {
            "ports": [
                {"port": 443},
                {"port": "http"},
                {"port": 80, "endPort": 90},
                {"port": 85, "endPort": 99},
                {"port": 100},
                {"port": 53, "protocol": "UDP"},
            ]
        }
    )
    numbers = Ports((PortRange(6, 80, 100), PortRange(6, 443, 443), PortRange(17, 53, 53)))
    named = NamedPorts(set_name(PortScope("http", 6, here=True)))
    assert rules.ipv4 == rules.ipv6 == (Rule(None, numbers), Rule(None, named))


def test_a_port_without_a_number_swallows_the_others_of_its_protocol() -> None:
    rules = ingress({"ports": [{"port": 80}, {"protocol": "TCP"}, {"port": 1, "protocol": "SCTP"}]})
    assert rules.ipv4 == (Rule(None, Ports((PortRange(6, 0, 65535), PortRange(132, 1, 1)))),)


def test_names_are_resolved_at_local_pods_for_ingress_and_at_all_for_egress() -> None:
    rule = {"ports": [{"port": "http"}]}
    found = compiled(ingress=[rule], egress=[rule], policyTypes=["Ingress", "Egress"]).sets
    assert set(found.values()) == {PortScope("http", 6, here=True), PortScope("http", 6, here=False)}


def test_each_peer_with_each_port_once() -> None:
    rule = {"from": [pods("app=web"), block("10.0.0.0/8")], "ports": [{"port": 80}, {"port": "http"}]}
    rules = ingress(rule, rule)
    assert len(rules.ipv4) == 4
    assert len(rules.ipv6) == 2
    assert {each.peer for each in rules.ipv4} == {Members(set_name(WEB)), cidrs("10.0.0.0/8")}


def test_equal_meanings_have_equal_names_and_others_differ() -> None:
    one = PodScope("shop", label_selector({"matchLabels": {"a": "1", "b": "2"}}))
    same = PodScope(
        "shop",
        label_selector(
            {
                "matchLabels": {"b": "2"},
                "matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "1"]}],
            }
        ),
    )
    assert set_name(one) == set_name(same)
    others: list[Scope] = [
        PodScope("bank", one.pods),
        PodScope(EVERYTHING, one.pods),
        PodScope("shop", EVERYTHING),
        PodScope(one.pods, EVERYTHING),
        PortScope("http", 6, here=True),
        PortScope("http", 6, here=False),
        PortScope("http", 17, here=True),
        BlockScope((prefix(bytes(4), 8),)),
        BlockScope((prefix(bytes(16), 8),)),
    ]
    names = {set_name(each) for each in [one, *others]}
    assert len(names) == len(others) + 1
    assert all(len(name) < 32 for name in names)


def test_a_name_never_changes() -> None:
    """It is in the kernel while one release of the daemon replaces another."""
    assert set_name(WEB) == "peers-899496214fc75796"
