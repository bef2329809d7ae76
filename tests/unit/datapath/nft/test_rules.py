from __future__ import annotations

import dataclasses

import pytest

from datapath.nft.rules import ACCEPT, IPV4_ADDR, Code, Family, Rule, Set, Table, Verdict, goto, jump, rule


def test_families_have_nfts_names() -> None:
    assert [family.text for family in (Family.IPV4, Family.IPV6, Family.INET)] == ["ip", "ip6", "inet"]


def test_sets_are_found_by_name() -> None:
    declared = Set("a", (IPV4_ADDR,))
    table = Table(Family.IPV6, "t", 1, (declared,), ())
    assert table.set("a") is declared
    assert table.key == (10, "t")
    with pytest.raises(KeyError):
        table.set("b")


def test_rules_are_plain_values() -> None:
    made = rule(ACCEPT, comment="why")
    assert made == Rule((ACCEPT,), "why")
    assert hash(made) == hash(dataclasses.replace(made))
    assert (jump("x"), goto("x")) == (Verdict(Code.JUMP, "x"), Verdict(Code.GOTO, "x"))
