"""Element changes are what the kernel accepts, in whatever order states follow each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datapath.nft.connection import Nft
from datapath.nft.elements import Range, intervals, key, verdict
from datapath.nft.plan import SetChange, change_elements, plan
from datapath.nft.rules import (
    DROP,
    INET_PROTO,
    INET_SERVICE,
    IPV4_ADDR,
    VERDICT,
    Chain,
    Family,
    Ruleset,
    Set,
    Table,
    goto,
)
from tests.functional.nft.spaces import spaces

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.functional.nft.spaces import Space

pytestmark = pytest.mark.root

SERVICE = (IPV4_ADDR, INET_PROTO, INET_SERVICE)
TABLE = Table(
    Family.IPV4,
    "weft",
    1,
    (
        Set("ranges", (IPV4_ADDR,), interval=True),
        Set("hosts", (IPV4_ADDR,)),
        Set("pairs", (IPV4_ADDR, IPV4_ADDR), interval=True),
        Set("services", SERVICE, (IPV4_ADDR, INET_SERVICE)),
        Set("verdicts", (IPV4_ADDR,), (VERDICT,)),
    ),
    (Chain("one", ()), Chain("two", ())),
)
# Few values and both ends of the address space: ranges meet, touch and repeat.
addresses = st.sampled_from([0, 1, 2, 3, 10, 11, 12, 13, 2**31, 2**32 - 2, 2**32 - 1]).map(
    lambda number: number.to_bytes(4, "big")
)
ranges = st.tuples(addresses, addresses).map(lambda pair: Range(min(pair), max(pair)))
services = st.tuples(addresses, st.sampled_from([b"\x06", b"\x11"]), st.just(b"\x00\x50")).map(
    lambda f: key(*f)
)
states = st.fixed_dictionaries(
    {
        "ranges": st.lists(ranges).map(intervals),
        "hosts": st.sets(addresses).map(lambda each: dict.fromkeys(each, b"")),
        "pairs": st.sets(addresses).map(lambda each: {key(a, a) + key(a, b"\xff" * 4): b"" for a in each}),
        "services": st.dictionaries(services, addresses.map(lambda address: key(address, b"\x1f\x90"))),
        "verdicts": st.dictionaries(
            addresses, st.sampled_from([verdict(DROP), *map(verdict, map(goto, ("one", "two")))])
        ),
    }
)


@pytest.fixture(scope="module")
def nft() -> Iterator[Nft]:
    with spaces("elements") as (space,), Nft(namespace=space.descriptor) as opened:
        yield opened


def ruleset(state: Mapping[str, Mapping[bytes, bytes]]) -> Ruleset:
    return Ruleset((TABLE,), {(*TABLE.key, name): elements for name, elements in state.items()})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(states, min_size=1, max_size=4))
def test_any_state_follows_any_other(nft: Nft, sequence: list[dict[str, dict[bytes, bytes]]]) -> None:
    for state in sequence:
        nft.apply(plan(ruleset(state), nft.read()))
        assert plan(ruleset(state), nft.read()) == []
    # And by element changes alone, without reading.
    before = sequence[-1]
    after = sequence[0]
    for name in before:
        nft.apply(change_elements([SetChange(TABLE, TABLE.set(name), before[name], after[name])]))
    assert plan(ruleset(after), nft.read()) == []


def test_nothing_changed_costs_no_transaction(space: Space) -> None:
    with Nft(namespace=space.descriptor) as opened:
        opened.apply(plan(ruleset({}), opened.read()))
        generation = opened.generation()
        assert change_elements([SetChange(TABLE, TABLE.set("hosts"), {bytes(4): b""}, {bytes(4): b""})]) == []
        opened.apply(plan(ruleset({}), opened.read()))
        assert opened.generation() == generation
