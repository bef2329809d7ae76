"""A packet can meet the word of before a change and the slots of after it: it is translated all the same.

Changes as fast as they can be committed, under SYNs as fast as they can be sent. A foreign table counts the
SYNs that no rule translated, and drops all of them where they would leave: so connection tracking remembers
none, and each is judged anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from datapath.nft.frontends import Backend, Balance, Snat
from datapath.nft.services import ServiceOptions
from datapath.nft.tables import TableOptions, node_tables
from datapath.text import parse_address
from tests.functional.services.site import CLUSTER_IP, EXTERNAL, frontend

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from datapath.nft.frontends import Frontend
    from datapath.nft.rules import Table
    from tests.functional.services.site import Site

pytestmark = pytest.mark.root

FLIPS = 2_000
SOAK_FLIPS = 20_000
PROVING_SECONDS = 60
counts = pytest.mark.parametrize("flips", [FLIPS, pytest.param(SOAK_FLIPS, marks=pytest.mark.soak)])
families = pytest.mark.parametrize("family", [4, 6])

# Before our own chain at forward, which would refuse what was not translated, and after it.
SIEVE = """
table inet sieve {{
    counter untranslated {{ }}
    counter translated {{ }}
    counter refused {{ }}
    chain early {{
        type filter hook forward priority -5;
        tcp dport {{ 80, 8080 }} ct status and dnat == 0 counter name {early}
        tcp dport 8080 counter name translated drop
    }}
    chain late {{
        type filter hook forward priority 5;
        tcp dport {{ 80, 8080 }} counter name untranslated drop
    }}
}}
"""


class Flood:
    """SYNs from outside, and what the node does with them."""

    def __init__(self, site: Site, target: str) -> None:
        self.site = site
        self.sent = 0
        outside = site.world.outside
        self._command = (
            *("ip", "netns", "exec", outside.name, sys.executable, str(Path(__file__).with_name("flood.py"))),
            *("eth0", outside.mac("eth0").hex(), site.node.space.mac("eth0").hex(), target, "80"),
        )

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as sender:
            assert sender.stdout is not None
            assert sender.stdout.readline() == "ready\n"
            try:
                yield
            finally:
                sent, _ = sender.communicate()
        self.sent = int(sent)
        assert self.sent > 0

    def count(self, name: str) -> int:
        found = self.site.node.space.run("nft", "list", "counter", "inet", "sieve", name)
        return int(found.split("packets ")[1].split()[0])


@contextlib.contextmanager
def flood(site: Site, target: str, *, early: str) -> Iterator[Flood]:
    """SYNs; what is not translated is counted as `early` before our own chains judge it."""
    site.node.space.nft(SIEVE.format(early=early))
    try:
        yield Flood(site, target)
    finally:
        site.node.space.nft("delete table inet sieve")


def some(family: int, number: int) -> tuple[Backend, ...]:
    pods = (
        [f"10.244.2.{last}" for last in range(30, 30 + number)]
        if family == 4
        else [f"fd00:244:2::{last}" for last in range(30, 30 + number)]
    )
    return tuple(Backend(parse_address(each), 8080) for each in pods)


def flip(site: Site, at: Frontend, balances: Sequence[Balance], flips: int) -> None:
    """Go round these balances."""
    for balance in itertools.islice(itertools.cycle(balances), flips):
        site.offer("shop", {at: balance})
        site.settle()


@counts
@families
@pytest.mark.parametrize("affinity", [0, 60])
def test_more_and_fewer_backends(site: Site, family: int, flips: int, affinity: int) -> None:
    at = frontend(family)
    five, four = (Balance(some(family, number), Snat.FOREIGN, affinity_seconds=affinity) for number in (5, 4))
    site.serve({at: five}, cluster_ips=[CLUSTER_IP[family]])
    with flood(site, CLUSTER_IP[family], early="untranslated") as load:
        with load.running():
            flip(site, at, (four, five), flips)
        assert load.count("untranslated") == 0
        assert load.count("translated") > load.sent // 2


@counts
@families
@pytest.mark.parametrize("where", [CLUSTER_IP, EXTERNAL])
def test_the_last_backend_goes_and_comes_back(
    site: Site, family: int, flips: int, where: dict[int, str]
) -> None:
    """Translated or refused; an external address is known by nothing but its own elements."""
    at = frontend(family, address=where[family])
    one, none = (Balance(some(family, number), Snat.ALWAYS) for number in (1, 0))
    site.serve({at: one}, cluster_ips=[CLUSTER_IP[family]])
    with flood(site, where[family], early="refused") as load:
        with load.running():
            flip(site, at, (none, one), flips)
        assert load.count("untranslated") == 0
        assert load.count("translated") > 0
        assert load.count("refused") > 0


@counts
@families
def test_affinity_goes_and_comes_back(site: Site, family: int, flips: int) -> None:
    at = frontend(family)
    sticky, free = (Balance(some(family, 3), Snat.FOREIGN, affinity_seconds=seconds) for seconds in (60, 0))
    site.serve({at: sticky}, cluster_ips=[CLUSTER_IP[family]])
    with flood(site, CLUSTER_IP[family], early="untranslated") as load:
        with load.running():
            flip(site, at, (free, sticky), flips)
        assert load.count("untranslated") == 0
        assert load.count("translated") > load.sent // 2


@counts
@families
def test_policy_local_goes_and_comes_back(site: Site, family: int, flips: int) -> None:
    at = frontend(family, address=EXTERNAL[family])
    local, cluster = (
        Balance(some(family, 3), Snat.NEVER, outside=some(family, 2)),
        Balance(some(family, 3), Snat.ALWAYS),
    )
    site.serve({at: local})
    with flood(site, EXTERNAL[family], early="refused") as load:
        with load.running():
            flip(site, at, (cluster, local), flips)
        assert load.count("untranslated") == 0
        assert load.count("translated") > load.sent // 2


@pytest.mark.soak
@families
def test_without_the_second_rule_packets_go_astray(site: Site, family: int) -> None:
    """That the test of more and fewer backends can fail: for want of the rule that takes slot 0."""
    at = frontend(family)
    five, four = (Balance(some(family, number), Snat.FOREIGN) for number in (5, 4))
    site.serve({at: five}, cluster_ips=[CLUSTER_IP[family]])
    site.replace_tables(tuple(hasty(table) for table in node_tables(TableOptions())))
    ends = time.monotonic() + PROVING_SECONDS
    with flood(site, CLUSTER_IP[family], early="untranslated") as load, load.running():
        while load.count("untranslated") == 0:
            flip(site, at, (four, five), FLIPS)
            assert time.monotonic() < ends, "no packet went astray: the load is too small to show anything"
    site.forget_counts()
    site.shape(ServiceOptions())


def hasty(table: Table) -> Table:
    """The table without the rules that take slot 0 where the drawn slot is missing."""
    chains = tuple(
        dataclasses.replace(chain, rules=chain.rules[:1]) if "one-of-" in chain.name else chain
        for chain in table.chains
    )
    assert chains != table.chains
    return dataclasses.replace(table, chains=chains)
