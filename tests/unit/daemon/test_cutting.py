"""When connections are judged, what is read and written for it, and what is not."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from daemon import cutting
from daemon.compile.policy_flows import Effect
from daemon.cutting import Cutting
from datapath import marking
from datapath.errors import DatapathError
from datapath.marking import Ends, Found
from datapath.nft.policy import CUT_MARK
from tests.unit.daemon.compile.town import packed, pods, shop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping

    from daemon.compile.policy import Policies
    from tests.unit.daemon.compile.town import Town

WEB, DB, BANK = (packed(each) for each in ("10.244.1.10", "10.244.1.11", "10.244.1.21"))
WEB_TO_DB, BANK_TO_DB = Ends(WEB, DB, 6, 80), Ends(BANK, DB, 6, 80)
FRESH, CUT = Found(marked=False, unmarked=True), Found(marked=True, unmarked=False)


class FakeSocket:
    """Stands for any socket."""

    opened = 0

    def __init__(self, *_: object, **__: object) -> None:
        FakeSocket.opened += 1

    def close(self) -> None:
        FakeSocket.opened -= 1


class World:
    """Policies, a table of flows, and notes of what was asked of it."""

    def __init__(self) -> None:
        self.town: Town = shop()
        self.model: Policies = self.town.models["here"]
        self.complete = True
        self.free = asyncio.Event()
        self.free.set()
        self.flows: dict[Ends, Found] = {}
        self.reads: list[Collection[bytes] | None] = []
        self.writes: list[tuple[Collection[bytes] | None, Mapping[Ends, bool]]] = []
        self.failures: list[DatapathError] = []
        self.cut: list[int] = []
        self.reports: list[str] = []
        self.cutting = Cutting(self, cut=self.cut.append, report=self.reports.append)

    async def settled(self) -> None:
        await self.free.wait()

    def read(self, _: object, addresses: Collection[bytes] | None, bit: int) -> dict[Ends, Found]:
        assert bit == CUT_MARK
        if self.failures:
            raise self.failures.pop(0)
        self.reads.append(addresses)
        return {
            ends: found
            for ends, found in self.flows.items()
            if (found.marked if addresses is None else {ends.source, ends.destination} & set(addresses))
        }

    def write(
        self,
        _: object,
        __: object,
        addresses: Collection[bytes] | None,
        bit: int,
        wanted: Mapping[Ends, bool],
    ) -> tuple[int, int]:
        self.writes.append((addresses, dict(wanted)))
        concerned = self.read(None, addresses, bit)
        self.reads.pop()
        changed = {
            ends: must
            for ends, must in wanted.items()
            if ends in concerned and concerned[ends] != (CUT if must else FRESH)
        }
        self.flows |= {ends: CUT if must else FRESH for ends, must in changed.items()}
        return sum(changed.values()), len(changed) - sum(changed.values())

    def isolate(self) -> None:
        self.town.policy("shop/p", "app=db", ingress=[{"from": [pods("app=web")]}])

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.ensure_future(self.cutting.run())
        async with asyncio.timeout(5):
            await self.idle()
            yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert FakeSocket.opened == 0

    async def idle(self) -> None:
        """Give it time for its rounds and their rests: until nothing is heard of it any more."""
        quiet, before = 0, None
        while quiet < 3 or self.failures:
            await asyncio.sleep(0.03)
            now = len(self.reads), len(self.writes), len(self.reports), len(self.cut)
            quiet, before = (quiet + 1 if now == before else 0), now


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(cutting, "Socket", FakeSocket)
    monkeypatch.setattr(cutting, "local_addresses", lambda _: frozenset())
    monkeypatch.setattr(marking, "read", made.read)
    monkeypatch.setattr(marking, "write", made.write)
    monkeypatch.setattr(cutting, "REST_LIMIT_SECONDS", 0.001)
    monkeypatch.setattr(cutting, "RETRY_SECONDS", 0.001)
    return made


async def test_a_node_without_policies_looks_once_for_marks_of_before_and_never_again(world: World) -> None:
    world.flows = {WEB_TO_DB: FRESH}
    async with world.running():
        assert world.reads == [None]
        for each in (Effect.STRICTER, Effect.LOOSER, Effect.NONE):
            world.cutting.look(each)
            await world.idle()
    assert world.reads == [None]
    assert world.writes == []


async def test_marks_of_before_go_where_they_are_wrong(world: World) -> None:
    world.flows = {WEB_TO_DB: CUT}
    async with world.running():
        assert world.flows == {WEB_TO_DB: FRESH}
    assert world.cut == [0]


async def test_at_the_start_and_after_a_stricter_change_what_is_forbidden_is_cut(world: World) -> None:
    world.isolate()
    world.flows = {WEB_TO_DB: FRESH, BANK_TO_DB: FRESH}
    async with world.running():
        assert world.flows == {WEB_TO_DB: FRESH, BANK_TO_DB: CUT}
        assert world.cut == [1]
        world.town.pod("shop/web", "10.244.1.10 fd00:0:0:1::10", "app=other")
        world.cutting.look(Effect.STRICTER)
        await world.idle()
        assert world.flows == {WEB_TO_DB: CUT, BANK_TO_DB: CUT}
        assert world.writes[-1][1] == {WEB_TO_DB: True}, "what is as it should be is left alone"


async def test_a_looser_change_looks_at_what_was_cut_only(world: World) -> None:
    world.isolate()
    world.flows = {WEB_TO_DB: FRESH, BANK_TO_DB: FRESH}
    async with world.running():
        world.town.drop("NetworkPolicy", "shop/p")
        world.reads.clear()
        world.cutting.look(Effect.LOOSER)
        await world.idle()
        assert world.flows == {WEB_TO_DB: FRESH, BANK_TO_DB: FRESH}
        assert world.reads == [None]
        world.cutting.look(Effect.LOOSER)
        await world.idle()
        assert world.reads == [None], "nothing is cut any more"


async def test_nothing_is_judged_by_half_a_model(world: World) -> None:
    world.isolate()
    world.flows = {BANK_TO_DB: FRESH}
    world.free.clear()
    async with world.running():
        assert world.reads == []
        world.free.set()
        await world.idle()
        assert world.flows == {BANK_TO_DB: CUT}


async def test_what_is_not_known_stays_as_it_is(world: World) -> None:
    world.isolate()
    world.complete = False
    far = Ends(packed("10.244.2.20"), DB, 6, 80)
    farther = Ends(packed("10.244.2.21"), DB, 6, 80)
    world.flows = {far: FRESH, farther: CUT}
    async with world.running():
        assert world.flows == {far: FRESH, farther: CUT}
        world.complete = True
        world.cutting.look(Effect.STRICTER)
        await world.idle()
        assert world.flows == {far: CUT, farther: CUT}


async def test_what_fails_is_told_and_tried_again(world: World) -> None:
    world.isolate()
    world.flows = {BANK_TO_DB: FRESH}
    world.failures = [DatapathError("busy"), DatapathError("still busy")]
    async with world.running():
        assert world.flows == {BANK_TO_DB: CUT}
    assert world.reports == ["busy", "still busy", ""]
