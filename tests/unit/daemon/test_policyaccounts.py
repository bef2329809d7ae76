"""Counters of rules that come and go, as sums that never fall."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from daemon import policyaccounts
from daemon.compile.policy_tables import PolicyTables
from daemon.metrics import Metrics
from daemon.policyaccounts import Growth, PolicyAccounts, Reading
from datapath.errors import NetlinkOverrunError
from datapath.nft.counters import Count
from datapath.policy import Direction
from tests.unit.daemon.compile.town import pods, shop

if TYPE_CHECKING:
    from tests.unit.daemon.compile.town import Town

IN = Direction.INGRESS
DB = "weft-shop-db"


def test_growth_is_what_came_since_the_last_reading() -> None:
    growth: Growth[str] = Growth()
    assert growth.take({"a": Count(3, 30)}) == {"a": Count(3, 30)}
    assert growth.take({"a": Count(5, 50), "b": Count(1, 10)}) == {"a": Count(2, 20), "b": Count(1, 10)}
    assert growth.take({"a": Count(5, 50)}) == {}


def test_a_counter_that_fell_began_anew() -> None:
    growth: Growth[str] = Growth()
    growth.take({"a": Count(9, 90), "b": Count(9, 90)})
    assert growth.take({"a": Count(2, 20)}) == {"a": Count(2, 20)}
    assert growth.take({"b": Count(9, 90)}) == {"b": Count(9, 90)}, "it was gone in between"


class Kernel:
    """A town's node, its tables, and counters that a test sets."""

    def __init__(self, town: Town) -> None:
        self.town = town
        self.model = town.models["here"]
        self.tables = PolicyTables()
        self.metrics = Metrics()
        self.reading = Reading({}, {})
        self.readings = 0
        self.accounts = PolicyAccounts(self.model, self.tables, self.metrics, reading=self.read)

    def read(self) -> Reading:
        self.readings += 1
        return self.reading

    def follow(self) -> None:
        self.tables.take(self.model, self.model.changes())

    def chain(self, policy: str = "shop/p") -> str:
        return [chain for chain, part in self.tables.owners.items() if part == (policy, IN)][-1]

    def count(self, *counts: tuple[str, int, int], denied: int = 0) -> None:
        """Set rules' counters (chain, handle, packets), and that of what is denied to shop/db."""
        rules = {(2, chain, handle): Count(packets, packets * 100) for chain, handle, packets in counts}
        self.reading = Reading(rules, {(2, IN, DB): Count(denied, denied * 100)})

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    def accepted(self, policy: str = "shop/p") -> float | None:
        return self.value("weft_policy_accepted_packets_total", policy=policy, direction="ingress")


@pytest.fixture
def kernel() -> Kernel:
    town = shop()
    town.policy("shop/p", "app=db", ingress=[{"from": [pods("app=web")]}])
    found = Kernel(town)
    found.follow()
    return found


async def test_what_a_policy_let_pass_is_told_by_policy_and_direction(kernel: Kernel) -> None:
    kernel.count((kernel.chain(), 4, 2), (kernel.chain(), 5, 1))
    await kernel.accounts.refresh()
    assert kernel.accepted() == 3
    assert kernel.value("weft_policy_accepted_bytes_total", policy="shop/p", direction="ingress") == 300
    assert kernel.accounts.accepted == {("shop/p", IN): Count(3, 300)}


async def test_sums_never_fall_when_chains_are_replaced(kernel: Kernel) -> None:
    kernel.count((kernel.chain(), 4, 7))
    await kernel.accounts.refresh()
    old = kernel.chain()
    kernel.town.policy("shop/p", "app=db", ingress=[{}])
    kernel.follow()
    new = kernel.chain()
    assert new != old
    kernel.count((old, 4, 8), (new, 9, 1))
    await kernel.accounts.refresh()
    assert kernel.accepted() == 9, "what the old chain still let pass counts too"
    kernel.tables.sweep()
    kernel.count((new, 9, 2))
    await kernel.accounts.refresh()
    assert kernel.accepted() == 10
    kernel.count((new, 3, 1))
    await kernel.accounts.refresh()
    assert kernel.accepted() == 11, "after a foreign flush"


async def test_denials_are_told_by_pod(kernel: Kernel) -> None:
    kernel.count(denied=4)
    await kernel.accounts.refresh()
    assert kernel.value("weft_policy_denied_packets_total", pod="shop/db", direction="ingress") == 4
    assert kernel.accounts.denied["shop/db", IN] == 4


async def test_series_go_with_their_policy_and_pod(kernel: Kernel) -> None:
    kernel.count((kernel.chain(), 4, 7), denied=1)
    await kernel.accounts.refresh()
    kernel.town.drop("NetworkPolicy", "shop/p")
    kernel.town.drop("Pod", "shop/db")
    kernel.follow()
    await kernel.accounts.refresh()
    assert kernel.accepted() is None
    assert kernel.value("weft_policy_denied_packets_total", pod="shop/db", direction="ingress") is None
    assert not kernel.accounts.accepted
    assert not kernel.accounts.denied


async def test_without_isolated_pods_the_kernel_is_not_asked() -> None:
    kernel = Kernel(shop())
    kernel.follow()
    await kernel.accounts.refresh()
    assert kernel.readings == 0


async def test_a_reading_that_fails_is_made_again(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policyaccounts, "READ_SECONDS", 0.01)
    kernel.count((kernel.chain(), 4, 2))
    failures = [NetlinkOverrunError("lost")]
    good = kernel.read

    def read() -> Reading:
        if failures:
            raise failures.pop()
        return good()

    accounts = PolicyAccounts(kernel.model, kernel.tables, kernel.metrics, reading=read)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(accounts.run())
        await asyncio.sleep(0.1)
        task.cancel()
    assert kernel.accepted() == 2
