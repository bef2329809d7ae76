"""The loop of Services with a writer that only takes notes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from daemon import services
from daemon.cluster.model import Prefix, ServiceCIDR
from daemon.cluster.store import Store
from daemon.compile.service_routes import SERVICE_ROUTES
from daemon.compile.tables import TABLES
from daemon.config import Config
from daemon.findings import Findings
from daemon.metrics import Metrics
from daemon.serviceprogress import Progress
from daemon.services import Services
from datapath.errors import NetlinkOverrunError
from datapath.nft.frontends import SERVICES
from datapath.text import parse_prefix
from datapath.writer import Applied, StoppedError
from tests.unit.daemon.compile.nodes import local, node
from tests.unit.daemon.compile.shop import backends, frontend, service, slice_

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from daemon.cluster.model import EndpointSlice, Service
    from daemon.compile.catalog import Catalog
    from daemon.compile.local import LocalNetwork
    from datapath.desired import Fragment, FragmentKey
    from datapath.nft.frontends import Backend, Frontend
    from datapath.nft.rules import Table

    Changes = Mapping[FragmentKey, Fragment | None]

OLD = "2026-01-01T00:00:00Z"
WEB, API = ("service", "", "shop/web"), ("service", "", "shop/api")


class FakeWriter:
    """Takes what a writer takes; `calls` says in which order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Changes]] = []
        self.fail: list[Exception] = []
        self.slow = 0.0

    def offer(self, changes: Changes) -> None:
        self.calls.append(("offer", dict(changes)))

    async def apply(self, changes: Changes) -> Applied:
        self.calls.append(("apply", dict(changes)))
        await asyncio.sleep(self.slow)
        if self.fail:
            raise self.fail.pop(0)
        return Applied(len(changes), {}, 0.001)

    @property
    def applied(self) -> list[Changes]:
        return [changes for kind, changes in self.calls if kind == "apply"]

    @property
    def offered(self) -> list[Changes]:
        return [changes for kind, changes in self.calls if kind == "offer"]


class FakeRecorder:
    def __init__(self) -> None:
        self.recorded: list[tuple[Changes, tuple[bytes, ...]]] = []

    def record(self, changes: Changes, sources: tuple[bytes, ...]) -> None:
        self.recorded.append((dict(changes), sources))


class World:
    """Services with everything around them faked but the store."""

    def __init__(self, **config: Any) -> None:
        self.store = Store()
        self.writer = FakeWriter()
        self.findings = Findings()
        self.now = 100.0
        self.progress = Progress(Metrics(), clock=lambda: self.now, now=lambda: self.now)
        self.recorder = FakeRecorder()
        self.told: list[tuple[list[str], dict[Frontend, frozenset[Backend]]]] = []
        self.local: LocalNetwork | None = local()
        self.services = Services(
            store=self.store,
            writer=self.writer,  # type: ignore[arg-type]
            config=Config(**config),
            node_name="a",
            local=lambda: self.local,
            findings=self.findings,
            progress=self.progress,
            recorder=self.recorder,  # type: ignore[arg-type]
            on_applied=self.tell,
        )

    def tell(self, catalog: Catalog) -> None:
        """What follows Services hears of it after the kernel: note what was applied by then."""
        self.told.append(([kind for kind, _ in self.writer.calls], catalog.stale_flows()))

    def put(self, *objects: Service | EndpointSlice) -> None:
        for each in objects:
            table: Any = self.store.services if hasattr(each, "cluster_ips") else self.store.endpoint_slices
            table.put(f"{each.namespace}/{each.name}", each)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        assert self.local is not None
        await self.services.prepare(self.local)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.services.run())
            await settle()
            yield
            task.cancel()

    def tables(self) -> list[Table]:
        """The IPv4 tables that the writer was given, the latest last."""
        found = [changes[TABLES] for _, changes in self.writer.calls if TABLES in changes]
        return [each.tables[0] for each in found if each is not None]


