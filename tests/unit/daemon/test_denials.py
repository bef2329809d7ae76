"""Denied packets: their names, lines, those who watch, and when the group is bound."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from daemon import denials
from daemon.denials import BACKLOG, UNAVAILABLE, WATCHERS, Denials
from daemon.findings import Findings
from daemon.metrics import Metrics
from daemon.podnames import PodNames
from datapath.errors import NetlinkError
from datapath.nft.policy import DenialLog
from datapath.packetlog import DeniedPacket
from datapath.policy import Direction
from tests.unit.daemon.compile.town import packed, shop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

IN, OUT = Direction.INGRESS, Direction.EGRESS
SETTINGS = DenialLog(1193, 10)


class Receiver:
    """Stands for the socket."""

    def __init__(self) -> None:
        self.bound: list[int] = []
        self.failures: list[Exception] = []
        self.deliver: Callable[[list[DeniedPacket]], None] = lambda _: None

    def make(self, group: int, deliver: Callable[[list[DeniedPacket]], None]) -> Any:
        self.deliver, receiver = deliver, self

        class One:
            def start(self) -> None:
                if receiver.failures:
                    raise receiver.failures.pop()
                receiver.bound.append(group)

            def stop(self) -> None:
                receiver.bound.remove(group)

        return One()


class World:
    def __init__(self) -> None:
        self.town = shop()
        self.town.policy("shop/p", "app=db")
        self.now = 100.0
        self.metrics, self.findings, self.receiver = Metrics(), Findings(), Receiver()
        model = self.town.models["here"]
        self.denials = Denials(
            model,
            PodNames(model, {}),
            self.metrics,
            self.findings,
            receiver=self.receiver.make,
            clock=lambda: self.now,
        )
        self.denials.configure(SETTINGS)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.denials.run())
            await settle()
            yield
            task.cancel()


async def settle() -> None:
    await asyncio.sleep(0.05)


@pytest.fixture
def world() -> World:
    return World()


def packet(
    source: str = "10.244.1.10",
    destination: str = "10.244.1.11",
    direction: Direction = IN,
    protocol: int = 6,
) -> DeniedPacket:
    ports = (40000, 80) if protocol == 6 else ()
    return DeniedPacket(direction, packed(source), packed(destination), protocol, *ports)


def test_a_line_names_pods_policies_and_ports(world: World) -> None:
    with capture_logs() as lines:
        world.denials.take([packet()])
    (line,) = lines
    assert line == {
        "event": "denied",
        "log_level": "info",
        "direction": "ingress",
        "pod": "shop/db",
        "peer": "shop/web",
        "source": "10.244.1.10",
        "destination": "10.244.1.11",
        "protocol": "TCP",
        "source_port": 40000,
        "port": 80,
        "policies": ["shop/p"],
    }
    assert world.metrics.registry.get_sample_value("weft_policy_denied_logged_total") == 1


def test_egress_is_denied_at_the_source(world: World) -> None:
    with capture_logs() as lines:
        world.denials.take([packet("10.244.1.11", "8.8.8.8", OUT, 1)])
    assert (lines[0]["pod"], lines[0]["peer"], lines[0]["protocol"]) == ("shop/db", "", "ICMP")
    assert "port" not in lines[0]


def test_lines_are_bounded_and_what_had_none_is_counted(world: World) -> None:
    with capture_logs() as lines:
        world.denials.take([packet()] * 25)
        assert len(lines) == SETTINGS.rate
        world.now += 0.5
        world.denials.take([packet()] * 25)
        assert len(lines) == SETTINGS.rate * 1.5
        world.denials.counted(1000)
        assert lines[-1] == {
            "event": "denied, and not told one by one",
            "log_level": "info",
            "packets": 985,
        }
        world.denials.counted(0)
        assert len(lines) == 16


def test_lines_before_their_count_are_not_counted_twice(world: World) -> None:
    with capture_logs() as lines:
        world.denials.take([packet()] * 4)
        world.denials.counted(1)
        world.denials.counted(5)
    assert lines[-1]["packets"] == 2
    assert len(lines) == 5


async def test_who_watches_gets_all_that_came(world: World) -> None:
    watcher = world.denials.watch()
    assert watcher is not None
    world.denials.take([packet()] * 25)
    for _ in range(25):
        denial, left_out = await watcher.next()
        assert (denial.pod, denial.policies, left_out) == ("shop/db", ("shop/p",), 0)
    waiting = asyncio.ensure_future(watcher.next())
    await settle()
    assert not waiting.done()
    world.denials.take([packet()])
    assert (await waiting)[0].destination_port == 80


async def test_a_slow_watcher_loses_and_is_told_how_many(world: World) -> None:
    watcher = world.denials.watch()
    assert watcher is not None
    world.denials.take([packet()] * (BACKLOG + 7))
    assert (await watcher.next())[1] == 7
    assert (await watcher.next())[1] == 0


def test_only_a_few_may_watch(world: World) -> None:
    watchers = [world.denials.watch() for _ in range(WATCHERS)]
    assert all(watchers)
    assert world.denials.watch() is None
    assert watchers[0] is not None
    world.denials.leave(watchers[0])
    assert world.denials.watch() is not None


async def test_the_group_is_bound_only_while_a_pod_is_isolated(world: World) -> None:
    async with world.running():
        assert world.receiver.bound == []
        world.denials.isolated(True)
        await settle()
        assert world.receiver.bound == [1193]
        with capture_logs() as lines:
            await asyncio.to_thread(world.receiver.deliver, [packet()])
            await settle()
        assert len(lines) == 1
        world.denials.isolated(False)
        await settle()
        assert world.receiver.bound == []
        world.denials.isolated(True)
        await settle()
    assert world.receiver.bound == [], "the daemon's end unbinds"


async def test_without_a_log_nothing_is_bound(world: World) -> None:
    world.denials.configure(None)
    world.denials.isolated(True)
    async with world.running():
        assert world.receiver.bound == []


async def test_a_group_of_somebody_else_is_told_and_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(denials, "RETRY_SECONDS", 0.1)
    world.receiver.failures = [NetlinkError(16, "nflog group 1193 can't be received")]
    world.denials.isolated(True)
    async with world.running():
        assert [each.name for each in world.findings.rows()] == [UNAVAILABLE]
        assert "policyLogGroup" in world.findings.rows()[0].message
        await asyncio.sleep(0.2)
        assert world.receiver.bound == [1193]
        assert not world.findings.rows()
