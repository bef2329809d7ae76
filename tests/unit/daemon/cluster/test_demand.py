"""A list-watch on demand: late start, late stop, an empty table while nobody needs it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, cast

import pytest

from daemon.cluster.demand import Demand
from daemon.cluster.model import Namespace
from daemon.cluster.selectors import labels
from daemon.cluster.store import NAMESPACE, Key, Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from daemon.cluster.reflector import Reflector


class FakeReflector:
    """Fills its table at once and goes on until it is cancelled, unless it has to fail."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self.ended = self.retired = False

    async def run(self) -> None:
        if self._ground.failure is not None:
            raise self._ground.failure
        self._ground.store.namespaces.replace({"shop": Namespace("shop", labels({}))})
        try:
            await asyncio.Event().wait()
        finally:
            self.ended = True

    def retire(self) -> None:
        assert self.ended
        self.retired = True


class Ground:
    """What the tests look at."""

    def __init__(self) -> None:
        self.store = Store()
        self.followers: list[FakeReflector] = []
        self.failure: Exception | None = None

    def follow(self) -> Reflector[Any]:
        self.followers.append(FakeReflector(self))
        return cast("Reflector[Any]", self.followers[-1])

    def demand(self, *, spread: float = 0, linger: float = 0) -> Demand:
        return Demand(self.follow, self.store.namespaces, spread=spread, linger=linger)


@pytest.fixture
async def ground() -> Ground:
    return Ground()


@contextlib.asynccontextmanager
async def running(demand: Demand) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(demand.run())
        yield
        task.cancel()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_nothing_is_followed_before_it_is_wanted(ground: Ground) -> None:
    demand = ground.demand()
    async with running(demand):
        await settle()
        assert not demand.wanted
        assert not ground.followers
        assert not ground.store.namespaces.synced


async def test_it_is_followed_while_it_is_wanted_and_the_table_empties_after(ground: Ground) -> None:
    demand, table = ground.demand(), ground.store.namespaces
    subscription = ground.store.subscribe(NAMESPACE)
    async with running(demand):
        demand.want(True)
        demand.want(True)
        await until(lambda: table.synced)
        assert list(table) == ["shop"]
        assert subscription.take() == {Key(NAMESPACE, "shop")}
        demand.want(False)
        await until(lambda: not table)
        assert not table.synced
        assert subscription.take() == {Key(NAMESPACE, "shop")}
        assert ground.followers[0].retired
        demand.want(True)
        await until(lambda: table.synced)
        assert len(ground.followers) == 2


async def test_who_is_wanted_again_soon_goes_on(ground: Ground) -> None:
    demand = ground.demand(linger=30)
    async with running(demand):
        demand.want(True)
        await until(lambda: ground.store.namespaces.synced)
        for _ in range(3):
            demand.want(False)
            await settle()
            demand.want(True)
            await settle()
        assert len(ground.followers) == 1
        assert not ground.followers[0].ended


async def test_after_it_lingered_it_ends(ground: Ground) -> None:
    demand = ground.demand(linger=0.02)
    async with running(demand):
        demand.want(True)
        await until(lambda: ground.store.namespaces.synced)
        demand.want(False)
        await settle()
        assert not ground.followers[0].ended
        await until(lambda: ground.followers[0].ended)


async def test_the_start_is_put_off_by_a_random_moment(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.random", lambda: 0.5)
    demand = ground.demand(spread=0.1)
    loop = asyncio.get_running_loop()
    async with running(demand):
        demand.want(True)
        before = loop.time()
        await until(lambda: ground.followers)
        assert 0.04 < loop.time() - before < 4


async def test_cancelling_ends_the_follower_too(ground: Ground) -> None:
    demand = ground.demand()
    async with running(demand):
        demand.want(True)
        await until(lambda: ground.store.namespaces.synced)
    assert ground.followers[0].ended


async def test_a_follower_that_fails_is_not_hidden(ground: Ground) -> None:
    ground.failure = ValueError("broken")
    demand = ground.demand()
    demand.want(True)
    with pytest.raises(ExceptionGroup) as raised:
        await demand.run()
    assert raised.group_contains(ValueError, match="broken")