async def settle() -> None:
    await asyncio.sleep(0.03)


def many(count: int, first: int = 1) -> list[Any]:
    """Services s1, s2 ... of one backend each."""
    found: list[Any] = []
    for number in range(first, first + count):
        name = f"s{number}"
        found += [
            service(f"10.96.1.{number}", name=name),
            slice_(f"10.244.1.{number}", name=f"{name}-1", of=name),
        ]
    return found


def crowd(size: int, of: str = "web") -> EndpointSlice:
    """A slice of so many endpoints."""
    return slice_(*(f"10.244.3.{number}" for number in range(1, size + 1)), name=f"{of}-1", of=of)


async def test_everything_is_offered_before_anything_is_waited_for() -> None:
    world = World()
    world.store.nodes.put("a", node("a", "192.168.7.1"))
    world.put(service(), slice_("10.244.1.1", "10.244.1.2"), service("10.96.0.8", name="api"))
    assert world.local is not None
    await world.services.prepare(world.local)
    ((kind, changes),) = world.writer.calls
    assert kind == "offer"
    assert changes.keys() == {TABLES, SERVICE_ROUTES, WEB, API}
    # The tables are the first that the writer takes in.
    assert next(iter(changes)) == TABLES
    assert world.told == []
    assert world.recorder.recorded == [(changes, world.local.sources)]


async def test_the_tables_come_without_any_service() -> None:
    world = World()
    async with world.running():
        assert [changes.keys() for _, changes in world.writer.calls] == [{TABLES, SERVICE_ROUTES}]
        assert len(world.told) == 1


