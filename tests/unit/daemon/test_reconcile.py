"""The loop with a writer that only takes notes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from daemon import reconcile
from daemon.cluster.store import Store
from daemon.config import Config
from daemon.findings import Findings
from daemon.metrics import Metrics
from daemon.reconcile import Reconciler
from datapath.describe import Difference
from datapath.errors import NetlinkOverrunError
from datapath.text import parse_address
from datapath.watch import Noticed
from datapath.writer import Applied, Drift
from tests.unit.daemon.compile.nodes import link, node

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

A = node("a", "192.168.7.1", "10.244.1.0/24")
B = node("b", "192.168.7.2", "10.244.2.0/24")
WRONG = Difference("route", "missing", "10.244.2.0/24 dev weft.vxlan")


class FakeWriter:
    """Takes what a writer takes."""

    port = 0

    def __init__(self) -> None:
        self.links = (link(),)
        self.applied: list[Mapping[Any, Any]] = []
        self.offered: list[Mapping[Any, Any]] = []
        self.completes: list[bool] = []
        self.resyncs: list[str] = []
        self.sources: tuple[bytes, ...] | None = None
        self.drift: tuple[Difference, ...] = ()
        self.fail: list[Exception] = []
        self.wanted: set[Any] = set()
        self.foreign = False
        self.slow = 0.0

    async def underlay(self) -> tuple[Any, ...]:
        if self.fail:
            raise self.fail.pop()
        return self.links

    async def apply(
        self, changes: Mapping[Any, Any], *, complete: bool, sources: tuple[bytes, ...]
    ) -> Applied:
        await asyncio.sleep(self.slow)
        self.applied.append(dict(changes))
        self.completes.append(complete)
        self.sources = sources
        return Applied(len(changes), {}, 0.001)

    def offer(self, changes: Mapping[Any, Any]) -> None:
        self.offered.append(dict(changes))

    async def resync(self, reason: str) -> Drift:
        self.resyncs.append(reason)
        return Drift(reason, self.drift, {}, 0.001)

    async def wants(self, keys: Iterable[Any]) -> bool:
        return not self.wanted.isdisjoint(keys)

    async def disturbed(self) -> bool:
        return self.foreign


class FakeWatch:
    """Notices what the test puts in."""

    def __init__(self, _ear: object, **_: object) -> None:
        self.queue: asyncio.Queue[Noticed] = asyncio.Queue()
        self.closed = False
        FakeWatch.last = self

    last: FakeWatch

    async def next(self) -> Noticed:
        return await self.queue.get()

    def close(self) -> None:
        self.closed = True


class World:
    """A reconciler with everything around it faked but the store."""

    def __init__(self, **config: Any) -> None:
        self.store = Store()
        self.writer = FakeWriter()
        self.findings = Findings()
        self.metrics = Metrics()
        self.reconciler = Reconciler(
            store=self.store,
            writer=self.writer,  # type: ignore[arg-type]
            config=Config(**config),
            node_name="a",
            findings=self.findings,
            metrics=self.metrics,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.reconciler.run())
            await settle()
            yield
            task.cancel()

    def notice(self, **what: Any) -> None:
        FakeWatch.last.queue.put_nowait(Noticed(**what))


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "Watch", FakeWatch)
    monkeypatch.setattr(reconcile, "GATHER_SECONDS", 0.001)
    monkeypatch.setattr(reconcile, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(reconcile, "RETRY_SECONDS", 0.01)


async def settle() -> None:
    await asyncio.sleep(0.05)


async def test_the_first_turn_applies_everything_and_resyncs() -> None:
    world = World()
    world.store.nodes.replace({"a": A, "b": B})
    async with world.running():
        assert world.reconciler.synced
        (changes,) = world.writer.applied
        assert changes.keys() == {("local",), ("sets",), ("node", "b")}
        assert world.writer.completes == [True]
        assert world.writer.resyncs == ["start"]
        assert world.writer.sources == (parse_address("192.168.7.1"),)
        assert world.reconciler.last_sync > 0


async def test_a_node_change_is_applied_without_reading_the_kernel() -> None:
    world = World()
    world.store.nodes.replace({"a": A})
    async with world.running():
        world.store.nodes.put("b", B)
        await settle()
        assert world.writer.applied[-1].keys() == {("node", "b"), ("sets",)}
        world.store.nodes.remove("b")
        await settle()
        assert world.writer.applied[-1][("node", "b")] is None
        assert world.writer.resyncs == ["start"]


async def test_changes_during_an_application_are_gathered() -> None:
    world = World()
    world.store.nodes.replace({"a": A})
    async with world.running():
        world.writer.slow = 0.05
        for number in range(2, 12):
            world.store.nodes.put(
                f"n{number}", node(f"n{number}", f"192.168.7.{number}", f"10.244.{number}.0/24")
            )
            await asyncio.sleep(0.002)
        await asyncio.sleep(0.2)
        assert len(world.writer.applied) <= 3
        assert sum(len([key for key in each if key[0] == "node"]) for each in world.writer.applied) == 10


async def test_thousands_of_nodes_are_handed_over_in_slices_once_the_network_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reconcile, "SLICE", 3)
    many = {
        f"n{number}": node(f"n{number}", f"192.168.7.{number}", f"10.244.{number}.0/24")
        for number in range(2, 9)
    }
    world = World()
    world.store.nodes.replace({"a": A, **dict(list(many.items())[:5])})
    async with world.running():
        assert world.writer.offered == []
        assert len(world.writer.applied) == 1
        world.store.nodes.replace({"a": A})
        await settle()
        assert [len(part) for part in world.writer.offered] == [3]
        assert world.writer.applied[-1].keys() == {*((("node", name)) for name in list(many)[:5]), ("sets",)}


@pytest.mark.parametrize(
    ("noticed", "reason"),
    [
        ({"overrun": True}, "notifications were lost"),
        ({"forwarding": True}, "forwarding was switched off"),
        ({"links": {"eth0"}}, "the underlay link changed"),
        ({"addresses": {parse_address("192.168.7.1")}}, "an address of the node changed"),
        ({"objects": {(6, "ours")}}, "something of ours was changed"),
    ],
)
async def test_what_concerns_us_leads_to_a_reading(noticed: dict[str, Any], reason: str) -> None:
    world = World()
    world.store.nodes.replace({"a": A})
    world.writer.wanted = {(6, "ours")}
    async with world.running():
        world.notice(**noticed)
        await settle()
        assert world.writer.resyncs == ["start", reason]


@pytest.mark.parametrize(
    "noticed",
    [{"links": {"docker0"}}, {"addresses": {parse_address("172.17.0.1")}}, {"objects": {(6, "another's")}}],
)
async def test_what_does_not_concern_us_leads_to_none(noticed: dict[str, Any]) -> None:
    world = World()
    world.store.nodes.replace({"a": A})
    async with world.running():
        world.notice(**noticed)
        await settle()
        assert world.writer.resyncs == ["start"]


async def test_a_changed_underlay_is_compiled_anew() -> None:
    world = World()
    world.store.nodes.replace({"a": A, "b": B})
    async with world.running():
        world.writer.links = (link(mtu=9000),)
        world.notice(links={"eth0"})
        await settle()
        assert world.reconciler.local is not None
        assert world.reconciler.local.mtu == 8950
        assert ("local",) in world.writer.applied[-1]
        assert [row.name for row in world.findings.rows()] == ["MtuChanged"]


async def test_foreign_changes_of_nftables_are_asked_for() -> None:
    world = World()
    world.store.nodes.replace({"a": A})
    async with world.running():
        world.writer.foreign = True
        await settle()
        world.writer.foreign = False
        await settle()
        assert set(world.writer.resyncs) == {"start", "nftables was changed"}


async def test_the_timer_reads_everything() -> None:
    world = World(resync_seconds=0.05)
    world.store.nodes.replace({"a": A})
    async with world.running():
        await asyncio.sleep(0.2)
        assert world.writer.resyncs[:2] == ["start", "timer"]
        assert len(world.writer.resyncs) < 8


async def test_repairs_are_counted_and_a_rival_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "RIVAL_SECONDS", 0.5)
    world = World()
    world.store.nodes.replace({"a": A})
    async with world.running():
        world.writer.drift = (WRONG,)
        for _ in range(reconcile.RIVAL_REPAIRS):
            assert world.findings.rows() == ()
            world.reconciler.request("test")
            await asyncio.sleep(0.01)
        await settle()
        assert world.reconciler.repairs == reconcile.RIVAL_REPAIRS
        (row,) = world.findings.rows()
        assert row.name == "KernelContested"
        assert WRONG.object in row.message
        assert world.metrics.repairs.labels("route")._value.get() == reconcile.RIVAL_REPAIRS
        world.writer.drift = ()
        await asyncio.sleep(0.6)
        world.reconciler.request("test")
        await settle()
        assert world.findings.rows() == ()


async def test_a_kernel_that_can_not_be_read_is_told_and_tried_again() -> None:
    world = World()
    world.store.nodes.replace({"a": A})
    world.writer.fail = [NetlinkOverrunError("dropped")]
    async with world.running():
        await settle()
        assert world.reconciler.synced
        assert world.findings.rows() == ()


async def test_problems_become_findings_and_go() -> None:
    world = World()
    world.store.nodes.replace({"a": A, "c": node("c", "192.168.7.3", "10.244.1.0/24")})
    async with world.running():
        assert [(row.name, row.key) for row in world.findings.rows()] == [("PodCidrConflict", "c")]
        world.store.nodes.remove("c")
        await settle()
        assert world.findings.rows() == ()


async def test_two_peers_with_one_pod_cidr_are_named() -> None:
    world = World()
    world.store.nodes.replace({"a": A, "b": B, "c": node("c", "192.168.7.3", "10.244.2.0/24")})
    async with world.running():
        (row,) = world.findings.rows()
        assert row.name == "PodCidrConflict"
        assert "Nodes b, c have the same podCIDR 10.244.2.0/24: its packets go to b" in row.message


async def test_without_our_node_nothing_is_applied() -> None:
    world = World()
    world.store.nodes.replace({"b": B})
    async with world.running():
        assert world.writer.applied == []
        assert world.writer.resyncs == []
        assert [row.name for row in world.findings.rows()] == ["NodeMissing"]
        world.store.nodes.put("a", A)
        await settle()
        assert world.reconciler.synced
        assert world.findings.rows() == ()


async def test_prepare_changes_nothing() -> None:
    world = World()
    assert await world.reconciler.prepare() is None
    assert [row.name for row in world.findings.rows()] == ["NodeMissing"]
    world.store.nodes.replace({"a": A})
    assert await world.reconciler.prepare() is not None
    assert world.reconciler.local is None
    assert world.writer.applied == []


def test_refusals_become_findings_up_to_a_number() -> None:
    world = World()
    world.reconciler.refused({f"route {number}": "EINVAL" for number in range(25)})
    rows = world.findings.rows()
    assert len(rows) == reconcile.MAX_REFUSALS + 1
    assert {row.name for row in rows} == {"KernelRefused"}
    assert any("15 more objects" in row.message for row in rows)
    world.reconciler.refused({})
    assert world.findings.rows() == ()
