"""The transaction that asks and leaves nothing."""

from __future__ import annotations

import pytest

from datapath.netlink.nfnetlink import nft_kind
from datapath.nft import encode
from datapath.nft.policy import policy_table
from datapath.nft.rules import ACCEPT, IPV4_ADDR, Chain, Family, Set, Table, rule
from datapath.nft.trial import TABLE, trial


def test_it_ends_with_the_table_s_deletion() -> None:
    table = Table(Family.IPV4, TABLE, 1, (Set("s", (IPV4_ADDR,)),), (Chain("c", (rule(ACCEPT),)),))
    kinds = [each.kind for each in trial(table, {"s": {bytes(4): b""}}).messages]
    expected = (encode.NEWTABLE, encode.NEWSET, encode.NEWCHAIN, encode.NEWRULE, encode.NEWSETELEM)
    assert kinds[0] == nft_kind(encode.NEWTABLE)
    assert kinds[-1] == nft_kind(encode.DELTABLE)
    assert set(kinds[:-1]) == {nft_kind(each) for each in expected}


def test_packets_never_meet_it() -> None:
    with pytest.raises(ValueError, match="hooks"):
        trial(policy_table(Family.IPV4), {})
