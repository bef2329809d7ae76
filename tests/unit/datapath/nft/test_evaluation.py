"""What each statement means, on tables of a few rules."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest

from datapath.nft.elements import interface, intervals, key, prefix, verdict
from datapath.nft.evaluation import End, Evaluation, Packet, Surroundings
from datapath.nft.rules import (
    ACCEPT,
    CT_MARK,
    CT_STATE_FIELD,
    CT_STATUS_FIELD,
    DADDR_TYPE,
    DROP,
    FIB_ADDRTYPE,
    IIFNAME,
    INET_SERVICE,
    IP_DADDR,
    IP_SADDR,
    IPV4_ADDR,
    L4PROTO,
    MARK,
    META_MARK,
    META_PRIORITY,
    NFPROTO,
    OIFNAME,
    RETURN,
    SADDR_TYPE,
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
    Fib,
    Forget,
    InSet,
    Lookup,
    MarkBits,
    Masked,
    Masquerade,
    NoTrack,
    RandomNumber,
    Reject,
    RejectKind,
    Remember,
    Set,
    SetPriority,
    Starts,
    Table,
    Translate,
    VerdictMap,
    goto,
    jump,
    rule,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datapath.nft.evaluation import Memory
    from datapath.nft.rules import Rule, Statement

A, B, OURS = b"\x0a\0\0\x01", b"\x0a\0\0\x02", b"\x0a\0\0\x09"
TEN = prefix(b"\x0a\0\0\0", 8)
SETS = (
    Set("clients", (IPV4_ADDR,)),
    Set("ranges", (IPV4_ADDR,), interval=True),
    Set("ports", (INET_SERVICE, IPV4_ADDR), interval=True),
    Set("words", (IPV4_ADDR,), (MARK,)),
    Set("backends", (IPV4_ADDR, MARK), (IPV4_ADDR, INET_SERVICE)),
    Set("nodes", (NFPROTO.type,), (IPV4_ADDR,)),
    Set("ways", (MARK,), (VERDICT,), constant=((struct.pack("=I", 1), verdict(goto("other"))),)),
    Set("memory", (IPV4_ADDR,), (MARK,), dynamic=True),
)


def word(number: int) -> bytes:
    return struct.pack("=I", number)


class Run:
    """One packet through one chain."""

    def __init__(
        self,
        *rules: Rule,
        other: tuple[Rule, ...] = (),
        elements: Mapping[str, Mapping[bytes, bytes]] | None = None,
        memory: Memory | None = None,
        draw: int = 0,
        masquerade: bytes | None = OURS,
        **packet: Any,
    ) -> None:
        self.noted: list[tuple[str, int]] = []
        self.memory: Memory = {} if memory is None else memory
        usual: dict[str, Any] = {"protocol": 6, "source": A, "destination": B, "destination_port": 80}
        self.packet = Packet(Family.IPV4, **{**usual, **packet})
        chain = Chain("base", rules)
        table = Table(Family.IPV4, "t", 1, SETS, (chain, Chain("other", other)))
        around = Surroundings(
            lambda address: address == OURS,
            lambda _: masquerade,
            lambda below: draw % below,
            lambda name, number: self.noted.append((name, number)),
        )
        self.end = Evaluation(table, elements or {}, self.memory, around).base(chain, self.packet)


@pytest.mark.parametrize(
    ("statement", "packet", "matches"),
    [
        (Equals(IP_SADDR, A), {}, True),
        (Equals(IP_SADDR, B), {}, False),
        (Equals(IP_SADDR, B, negate=True), {}, True),
        (Equals(TH_DPORT, b"\0\x50"), {}, True),
        (Equals(TCP_DPORT, b"\0\x50"), {}, True),
        (Equals(UDP_DPORT, b"\0\x50"), {}, False),
        (Equals(UDP_DPORT, b"\0\x51", negate=True), {}, False),
        (Equals(L4PROTO, b"\x11"), {"protocol": 17}, True),
        (Equals(NFPROTO, b"\x02"), {}, True),
        (Equals(META_MARK, word(7)), {"mark": 7}, True),
        (Equals(CT_MARK, word(0)), {}, True),
        (Equals(SADDR_TYPE, word(2)), {"source": OURS}, True),
        (Equals(SADDR_TYPE, word(2)), {}, False),
        (Equals(DADDR_TYPE, word(2)), {"destination": OURS}, True),
        (Equals(IIFNAME, b"lo".ljust(16, b"\0")), {"iif": "lo"}, True),
        (Starts(IIFNAME, b"weft", 32), {"iif": "weft0123"}, True),
        (Starts(OIFNAME, b"weft.", 40, negate=True), {"oif": "weft0123"}, True),
        (Starts(IP_DADDR, b"\x0a\x80\0\0", 9), {}, False),
        (Starts(IP_DADDR, b"\x0a\0\0\0", 9), {}, True),
        (AnyOf(CT_STATE_FIELD, CtState.NEW), {}, True),
        (AnyOf(CT_STATE_FIELD, CtState.NEW), {"state": CtState.ESTABLISHED}, False),
        (AnyOf(CT_STATUS_FIELD, CtStatus.DNAT), {}, False),
        (Equals(Masked(META_PRIORITY, 0xFFFF), word(3)), {"priority": 0x10003}, True),
        (InSet((IP_SADDR,), "clients"), {}, True),
        (InSet((IP_DADDR,), "clients"), {}, False),
        (InSet((IP_DADDR,), "clients", negate=True), {}, True),
        (InSet((IP_DADDR,), "ranges"), {}, True),
        (InSet((IP_DADDR,), "ranges"), {"destination": b"\x0b\0\0\x01"}, False),
        (InSet((TH_DPORT, IP_SADDR), "ports"), {}, True),
        (InSet((TH_DPORT, IP_SADDR), "ports"), {"destination_port": 81}, False),
        (InSet((UDP_DPORT, IP_SADDR), "ports", negate=True), {}, False),
        (Counter(), {}, True),
    ],
)
def test_matches(statement: Statement, packet: dict[str, Any], matches: bool) -> None:
    port = key(b"\0\x50")
    elements = {
        "clients": {A: b""},
        "ranges": intervals([TEN]),
        "ports": {port + TEN.first + port + TEN.last: b""},
    }
    run = Run(rule(statement, DROP), elements=elements, **packet)
    assert run.end is (End.DROPPED if matches else End.ACCEPTED)
    assert run.noted == ([("base", 0)] if matches else [])


def test_verdicts_lead_through_chains_and_back() -> None:
    assert Run(rule(ACCEPT), rule(DROP)).end is End.ACCEPTED
    assert Run(rule(jump("other")), rule(DROP)).end is End.DROPPED
    assert Run(rule(jump("other")), rule(DROP), other=(rule(RETURN), rule(ACCEPT))).end is End.DROPPED
    assert Run(rule(jump("other")), rule(DROP), other=(rule(ACCEPT),)).end is End.ACCEPTED
    assert Run(rule(goto("other")), rule(DROP)).end is End.ACCEPTED
    assert Run(rule(RETURN), rule(DROP)).end is End.ACCEPTED
    run = Run(rule(jump("other")), rule(DROP), other=(rule(NoTrack()),))
    assert run.noted == [("base", 0), ("other", 0), ("base", 1)]
    assert run.packet.state is CtState.UNTRACKED


def test_a_verdict_map_leads_where_it_says_or_ends_the_rule() -> None:
    way = VerdictMap((META_PRIORITY,), "ways")
    assert Run(rule(way), other=(rule(DROP),), priority=1).end is End.DROPPED
    assert Run(rule(way, DROP), other=(rule(DROP),), priority=2).end is End.ACCEPTED


def test_priority_and_mark() -> None:
    run = Run(
        rule(SetPriority(Lookup((IP_SADDR,), "words")), MarkBits(2)),
        rule(SetPriority(Lookup((IP_DADDR,), "words")), MarkBits(8)),
        rule(MarkBits(1, clear=True)),
        elements={"words": {A: word(9)}},
        mark=1,
    )
    assert (run.packet.priority, run.packet.mark) == (9, 2)
    assert Run(rule(SetPriority(0)), priority=5).packet.priority == 0


def test_destination_nat_to_what_a_map_holds() -> None:
    to = rule(Translate(Lookup((IP_DADDR, RandomNumber(2, 4)), "backends")))
    elements = {"backends": {B + word(5): A + key(b"\x1f\x90")}}
    run = Run(to, rule(DROP), elements=elements, draw=1)
    assert (run.packet.destination, run.packet.destination_port) == (A, 8080)
    assert run.packet.status is CtStatus.DNAT
    assert run.end is End.ACCEPTED
    assert Run(to, rule(DROP), elements=elements, draw=0).end is End.DROPPED


def test_source_nat() -> None:
    to = rule(Translate(Lookup((NFPROTO,), "nodes"), port=False, source=True))
    run = Run(to, rule(DROP), elements={"nodes": {key(b"\x02"): OURS}})
    assert (run.packet.source, run.packet.destination_port, run.end) == (OURS, 80, End.ACCEPTED)
    run = Run(rule(Masquerade()))
    assert (run.packet.source, run.packet.status, run.end) == (OURS, CtStatus.SNAT, End.ACCEPTED)
    assert Run(rule(Masquerade()), masquerade=None).end is End.DROPPED


def test_only_tcp_can_be_reset() -> None:
    rules = (rule(Reject(RejectKind.TCP_RESET)), rule(DROP))
    assert Run(*rules).end is End.REFUSED
    assert Run(*rules, protocol=17).end is End.DROPPED
    assert Run(rule(Reject()), protocol=17).end is End.REFUSED


def test_rules_remember_and_forget() -> None:
    memory: Memory = {}
    remember = rule(Remember("memory", (IP_SADDR,), META_PRIORITY, 60))
    Run(remember, memory=memory, priority=4)
    assert memory == {(2, "memory"): {A: word(4)}}
    Run(remember, memory=memory, priority=5)
    assert memory[2, "memory"][A] == word(4), "what is remembered is only prolonged"
    assert Run(rule(SetPriority(Lookup((IP_SADDR,), "memory"))), memory=memory).packet.priority == 4
    Run(rule(Forget("memory", (IP_SADDR,), META_PRIORITY)), memory=memory)
    assert memory == {(2, "memory"): {}}
    Run(rule(Forget("memory", (IP_SADDR,), META_PRIORITY)), memory=memory)


def test_what_has_no_meaning_here_is_an_error() -> None:
    other = Fib("fib saddr oif", FIB_ADDRTYPE, 1, 1)
    with pytest.raises(TypeError, match="no meaning is known of fib saddr oif"):
        Run(rule(Equals(other, word(1)), DROP))


def test_link_names_are_padded() -> None:
    run = Run(rule(Equals(IIFNAME, interface("eth0")), DROP), iif="eth0")
    assert run.end is End.DROPPED
