"""How packets pass the hooks of a host: order, routes, translation, chance."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest

from datapath.nft.elements import Range, key
from datapath.nft.evaluation import Packet
from datapath.nft.policy import DENY, TABLE, dispatch_chain, policy_chains, policy_table, subject_elements
from datapath.nft.rules import (
    CT_STATUS_FIELD,
    DROP,
    IIFNAME,
    INET_SERVICE,
    IP_DADDR,
    IP_SADDR,
    IPV4_ADDR,
    MARK,
    META_MARK,
    AnyOf,
    Chain,
    CtStatus,
    Equals,
    Family,
    Hook,
    HookPoint,
    Lookup,
    MarkBits,
    Masquerade,
    NoTrack,
    RandomNumber,
    Reject,
    Ruleset,
    Set,
    Table,
    Translate,
    rule,
)
from datapath.policy import Blocks, Direction, PortRange, Ports, Rules
from datapath.policy import Rule as PolicyRule
from datapath.trace import Fate, Host, Route, trace

if TYPE_CHECKING:
    from datapath.desired import SetKey
    from datapath.nft.rules import Rule
    from datapath.trace import Path

POD, VIP, OURS, PEER = b"\x0a\0\0\x02", b"\x0a\x60\0\x01", b"\xc0\0\2\1", b"\x0a\0\1\x02"
CLIENT = b"\x0a\0\0\x03"
HOST = Host(
    frozenset({OURS}),
    (
        Route(b"\0\0\0\0", 0, "eth0"),
        Route(b"\x0a\0\1\0", 24, "tunnel"),
        Route(POD, 32, "weft0"),
    ),
    {("eth0", 4): OURS, ("tunnel", 4): b"\x0a\0\0\0"},
)
BACKENDS = Set("backends", (IPV4_ADDR, MARK), (IPV4_ADDR, INET_SERVICE))
TO_BACKEND = rule(Translate(Lookup((IP_DADDR, RandomNumber(2)), "backends")))


def base(point: HookPoint, *rules: Rule, kind: str = "filter", priority: int = 0, name: str = "") -> Chain:
    return Chain(name or f"{kind}-{point.name}-{priority}", rules, Hook(kind, point, priority))


def go(
    *chains: Chain,
    backends: tuple[bytes, bytes] = (PEER, POD),
    host: Host = HOST,
    more: tuple[Table, dict[SetKey, dict[bytes, bytes]]] | None = None,
    **packet: Any,
) -> list[Path]:
    table = Table(Family.IPV4, "t", 1, (BACKENDS,), chains)
    elements = {
        VIP + struct.pack("=I", number): address + key(b"\x1f\x90") for number, address in enumerate(backends)
    }
    usual = {"protocol": 6, "source": POD, "destination": PEER, "destination_port": 80, "iif": "weft0"}
    sent = Packet(Family.IPV4, **{**usual, **packet})
    before = repr(sent)
    ruleset = Ruleset((table,), {(2, "t", "backends"): elements})
    if more is not None:
        ruleset = Ruleset((table, more[0]), {**ruleset.elements, **more[1]})
    paths = trace(ruleset, sent, host)
    assert repr(sent) == before
    assert sum(path.chance for path in paths) == 1
    return list(paths)


def fate(*chains: Chain, **packet: Any) -> Fate:
    (path,) = go(*chains, **packet)
    return path.fate


def test_where_packets_go_without_rules() -> None:
    (path,) = go()
    assert (path.fate, path.packet.oif, path.chance) == (Fate.SENT, "tunnel", Fraction(1))
    assert fate(destination=OURS) is Fate.DELIVERED
    assert fate(host=Host(frozenset())) is Fate.UNROUTED
    assert fate(iif="", source=OURS) is Fate.SENT
    assert fate(iif="", source=OURS, host=Host(frozenset({OURS}))) is Fate.UNROUTED
    assert go(destination=b"\x08\x08\x08\x08")[0].packet.oif == "eth0"


@pytest.mark.parametrize(
    ("packet", "points"),
    [
        ({}, {HookPoint.PREROUTING, HookPoint.FORWARD, HookPoint.POSTROUTING}),
        ({"destination": OURS}, {HookPoint.PREROUTING, HookPoint.INPUT}),
        ({"iif": "", "source": OURS}, {HookPoint.OUTPUT, HookPoint.POSTROUTING}),
        (
            {"iif": "", "source": OURS, "destination": OURS},
            {HookPoint.OUTPUT, HookPoint.POSTROUTING, HookPoint.PREROUTING, HookPoint.INPUT},
        ),
    ],
)
def test_the_hooks_on_the_way(packet: dict[str, Any], points: set[HookPoint]) -> None:
    for point in HookPoint:
        expected = Fate.DROPPED if point in points else go(**packet)[0].fate
        assert fate(base(point, rule(DROP)), **packet) is expected


def test_hooks_are_asked_by_priority_and_a_chains_end_is_not_the_packets() -> None:
    first = base(HookPoint.FORWARD, rule(MarkBits(1)), priority=-10)
    second = base(HookPoint.FORWARD, rule(Equals(META_MARK, struct.pack("=I", 1)), Reject()), priority=5)
    assert fate(second, first) is Fate.REFUSED
    (path,) = go(second, first)
    assert [(step.chain, step.hook) for step in path.steps] == [
        (first.name, HookPoint.FORWARD),
        (second.name, HookPoint.FORWARD),
    ]
    assert path.steps[1].rule is second.rules[0]


def test_every_outcome_of_chance_is_followed() -> None:
    remote, local = go(
        base(HookPoint.PREROUTING, TO_BACKEND, kind="nat"), destination=VIP, source=b"\1\1\1\1"
    )
    assert (remote.packet.destination, remote.packet.oif) == (PEER, "tunnel")
    assert (local.packet.destination, local.packet.oif) == (POD, "weft0")
    assert remote.chance == local.chance == Fraction(1, 2)


def test_local_packets_are_routed_again_after_translation() -> None:
    dnat = base(HookPoint.OUTPUT, TO_BACKEND, kind="nat", priority=-100)
    masquerade = base(HookPoint.POSTROUTING, rule(Masquerade()), kind="nat", priority=100)
    remote, local = go(dnat, masquerade, destination=VIP, source=OURS, iif="")
    assert (remote.packet.oif, remote.packet.source) == ("tunnel", b"\x0a\0\0\0")
    assert (local.packet.oif, local.fate) == ("weft0", Fate.DROPPED), "no address to masquerade with"


def test_the_first_chain_that_translates_is_the_last_that_is_asked() -> None:
    dnat = base(HookPoint.PREROUTING, TO_BACKEND, kind="nat", priority=-100)
    later = base(HookPoint.PREROUTING, rule(DROP), kind="nat", priority=0)
    filtered = base(HookPoint.PREROUTING, rule(AnyOf(CT_STATUS_FIELD, CtStatus.DNAT), DROP), priority=10)
    assert {path.fate for path in go(dnat, later, destination=VIP)} == {Fate.SENT}
    assert {path.fate for path in go(dnat, later)} == {Fate.DROPPED}
    assert {path.fate for path in go(dnat, filtered, destination=VIP)} == {Fate.DROPPED}


def test_untracked_packets_are_not_translated() -> None:
    raw = base(HookPoint.PREROUTING, rule(NoTrack()), priority=-300)
    dnat = base(HookPoint.PREROUTING, TO_BACKEND, kind="nat", priority=-100)
    (path,) = go(raw, dnat, destination=VIP)
    assert path.packet.destination == VIP


def test_what_a_host_sends_to_itself_is_translated_once() -> None:
    dnat = [base(point, rule(DROP), kind="nat") for point in (HookPoint.PREROUTING,)]
    assert fate(*dnat, iif="", source=OURS, destination=OURS) is Fate.DELIVERED
    loop = base(HookPoint.INPUT, rule(Equals(IIFNAME, b"lo".ljust(16, b"\0")), Reject()))
    assert fate(loop, iif="", source=OURS, destination=OURS) is Fate.REFUSED
    assert fate(loop, destination=OURS) is Fate.DELIVERED


def test_policies_see_packets_between_the_translations() -> None:
    """They ask who is behind a service, and see a client's address that is replaced afterwards."""
    services = (
        base(HookPoint.PREROUTING, TO_BACKEND, kind="nat", priority=-100),
        base(HookPoint.POSTROUTING, rule(Masquerade()), kind="nat", priority=100),
    )
    allowed = Rules(ipv4=(PolicyRule(Blocks((Range(PEER, PEER),), ""), Ports((PortRange(6, 8080, 8080),))),))
    part = policy_chains("default/out", Direction.EGRESS, Family.IPV4, allowed)
    subject = dispatch_chain(Direction.EGRESS, [part])
    elements = {(2, TABLE, name): dict(each) for name, each in part.static}
    for each in subject_elements("weft1", {(Family.IPV4, Direction.EGRESS): subject.name}):
        elements[each.key] = dict(each.elements)
    policies = policy_table(Family.IPV4, part.sets, (part.chain, subject))
    found = go(*services, destination=VIP, iif="weft1", source=CLIENT, more=(policies, elements))
    remote, local = found
    assert (remote.fate, remote.packet.source) == (Fate.SENT, b"\x0a\0\0\0")
    assert (local.fate, local.packet.destination) == (Fate.DROPPED, POD)
    assert local.steps[-1].chain == DENY[Direction.EGRESS]


def test_other_families_tables_are_not_asked() -> None:
    chain = base(HookPoint.PREROUTING, rule(Equals(IP_SADDR, POD), DROP))
    table = Table(Family.IPV6, "t", 1, (), (chain,))
    packet = Packet(Family.IPV4, 6, POD, PEER, 80, iif="weft0")
    assert trace(Ruleset((table,)), packet, HOST)[0].fate is Fate.SENT


def test_too_many_ways_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datapath.trace.MOST_PATHS", 1)
    with pytest.raises(ValueError, match="more than 1 ways"):
        go(base(HookPoint.PREROUTING, TO_BACKEND, kind="nat"), destination=VIP)