async def test_a_thousand_services_are_one_offer_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts some of them would be blanked by whoever deletes what nobody desires."""
    monkeypatch.setattr(services, "SLICE", 10)
    world = World()
    world.put(*many(50))
    async with world.running():
        ((kind, changes),) = world.writer.calls
        assert kind == "offer"
        assert len(changes) == 2 + 50


async def test_a_change_is_applied_alone() -> None:
    world = World()
    world.put(*many(5))
    async with world.running():
        world.put(slice_("10.244.9.9", name="s2-1", of="s2"))
        await settle()
        assert [changes.keys() for changes in world.writer.applied] == [{("service", "", "shop/s2")}]
        world.store.services.remove("shop/s3")
        await settle()
        assert world.writer.applied[-1] == {("service", "", "shop/s3"): None}


async def test_what_changes_nothing_is_not_applied() -> None:
    world = World()
    world.put(*many(2))
    async with world.running():
        world.put(slice_("10.244.1.1", "10.244.1.77 unready", name="s1-1", of="s1"))
        await settle()
        assert world.writer.applied == []
        assert len(world.told) == 2


async def test_changes_during_an_application_are_gathered() -> None:
    world = World()
    world.put(*many(20))
    async with world.running():
        world.writer.slow = 0.05
        for number in range(1, 21):
            for last in (1, 2, 3):
                world.put(slice_(f"10.244.9.{last}", name=f"s{number}-1", of=f"s{number}"))
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.2)
        assert len(world.writer.applied) <= 3
        assert {key for changes in world.writer.applied for key in changes} == {
            ("service", "", f"shop/s{number}") for number in range(1, 21)
        }


async def test_many_changes_are_handed_over_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "SLICE", 3)
    world = World()
    async with world.running():
        world.put(*many(8))
        await settle()
        kinds = [kind for kind, _ in world.writer.calls]
        assert kinds == ["offer", "offer", "offer", "apply"]
        offered = [len(changes) for changes in world.writer.offered[1:]]
        assert offered == [3, 3]
        # The last has everything, so that nothing depends on the offers.
        assert len(world.writer.applied[0]) == 8


async def test_chains_come_before_the_elements_that_lead_to_them() -> None:
    world = World()
    async with world.running():
        world.put(service(affinity_seconds=90), crowd(40))
        await settle()
        (changes,) = world.writer.applied
        assert list(changes) == [TABLES, WEB]
        names = {chain.name for chain in world.tables()[-1].chains}
        assert {"one-of-40", "draw-40", "stick-90"} <= names


async def test_chains_come_with_the_slice_that_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "SLICE", 2)
    world = World()
    async with world.running():
        world.put(*many(5), service(), crowd(40))
        await settle()
        seen = False
        for _, changes in world.writer.calls[1:]:
            seen |= TABLES in changes
            assert seen or WEB not in changes
        assert seen


async def test_chains_grow_and_never_go() -> None:
    world = World()
    world.put(service(), crowd(40))
    async with world.running():
        assert "one-of-40" in {chain.name for chain in world.tables()[-1].chains}
        world.put(crowd(5))
        await settle()
        world.put(crowd(50))
        await settle()
        world.put(service(affinity_seconds=60))
        await settle()
        world.store.services.remove("shop/web")
        await settle()
        world.put(service(affinity_seconds=30), crowd(40))
        await settle()
        # Once at the start, and once for each that was not there yet.
        assert len(world.tables()) == 4
        names = {chain.name for chain in world.tables()[-1].chains}
        assert {"one-of-40", "one-of-50", "stick-60", "stick-30"} <= names
        assert TABLES not in world.writer.applied[0]


async def test_the_mark_is_the_configured_one() -> None:
    world, other = World(), World(masquerade_mark=0x80)
    for each in (world, other):
        async with each.running():
            pass
    assert world.tables() != other.tables()


async def test_who_follows_services_hears_of_them_after_the_kernel() -> None:
    world = World()
    world.put(service(ports="dns:udp:53"), slice_("10.244.1.1", "10.244.1.2", ports="dns:udp:53"))
    async with world.running():
        at = frontend("udp 10.96.0.7 53")
        assert world.told == [(["offer"], {at: frozenset(backends("10.244.1.1 10.244.1.2", 53))})]
        world.writer.slow = 0.1
        world.put(slice_("10.244.1.2", ports="dns:udp:53"))
        await settle()
        assert world.writer.applied
        assert len(world.told) == 1
        await asyncio.sleep(0.15)
        assert world.told[1] == (["offer", "apply"], {at: frozenset(backends("10.244.1.2", 53))})


async def test_a_change_waits_until_the_kernel_has_it() -> None:
    world = World()
    async with world.running():
        assert world.progress.applied
        assert world.progress.waited == 0
        world.writer.slow = 0.1
        world.put(*many(1))
        await settle()
        world.now += 5
        assert world.progress.waited == 5
        await asyncio.sleep(0.15)
        assert world.progress.waited == 0


async def test_before_the_first_round_nothing_is_applied() -> None:
    world = World()
    assert world.local is not None
    await world.services.prepare(world.local)
    assert not world.progress.applied


async def test_a_kernel_that_can_not_be_read_leaves_changes_waiting() -> None:
    world = World()
    world.put(service(ports="dns:udp:53"), slice_("10.244.1.1", ports="dns:udp:53"))
    async with world.running():
        before = len(world.told)
        world.writer.fail = [NetlinkOverrunError("dropped")]
        world.put(slice_("10.244.1.2", ports="dns:udp:53"))
        await settle()
        world.now += 7
        assert world.progress.waited == 7
        assert len(world.told) == before
        # The writer keeps what it was given: the next round is told of both.
        world.put(*many(1))
        await settle()
        assert world.progress.waited == 0
        assert world.writer.applied[-1].keys() == {("service", "", "shop/s1")}
        ((_, stale),) = world.told[before:]
        assert frontend("udp 10.96.0.7 53") in stale


async def test_what_was_put_off_is_told_when_nothing_else_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "RETRY_SECONDS", 0.01)
    world = World()
    world.put(*many(1))
    async with world.running():
        before = len(world.told)
        world.writer.fail = [NetlinkOverrunError("dropped")]
        world.put(*many(2))
        await asyncio.sleep(0.1)
        assert len(world.told) > before
        assert world.progress.waited == 0


async def test_routes_follow_this_nodes_own_network() -> None:
    world = World()
    world.store.service_cidrs.put("one", cidr("one", "10.96.0.0/16"))
    async with world.running():
        assert world.local is not None
        way = dataclasses.replace(world.local.underlays[4], link="bond0")
        world.local = dataclasses.replace(world.local, underlays={4: way})
        world.services.look()
        await settle()
        assert world.writer.applied[-1].keys() == {SERVICE_ROUTES}


async def test_a_writer_that_stops_ends_it() -> None:
    world = World()
    assert world.local is not None
    await world.services.prepare(world.local)
    world.writer.fail = [StoppedError("stopping")]
    world.put(*many(1))
    with pytest.raises(StoppedError):
        await world.services.run()


async def test_problems_become_findings_and_go() -> None:
    world = World()
    world.put(
        service(external="203.0.113.1", created=OLD),
        service("10.96.0.8", external="203.0.113.1", name="api", created="2026-02-02T00:00:00Z"),
    )
    async with world.running():
        (row,) = world.findings.rows()
        assert (row.name, row.key) == ("ServiceConflict", "shop/api shop/web")
        world.store.services.remove("shop/web")
        await settle()
        assert world.findings.rows() == ()


async def test_findings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "MAX_PROBLEMS", 3)
    world = World()
    for number in range(6):
        world.put(service(f"10.96.2.{number + 1}", external="203.0.113.1", name=f"c{number}"))
    async with world.running():
        assert len(world.findings.rows()) == 3


async def test_a_node_that_moves_to_another_zone_is_compiled_anew() -> None:
    world = World()
    here = node("a", "192.168.7.1")
    world.store.nodes.put("a", dataclasses.replace(here, zone="east"))
    world.put(service(), slice_("10.244.1.1 zone=east", "10.244.1.2 zone=west"), *many(3))
    async with world.running():
        world.store.nodes.put("a", dataclasses.replace(here, zone="west"))
        await settle()
        assert [changes.keys() for changes in world.writer.applied] == [{WEB}]
        assert world.writer.applied[0][WEB] != world.writer.offered[0][WEB]


async def test_service_cidrs_have_their_routes() -> None:
    world = World()
    world.store.service_cidrs.put("one", cidr("one", "10.96.0.0/16"))
    async with world.running():
        before = world.writer.offered[0][SERVICE_ROUTES]
        assert before is not None
        assert len(before.objects) == 1
        world.store.service_cidrs.put("two", cidr("two", "10.97.0.0/16"))
        await settle()
        (changes,) = world.writer.applied
        assert changes.keys() == {SERVICE_ROUTES}
        now = changes[SERVICE_ROUTES]
        assert now is not None
        assert len(now.objects) == 2
        world.store.service_cidrs.put("two", cidr("two", "10.97.0.0/16", "10.96.0.0/16"))
        await settle()
        assert len(world.writer.applied) == 1


def cidr(name: str, *prefixes: str) -> ServiceCIDR:
    return ServiceCIDR(name, tuple(Prefix(*parse_prefix(each)) for each in prefixes))


async def test_what_is_applied_is_recorded() -> None:
    world = World()
    async with world.running():
        assert world.local is not None
        world.put(*many(1))
        await settle()
        assert world.recorder.recorded[-1] == (world.writer.applied[-1], world.local.sources)
        world.local = None
        count = len(world.recorder.recorded)
        world.put(*many(1, first=7))
        await settle()
        # Without this node's network there are no sources to record with.
        assert len(world.writer.applied) == 2
        assert len(world.recorder.recorded) == count


async def test_the_fragments_hold_the_frontends() -> None:
    world = World()
    world.put(service(), slice_("10.244.1.1"))
    async with world.running():
        fragment = world.writer.offered[0][WEB]
        assert fragment is not None
        assert SERVICES in {each.name for each in fragment.elements}
