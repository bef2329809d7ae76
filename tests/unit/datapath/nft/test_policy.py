"""Policies as chains and sets: what they are called, what they look up, and what a packet meets."""

from __future__ import annotations

import pytest

from datapath.nft.elements import Range, interface, key, verdict
from datapath.nft.policy import (
    DENIED,
    DENY,
    FAMILIES,
    ITSELF,
    LAYOUT,
    SUBJECTS,
    TABLE,
    TUNNELS,
    DenialLog,
    closed_fragment,
    dispatch_chain,
    policy_chains,
    policy_table,
    subject_elements,
)
from datapath.nft.render import render
from datapath.nft.rules import Family, HookPoint, goto
from datapath.policy import Blocks, Direction, Members, NamedPorts, PortRange, Ports, Rule, Rules

IN, OUT = Direction.INGRESS, Direction.EGRESS
FOUR, SIX = Family.IPV4, Family.IPV6
RANGE4 = Range(bytes([10, 0, 0, 0]), bytes([10, 0, 0, 255]))
RANGE6 = Range(bytes(16), bytes(15) + b"\xff")
PORTS = Ports((PortRange(6, 80, 80), PortRange(17, 53, 54)))


def text(rules: Rules, direction: Direction = IN, family: Family = FOUR) -> list[str]:
    """The rules of a policy shop/p in nft's words."""
    found = policy_chains("shop/p", direction, family, rules)
    lines = render(policy_table(family, found.sets, (found.chain,))).split(f"chain {found.chain.name} ")[1]
    return [line.strip() for line in lines.split("}")[0].split("\n") if line.startswith("\t\t")]


def four(*rules: Rule) -> Rules:
    return Rules(ipv4=rules)


def six(*rules: Rule) -> Rules:
    return Rules(ipv6=rules)


@pytest.mark.parametrize(
    ("direction", "family", "rules", "peer"),
    [
        (IN, FOUR, four(Rule(Members("peers-1"))), "ip saddr @peers-1"),
        (OUT, FOUR, four(Rule(Members("peers-1"))), "ip daddr @peers-1"),
        (IN, SIX, six(Rule(Members("peers-1"))), "ip6 saddr @peers-1"),
        (OUT, SIX, six(Rule(Members("peers-1"))), "ip6 daddr @peers-1"),
    ],
)
def test_the_peer_is_at_the_other_end(direction: Direction, family: Family, rules: Rules, peer: str) -> None:
    assert text(rules, direction, family) == [f'{peer} counter accept comment "shop/p"']


def test_a_rule_for_everything_looks_nothing_up() -> None:
    assert text(four(Rule())) == ['counter accept comment "shop/p"']


def test_a_block_is_asked_for_nodes_first_and_says_nothing_about_the_others() -> None:
    first, second = text(four(Rule(Blocks((RANGE4,), "nodes-1"))))
    assert first.startswith("ip saddr @nodes-1 ")
    assert second.startswith("ip saddr != @tunnels ip saddr @blocks-")


def test_a_block_of_all_addresses_holds_nodes_too() -> None:
    (only,) = text(four(Rule(Blocks((RANGE4,), ""))))
    assert only.startswith("ip saddr @blocks-")


def test_a_block_without_addresses_of_the_family_is_its_nodes() -> None:
    (only,) = text(six(Rule(Blocks((), "nodes-1"))), IN, SIX)
    assert only.startswith("ip6 saddr @nodes-1 ")


def test_ports_come_after_the_peer() -> None:
    (only,) = text(four(Rule(Members("peers-1"), PORTS)))
    assert only.startswith("ip saddr @peers-1 meta l4proto . th dport @ports-")


@pytest.mark.parametrize("direction", [IN, OUT])
def test_a_named_port_is_the_destinations(direction: Direction) -> None:
    (only,) = text(four(Rule(ports=NamedPorts("named-1"))), direction)
    assert only.startswith("ip daddr . meta l4proto . th dport @named-1 ")


def test_what_a_set_holds_is_told_with_it() -> None:
    found = policy_chains("shop/p", IN, FOUR, four(Rule(Blocks((RANGE4,), ""), PORTS)))
    held = dict(found.static)
    assert {each.name for each in found.sets} == held.keys()
    (ports,) = [each for name, each in held.items() if name.startswith("ports-")]
    assert set(ports) == {
        key(b"\x06", b"\0\x50") + key(b"\x06", b"\0\x50"),
        key(b"\x11", b"\0\x35") + key(b"\x11", b"\0\x36"),
    }


def test_a_name_says_what_is_in_it() -> None:
    one = policy_chains("shop/p", IN, FOUR, four(Rule(Members("peers-1"))))
    assert one == policy_chains("shop/p", IN, FOUR, four(Rule(Members("peers-1"))))
    others = [
        policy_chains("shop/q", IN, FOUR, four(Rule(Members("peers-1")))),
        policy_chains("shop/p", OUT, FOUR, four(Rule(Members("peers-1")))),
        policy_chains("shop/p", IN, FOUR, four(Rule(Members("peers-2")))),
        policy_chains("shop/p", IN, FOUR, four(Rule(Members("peers-1"), PORTS))),
        policy_chains("shop/p", IN, FOUR, four()),
    ]
    names = {each.chain.name for each in (one, *others)}
    assert len(names) == 6
    assert all(len(each) < 32 for each in names)


