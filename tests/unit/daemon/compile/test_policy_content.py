"""What tables of policies consist of: counted, and kept until it is swept."""

from __future__ import annotations

import pytest

from daemon.compile.policy_content import Content
from datapath.nft.policy import PolicyChains
from datapath.nft.rules import IPV4_ADDR, Chain, Set

CHAIN = Chain("ingress-1", ())
PEERS, BLOCKS = Set("peers-1", (IPV4_ADDR,)), Set("blocks-1", (IPV4_ADDR,), interval=True)
FIRST = PolicyChains(Chain("policy-1", ()), (PEERS, BLOCKS), (("blocks-1", {b"range": b""}),))
SECOND = PolicyChains(Chain("policy-2", ()), (PEERS,), ())


@pytest.fixture
def content() -> Content:
    return Content()


def test_what_is_used_is_there_with_its_sets(content: Content) -> None:
    content.use_policy(FIRST)
    assert set(content.chains) == {"policy-1"}
    assert set(content.sets) == {"peers-1", "blocks-1"}
    assert content.static == {"blocks-1": {b"range": b""}}
    assert content.grown
    assert not content.superfluous


def test_what_several_use_goes_with_the_last(content: Content) -> None:
    content.use_policy(FIRST)
    content.use_policy(SECOND)
    content.leave_policy(FIRST)
    content.sweep()
    assert set(content.chains) == {"policy-2"}
    assert set(content.sets) == {"peers-1"}
    assert not content.static


def test_what_is_used_no_longer_stays_until_it_is_swept(content: Content) -> None:
    content.use(CHAIN)
    content.leave(CHAIN)
    found = [(content.superfluous, set(content.chains))]
    content.sweep()
    found.append((content.superfluous, set(content.chains)))
    assert found == [(True, {"ingress-1"}), (False, set())]


def test_what_is_used_again_in_time_was_never_away(content: Content) -> None:
    content.use_policy(FIRST)
    content.leave_policy(FIRST)
    content.grown = False
    content.use_policy(FIRST)
    assert not content.superfluous
    assert not content.grown
    content.sweep()
    assert content.static
    assert set(content.sets) == {"peers-1", "blocks-1"}


def test_one_more_user_is_no_growth(content: Content) -> None:
    content.use(CHAIN)
    content.grown = False
    content.use(CHAIN)
    assert not content.grown
    content.leave(CHAIN)
    assert not content.superfluous


def test_leaving_what_nobody_uses_is_a_fault(content: Content) -> None:
    with pytest.raises(KeyError):
        content.leave(CHAIN)
