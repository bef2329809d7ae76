"""What the encoder writes, nft prints as the renderer does, and nft's own encoding of that text is ours."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from datapath.netlink.attributes import items
from datapath.nft import rules
from datapath.nft.connection import Nft
from datapath.nft.elements import intervals, key, prefix, verdict
from datapath.nft.encode import RULE_EXPRESSIONS, encode_table
from datapath.nft.plan import SetChange, change_elements, covers, plan, restructure
from datapath.nft.policy import SUBJECTS, dispatch_chain, policy_chains, policy_table
from datapath.nft.render import render, render_element
from datapath.nft.rules import (
    ACCEPT,
    CT_MARK,
    CT_STATE_FIELD,
    CT_STATUS_FIELD,
    DADDR_TYPE,
    DROP,
    IFNAME,
    IIFNAME,
    INET_PROTO,
    INET_SERVICE,
    IP6_DADDR,
    IP6_SADDR,
    IP_DADDR,
    IP_SADDR,
    IPV4_ADDR,
    IPV6_ADDR,
    L4PROTO,
    MARK,
    META_MARK,
    OIFNAME,
    RETURN,
    TCP_DPORT,
    TH_DPORT,
    UDP_DPORT,
    VERDICT,
    AnyOf,
    Chain,
    Counter,
    CtState,
    CtStatus,
    Equals,
    Family,
    Hook,
    HookPoint,
    InSet,
    MarkBits,
    Masquerade,
    NoTrack,
    Protocol,
    Reject,
    RejectKind,
    Ruleset,
    Set,
    Starts,
    Table,
    VerdictMap,
    goto,
    jump,
    rule,
)
from datapath.nft.services import REFUSE_CHAIN, SNAT_CHAIN, ServiceOptions
from datapath.nft.tables import TableOptions, node_tables
from datapath.policy import (
    Blocks,
    Direction,
    Members,
    NamedPorts,
    PortRange,
    Ports,
    Rule,
    Rules,
)
from tests.functional.nft.spaces import spaces

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.functional.nft.spaces import Space

pytestmark = pytest.mark.root


def everything(family: Family) -> tuple[Table, Mapping[str, Mapping[bytes, bytes]]]:
    """A table with each kind of statement, chain and set, and elements for the sets."""
    address, saddr, daddr = {
        Family.IPV4: (IPV4_ADDR, IP_SADDR, IP_DADDR),
        Family.IPV6: (IPV6_ADDR, IP6_SADDR, IP6_DADDR),
    }[family]
    network = bytes([10, 128, 0, 0]) if family is Family.IPV4 else bytes.fromhex("20010db8") + bytes(12)
    statements = (
        rule(Equals(saddr, network), Counter(), ACCEPT),
        rule(Equals(saddr, network, negate=True), DROP),
        rule(Starts(saddr, network, 9), RETURN),
        rule(Starts(daddr, network, 16, negate=True), RETURN),
        rule(Starts(IIFNAME, b"weft", 32), Starts(OIFNAME, b"eth", 24, negate=True), jump("leaf")),
        rule(Equals(OIFNAME, b"lo".ljust(16, b"\0")), goto("leaf")),
        rule(Equals(L4PROTO, bytes([Protocol.SCTP])), DROP),
        rule(Equals(TCP_DPORT, struct.pack("!H", 80)), Reject(RejectKind.TCP_RESET)),
        rule(Equals(UDP_DPORT, struct.pack("!H", 53)), Reject(), comment="a comment, with signs: <>"),
        rule(AnyOf(CT_STATE_FIELD, CtState.ESTABLISHED | CtState.RELATED), ACCEPT),
        rule(AnyOf(CT_STATUS_FIELD, CtStatus.DNAT), AnyOf(CT_STATE_FIELD, CtState.NEW), ACCEPT),
        rule(Equals(META_MARK, struct.pack("=I", 0x4000)), MarkBits(0x4000, clear=True)),
        rule(Equals(CT_MARK, struct.pack("=I", 7)), MarkBits(0x4000)),
        rule(InSet((daddr,), "addresses"), ACCEPT),
        rule(InSet((daddr,), "networks", negate=True), ACCEPT),
        rule(InSet((IIFNAME, saddr), "pairs"), ACCEPT),
        rule(InSet((saddr, daddr), "peers"), ACCEPT),
        rule(VerdictMap((IIFNAME,), "by-name")),
        rule(VerdictMap((daddr, L4PROTO, TH_DPORT), "by-service")),
        rule(VerdictMap((META_MARK,), "by-mark")),
    )
    table = Table(
        family,
        "weft",
        7,
        (
            Set("addresses", (address,)),
            Set("networks", (address,), interval=True),
            Set("pairs", (IFNAME, address)),
            Set("peers", (address, address), interval=True),
            Set("by-name", (IFNAME,), (VERDICT,)),
            Set("by-service", (address, INET_PROTO, INET_SERVICE), (VERDICT,)),
            Set("by-mark", (MARK,), (VERDICT,)),
            Set("ports", (INET_SERVICE,), (address,), constant=()),
        ),
        (
            Chain("leaf", ()),
            Chain("each", statements, Hook("filter", HookPoint.FORWARD, 5)),
            Chain(
                "early",
                (
                    rule(Equals(DADDR_TYPE, struct.pack("=I", 2)), ACCEPT),
                    rule(NoTrack()),
                ),
                Hook("filter", HookPoint.PREROUTING, -305),
            ),
            Chain("late", (rule(Masquerade()),), Hook("nat", HookPoint.POSTROUTING, 101)),
        ),
    )
    one = network[:-1] + b"\x09"
    service = (bytes([Protocol.TCP]), struct.pack("!H", 443))
    elements = {
        "addresses": {key(one): b"", key(network): b""},
        "networks": intervals([prefix(network, 16), prefix(one, len(one) * 8)]),
        "pairs": {key(b"weft1".ljust(16, b"\0"), one): b""},
        "peers": {key(network, one) + key(one, one): b""},
        "by-name": {key(b"weft1".ljust(16, b"\0")): verdict(goto("leaf"))},
        "by-service": {key(one, *service): verdict(DROP)},
        "by-mark": {
            key(struct.pack("=I", 2)): verdict(jump("leaf")),
            key(struct.pack("=I", 3)): verdict(RETURN),
        },
        "ports": {key(struct.pack("!H", 80)): key(one)},
    }
    return table, elements


def ruleset(table: Table, elements: Mapping[str, Mapping[bytes, bytes]]) -> Ruleset:
    return Ruleset((table,), {(*table.key, name): each for name, each in elements.items()})


@pytest.mark.parametrize("family", [Family.IPV4, Family.IPV6])
def test_every_kind_is_loaded_and_printed_as_rendered(space: Space, family: Family) -> None:
    table, elements = everything(family)
    with Nft(namespace=space.descriptor) as nft:
        nft.apply(plan(ruleset(table, elements), nft.read()))
        assert plan(ruleset(table, elements), nft.read()) == []
    assert space.run("nft", "--stateless", "--terse", "list", "ruleset") == render(table)


@pytest.mark.parametrize("family", [Family.IPV4, Family.IPV6])
def test_nft_encodes_the_text_as_we_do(family: Family) -> None:
    table, elements = everything(family)
    with spaces("theirs") as (space,), Nft(namespace=space.descriptor) as nft:
        space.nft(render(table, elements))
        found = plan(ruleset(table, elements), nft.read())
    assert [change for transaction in found for change in transaction.changes] == []


def test_the_skeleton_is_printed_as_rendered(space: Space) -> None:
    tables = node_tables(TableOptions(services=ServiceOptions(timeouts=(60, 10800))))
    with Nft(namespace=space.descriptor) as nft:
        nft.apply(plan(Ruleset(tables), nft.read()))
    listed = space.run("nft", "--stateless", "--terse", "list", "ruleset")
    assert listed == "".join(render(table) for table in tables)


def policies(family: Family) -> tuple[Table, Mapping[str, Mapping[bytes, bytes]]]:
    """A table of policies with every kind of peer and of ports, and elements for its sets."""
    one = bytes(15 if family is Family.IPV6 else 3) + b"\x09"
    block = prefix(one, len(one) * 8 - 4)
    peers = (
        None,
        Members("peers-1"),
        Blocks((block,), ""),
        Blocks((block,), "nodes-1"),
        Blocks((), "nodes-1"),
    )
    ports = (
        None,
        Ports((PortRange(6, 80, 80), PortRange(17, 1, 65535), PortRange(132, 5, 9))),
        NamedPorts("named-1"),
    )
    rules_ = tuple(Rule(peer, port) for peer in peers for port in ports)
    chains: list[Chain] = []
    sets: dict[str, Set] = {}
    elements: dict[str, Mapping[bytes, bytes]] = {}
    link = key(b"weft1".ljust(16, b"\0"))
    for direction in Direction:
        part = policy_chains("shop/p", direction, family, Rules(rules_, rules_))
        empty = policy_chains("shop/q", direction, family, Rules())
        dispatch = dispatch_chain(direction, [empty, part])
        sets.update({each.name: each for each in part.sets})
        elements.update(part.static)
        chains += [part.chain, empty.chain, dispatch]
        elements[SUBJECTS[direction]] = {link: verdict(goto(dispatch.name))}
    elements |= {"peers-1": {key(one): b""}, "nodes-1": {key(one): b""}, "tunnels": {key(one): b""}}
    elements |= {"itself": {link + link: b""}, "named-1": {key(one, b"\x06", b"\0\x50"): b""}}
    return policy_table(family, sets.values(), chains), elements


@pytest.mark.parametrize("family", [Family.IPV4, Family.IPV6])
def test_policies_are_loaded_and_printed_as_rendered(space: Space, family: Family) -> None:
    table, elements = policies(family)
    with Nft(namespace=space.descriptor) as nft:
        nft.apply(plan(ruleset(table, elements), nft.read()))
        assert plan(ruleset(table, elements), nft.read()) == []
    assert space.run("nft", "--stateless", "--terse", "list", "ruleset") == render(table)


@pytest.mark.parametrize("family", [Family.IPV4, Family.IPV6])
def test_policies_come_and_go_beside_others_without_a_reading(space: Space, family: Family) -> None:
    plain, (full, elements) = policy_table(family), policies(family)
    keyed = {(*full.key, name): each for name, each in elements.items()}
    with Nft(namespace=space.descriptor) as nft:
        for old, new in ((None, plain), (plain, full), (full, plain), (plain, None)):
            steps = restructure(old, new)
            assert steps is not None
            nft.apply(steps)
            if new is full:
                nft.apply(
                    change_elements(
                        SetChange(full, each, {}, elements[each.name])
                        for each in full.sets
                        if each.name in elements
                    )
                )
                assert plan(Ruleset((full,), keyed), nft.read()) == []
                gone = [
                    SetChange(full, each, elements[each.name], {})
                    for each in full.sets
                    if each.name in elements
                ]
                nft.apply(change_elements(gone))
            assert plan(Ruleset((new,) if new is not None else ()), nft.read()) == []


def by_expression(table: Table) -> str:
    """The table's text with the keys and data of maps declared by what they are in rules.

    We need no such words: to the kernel widths are all. To nft a random number is no mark.
    """
    text = render(table, {})
    for each in table.sets:
        name = rules.MARK.name
        if MARK in (*each.key, *each.data) and each.data != (VERDICT,):
            words = render(Table(table.family, "t", 1, (each,), ())).split("\n")[3].strip()
            key, _, data = words.removeprefix("type ").partition(" : ")
            parts = [SELECTORS[table.family].get(part, part) for part in key.split(" . ")]
            if each.dynamic:
                parts[0] = parts[0].replace("daddr", "saddr")
            key = " . ".join(parts).replace(
                name, "meta priority" if "sticky" in each.name else "numgen random mod 2"
            )
            data = " . ".join(SELECTORS[table.family].get(part, part) for part in data.split(" . "))
            data = data.replace(name, "meta priority")
            block = f" {each.name} {{\n\t\t{words}\n"
            assert block in text
            text = text.replace(block, f" {each.name} {{\n\t\ttypeof {key} : {data}\n")
        elif MARK in each.key:
            text = text.replace(
                f" {each.name} {{\n\t\ttype mark", f" {each.name} {{\n\t\ttypeof meta priority"
            )
            for encoded, _ in each.constant:
                number = struct.unpack("=I", encoded)[0]
                text = text.replace(f"0x{number:08x} : ", f"0:{number:x} : ")
    return text


NFTS_OWN_WAY = {
    SNAT_CHAIN,  # by_expression leaves a rule of it out
    REFUSE_CHAIN,  # where the test for TCP stands before a reset
    "prerouting-ranges",  # turns the byte order of the protocol's one byte
    "output-ranges",
}
SELECTORS = {
    Family.IPV4: {"ipv4_addr": "ip daddr", "inet_proto": "meta l4proto", "inet_service": "th dport"},
    Family.IPV6: {"ipv6_addr": "ip6 daddr", "inet_proto": "meta l4proto", "inet_service": "th dport"},
}


@pytest.mark.parametrize("family", [0, 1])
def test_nft_encodes_the_skeleton_as_we_do(space: Space, family: int) -> None:
    options = TableOptions(services=ServiceOptions(common=2))
    table = node_tables(options)[family]
    # Of `meta nfproto` nft says that it is of no use in these families: here it is a constant.
    space.nft(by_expression(table).replace("snat to meta nfproto map @node-source fully-random", ""))
    with Nft(namespace=space.descriptor) as nft:
        found = nft.read().tables[table.key]
    for name, chain in encode_table(table).chains.items():
        if name in NFTS_OWN_WAY:
            continue
        ours = [dict(items(each))[RULE_EXPRESSIONS] for each in chain.rules]
        theirs = [each.expressions for each in found.chains[name].rules]
        assert len(ours) == len(theirs), name
        for mine, other in zip(ours, theirs, strict=True):
            pairs = zip(items(mine), items(other), strict=True)
            assert all(covers(expression, another) for (_, expression), (_, another) in pairs), name


def test_the_icmpv6_types_have_nfts_names(space: Space) -> None:
    table = Table(Family.IPV6, "weft", 1, (Set("types", (rules.ICMPV6_TYPE,)),), ())
    numbers = (*range(1, 5), *range(128, 138), 143)
    with Nft(namespace=space.descriptor) as nft:
        types = {key(bytes([number])): b"" for number in numbers}
        nft.apply(plan(ruleset(table, {"types": types}), nft.read()))
    words = space.run("nft", "list", "ruleset").replace(",", " ").split()
    names = {render_element(table.sets[0], each) for each in types}
    assert names <= set(words)