def test_a_pod_is_asked_for_policy_by_policy_and_then_denied() -> None:
    empty = policy_chains("shop/a", IN, FOUR, four())
    some = policy_chains("shop/b", IN, FOUR, four(Rule()))
    chain = dispatch_chain(IN, [empty, some])
    table = policy_table(FOUR, (), (some.chain, chain))
    assert f"\t\tjump {some.chain.name}\n\t\tgoto {DENY[IN]}\n" in render(table)
    assert chain.name != dispatch_chain(IN, [some]).name
    assert len(dispatch_chain(OUT, []).rules) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_asks_the_sender_before_the_receiver(family: Family) -> None:
    table = policy_table(family)
    hooks = {each.name: each.hook for each in table.chains if each.hook}
    assert {name: (hook.point, hook.priority) for name, hook in hooks.items()} == {
        "egress": (HookPoint.FORWARD, 5),
        "ingress": (HookPoint.FORWARD, 6),
        "to-node": (HookPoint.INPUT, 5),
        "from-node": (HookPoint.OUTPUT, 5),
    }
    names = [each.name for each in table.chains]
    assert names.index(DENY[IN]) < names.index("egress"), "what is led to comes first"
    assert table.layout == LAYOUT


@pytest.mark.parametrize("chain", ["egress", "to-node"])
def test_what_is_cut_is_dropped_before_what_began_is_accepted(chain: str) -> None:
    words = render(policy_table(FOUR)).split(f"chain {chain} ")[1].split("}")[0]
    cut = words.index("ct mark & 0x08000000 != 0x00000000 counter drop")
    assert cut < words.index("ct state established,related accept")


def test_only_who_called_resumes_a_connection() -> None:
    text = render(policy_table(FOUR), {})
    chains = {name: text.split(f"chain {name} ")[1].split("}")[0] for name in ("egress", "from-node")}
    from_called = "tcp flags != @bare-syn iifname @ingress-denied drop"
    to_caller = "tcp flags != @bare-syn oifname @egress-denied drop"
    begun = chains["egress"].index("ct state established,related accept")
    assert begun < chains["egress"].index(from_called) < chains["egress"].index(to_caller)
    assert chains["egress"].index(to_caller) < chains["egress"].index("vmap")
    assert from_called not in chains["from-node"], "a node reaches its own pods"
    assert chains["from-node"].index("untracked accept") < chains["from-node"].index(to_caller)
    assert "syn,\n\t\t\t     syn | ecn" in text


def test_neighbours_are_found_whatever_policies_say() -> None:
    chain = render(policy_table(SIX)).split("chain to-node")[1]
    assert chain.index("icmpv6 type @neighbour-discovery accept") < chain.index("vmap")
    assert "neighbour-discovery" not in render(policy_table(FOUR))


def test_elements_of_a_subject() -> None:
    found = {each.key: each.elements for each in subject_elements("weft1", {(FOUR, IN): "chain-1"})}
    link = key(interface("weft1"))
    assert found == {
        (FOUR, TABLE, SUBJECTS[IN]): {link: verdict(goto("chain-1"))},
        (FOUR, TABLE, DENIED[IN]): {link: b""},
        (FOUR, TABLE, ITSELF): {link + link: b""},
    }


@pytest.mark.parametrize("directions", [(IN,), (OUT,), (IN, OUT)])
def test_birth_brings_tables_and_a_denial_per_family(directions: tuple[Direction, ...]) -> None:
    fragment = closed_fragment("weft1", directions)
    assert fragment.tables == tuple(policy_table(each) for each in FAMILIES)
    found = {each.key: each.elements for each in fragment.elements if each.key[2] != ITSELF}
    link = key(interface("weft1"))
    for family in FAMILIES:
        for each in directions:
            assert found.pop((family, TABLE, SUBJECTS[each])) == {link: verdict(goto(DENY[each]))}
            assert found.pop((family, TABLE, DENIED[each])) == {link: b""}
    assert not found


@pytest.mark.parametrize("family", FAMILIES)
def test_denied_packets_are_told_before_they_are_counted_and_dropped(family: Family) -> None:
    table = policy_table(family, log=DenialLog(119, 10))
    for direction, link in ((IN, "oifname"), (OUT, "iifname")):
        chain = render(table).split(f"chain {DENY[direction]} ")[1].split("}")[0]
        told, counted, rest = [each.strip() for each in chain.split("\n") if each.startswith("\t\t")]
        assert told.startswith("limit rate 10/second burst 20 packets log prefix")
        assert told.endswith(f'"weft-policy {direction.value}" group 119 snaplen 128')
        assert counted.startswith(f"{link} @{DENIED[direction]} drop ")
        assert rest == "counter drop"


def test_the_tunnels_are_a_set_of_every_table() -> None:
    assert all(TUNNELS in {each.name for each in policy_table(family).sets} for family in FAMILIES)
