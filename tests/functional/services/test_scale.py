"""Thousands of services: how many transactions and elements they are, at the start and at a change.

What it takes is printed, for whoever runs this alone; no bound on times is held, as they are the machine's.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from datapath.nft.frontends import Backend, Balance, Frontend, Snat
from datapath.nft.plan import TRANSACTION_ELEMENTS
from datapath.nft.rules import Family
from tests.functional.services.calls import Met, backends
from tests.functional.services.site import TCP

if TYPE_CHECKING:
    from tests.functional.services.calls import Servers
    from tests.functional.services.site import Site

pytestmark = pytest.mark.root

ENDPOINTS = 5
counts = pytest.mark.parametrize("services", [500, pytest.param(10_000, marks=pytest.mark.soak)])
GONE = "delete table ip weft; delete table ip6 weft"


def at(number: int) -> Frontend:
    return Frontend(Family.IPV4, (0x0A600000 + 1024 + number).to_bytes(4, "big"), TCP, 80)


def balance(number: int, backends: int = ENDPOINTS) -> Balance:
    """Backends that nobody else has, in 10.128.0.0/9."""
    first = 0x0A800000 + number * 16
    return Balance(
        tuple(Backend((first + each).to_bytes(4, "big"), 8080) for each in range(backends)), Snat.FOREIGN
    )


class Stopwatch:
    """Transactions and time since the last look or start."""

    def __init__(self, site: Site) -> None:
        self._nft = site.node.nft
        self._began, self._generation = time.perf_counter(), self._nft.generation()

    def start(self) -> None:
        self._began, self._generation = time.perf_counter(), self._nft.generation()

    def take(self, what: str) -> int:
        seconds = time.perf_counter() - self._began
        transactions = self._nft.generation() - self._generation
        print(f"{what}: {1000 * seconds:.2f} ms, {transactions} transactions")
        self.start()
        return transactions


@counts
def test_many_services(site: Site, servers: Servers, services: int) -> None:
    elements = services * (1 + ENDPOINTS)
    watch = Stopwatch(site)
    for number in range(services):
        site.offer(f"s{number}", {at(number): balance(number)})
    watch.take(f"{services} services x {ENDPOINTS}: compiled")
    site.settle()
    loaded = watch.take("loaded")
    # Bounded transactions, and well filled ones.
    assert elements / TRANSACTION_ELEMENTS <= loaded <= 2 * elements / TRANSACTION_ELEMENTS + 2
    found = {name: each.elements for name, each in site.node.nft.read().tables[2, "weft"].sets.items()}
    assert {name: len(each or ()) for name, each in found.items() if name in ("services", "endpoints")} == {
        "services": services,
        "endpoints": services * ENDPOINTS,
    }

    # A change of one service is one transaction, however many there are.
    (server,) = servers.start(site.world.pod2, 4, 8080)
    watch.start()
    site.offer("s7", {at(7): Balance(backends([server]), Snat.FOREIGN)})
    site.settle()
    assert watch.take("one service changed") == 1
    vip = "10.96.4.7"
    assert servers.call(site.world.pod1.space, vip, 80) == Met(server, site.world.pod1.address(4))
    watch.start()
    for number in range(100):
        site.offer(f"s{100 + number}", {at(100 + number): balance(100 + number, 1 + number % 7)})
        site.settle()
    assert watch.take("100 services changed one after the other") <= 100

    # Somebody deletes everything.
    site.node.space.nft(GONE)
    assert site.sync.disturbed()
    site.sync.invalidate(foreign=True)
    watch.start()
    site.settle()
    repaired = watch.take("repaired")
    assert elements / TRANSACTION_ELEMENTS <= repaired <= 2 * elements / TRANSACTION_ELEMENTS + 2
    assert ("add", "table ip weft") in site.sync.changes
    site.sync.changes.clear()
    assert servers.call(site.world.pod1.space, vip, 80) == Met(server, site.world.pod1.address(4))
    site.assert_in_line()

    watch.start()
    for number in range(services):
        site.put(("service", f"s{number}"), None)
    site.settle()
    assert watch.take("all deleted") <= 2 * elements / TRANSACTION_ELEMENTS + 2
