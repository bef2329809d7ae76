"""Recovery at start, and what goes on by timers."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from daemon.cluster.model import Prefix
from daemon.cni import garbage as module
from daemon.cni.garbage import StateDirectoryLostError
from daemon.cni.naming import names
from ipam.record import State
from tests.unit.daemon.cni.conftest import FakeLocal
from tests.unit.daemon.cni.fakes import FakeLink

if TYPE_CHECKING:
    from tests.unit.daemon.cni.conftest import Node


def reported(node: Node) -> set[str]:
    return {row.name for row in node.findings.rows()}


def bury(node: Node, number: int, name: str = "1") -> None:
    node.deletions.prepare()
    with open(f"{node.deletions.directory}/{name}", "wb") as file:
        file.write(node.request("DEL", number).SerializeToString())


async def test_a_first_start_finds_nothing(node: Node) -> None:
    found = await node.garbage.recover()
    assert (found.rebuilt, found.drained.done, found.collected.released) == (0, 0, [])
    assert reported(node) == set()


async def test_a_start_brings_records_and_kernel_together(node: Node) -> None:
    for number in (1, 2, 3, 4, 5):
        await node.add(number)
    for number in (2, 5):
        node.store.set_state(node.key(number), State.PENDING)
    link = node.link(2)
    assert link is not None
    link.alias = ""
    node.kernel.remove_namespace("/run/netns/3")
    node.kernel.table["weft00000000001"] = FakeLink("weft00000000001", ("", ""))
    bury(node, 4)
    node.restart()
    found = await node.garbage.recover()
    assert found.rebuilt == 0
    assert found.drained.done == 1
    assert {str(record.key) for record, _ in found.collected.released} == {"weft/c2/eth0", "weft/c3/eth0"}
    assert found.collected.confirmed == [node.allocator.get(node.key(5))]
    assert [record.key for record in node.allocator.records()] == [node.key(1), node.key(5)]
    assert set(node.kernel.table) == {names(node.key(number))[0] for number in (1, 5)}
    assert node.metrics.registry.get_sample_value("weft_leaks_collected_total") == 2


async def test_a_lost_database_is_rebuilt_before_deletions_are_done(node: Node) -> None:
    await node.add(1)
    await node.add(2)
    bury(node, 2)
    node.boot = "boot-2"
    node.restart()
    found = await node.garbage.recover()
    assert (found.rebuilt, found.drained.done) == (2, 1)
    assert [record.key for record in node.allocator.records()] == [node.key(1)]
    assert (await node.add(3))["ips"][0]["address"] == "10.244.1.4/32"


async def test_after_a_reboot_everything_is_void(node: Node) -> None:
    await node.add(1)
    node.kernel.table.clear()
    node.kernel.namespaces.clear()
    node.boot = "boot-2"
    bury(node, 1)
    node.restart()
    found = await node.garbage.recover()
    assert found.rebuilt == 0
    assert node.allocator.records() == ()
    assert (await node.add(9))["ips"][0]["address"] == "10.244.1.2/32"


async def test_a_damaged_database_is_told(node: Node) -> None:
    await node.add(1)
    node.store.close()
    Path(node.store.path).write_bytes(b"\xa5" * 4096)
    node.restart()
    found = await node.garbage.recover()
    assert found.rebuilt == 1
    assert reported(node) == {"StateUnreadable"}


async def test_strange_links_are_told(node: Node) -> None:
    await node.add(1)
    link = node.link(1)
    assert link is not None
    link.alias = "weft1 scribble"
    node.boot = "boot-2"
    node.restart()
    await node.garbage.recover()
    assert reported(node) == {"StrangeLinks"}


async def test_deletions_that_come_late_are_done_while_serving(node: Node) -> None:
    await node.add(1)
    bury(node, 1)
    await node.garbage.look(collect=True)
    assert node.deletions.names() == []
    assert node.allocator.records() == ()


async def test_deletions_that_cannot_be_read_or_done_are_told(node: Node) -> None:
    await node.add(1)
    bury(node, 1)
    directory = Path(node.deletions.directory)
    (directory / "2").write_bytes(node.request("ADD", 2).SerializeToString())
    (directory / "3").write_bytes(node.request("DEL", 2, name="a/b").SerializeToString())
    node.kernel.broken = "busy"
    await node.garbage.look(collect=True)
    assert {"DeletionsUnreadable", "DeletionsFailed"} <= reported(node)
    assert node.metrics.registry.get_sample_value("weft_deletions_pending") == 1
    node.kernel.broken = ""
    await node.garbage.look(collect=True)
    assert "DeletionsFailed" not in reported(node)
    assert node.metrics.registry.get_sample_value("weft_deletions_pending") == 0


async def test_dead_sandboxes_are_collected_by_the_timer(node: Node) -> None:
    await node.add(1)
    await node.add(2)
    node.kernel.remove_namespace("/run/netns/1")
    await node.garbage.look(collect=True)
    assert [record.key for record in node.allocator.records()] == [node.key(2)]


async def test_a_link_that_somebody_removed_is_told(node: Node) -> None:
    await node.add(1)
    node.kernel.table.clear()
    await node.garbage.look(collect=True)
    assert reported(node) == {"AttachmentBroken"}
    await node.ask("DEL")
    await node.garbage.look(collect=True)
    assert reported(node) == set()


async def test_a_database_that_is_removed_comes_back(node: Node) -> None:
    await node.add(1)
    for suffix in ("", "-wal", "-shm"):
        os.unlink(node.store.path + suffix)
    await node.garbage.look(collect=True)
    assert "StateLost" in reported(node)
    assert os.path.isdir(node.deletions.directory)
    node.restart()
    assert not node.store.fresh
    assert [record.key for record in node.allocator.records()] == [node.key(1)]


async def test_a_state_directory_that_is_removed_ends_the_process_with_nothing_lost(node: Node) -> None:
    await node.add(1)
    shutil.rmtree(node.directory)
    # Its inode number must not be that of the next one by chance.
    keep = Path(f"{node.directory}.other")
    keep.mkdir()
    with pytest.raises(StateDirectoryLostError, match="start anew"):
        await node.garbage.look(collect=True)
    node.restart()
    assert not node.store.fresh
    assert [record.key for record in node.allocator.records()] == [node.key(1)]


async def test_a_pool_that_runs_out_is_told_before_it_is_empty(node: Node) -> None:
    node.local = FakeLocal(pod_cidrs=(Prefix(bytes((10, 244, 1, 0)), 28),))
    for number in range(11):
        await node.add(number)
    await node.garbage.look(collect=True)
    assert reported(node) == set()
    await node.add(20)
    await node.garbage.look(collect=True)
    assert reported(node) == {"PoolNearlyExhausted"}
    sample = node.metrics.registry.get_sample_value
    figures = {
        state: sample("weft_ipam_addresses", {"pool": "10.244.1.0/28", "state": state})
        for state in ("used", "cooling", "free")
    }
    assert figures == {"used": 12, "cooling": 0, "free": 1}
    for number in range(3):
        await node.ask("DEL", number)
    await node.garbage.look(collect=True)
    assert reported(node) == set()


async def test_more_pods_than_addresses_is_told(node: Node) -> None:
    node.max_pods = 300
    await node.garbage.look(collect=True)
    (row,) = node.findings.rows()
    assert row.name == "PoolSmallerThanMaxPods"
    assert "10.244.1.0/24 has 253 addresses" in row.message
    assert "300" in row.message


async def test_a_failing_collection_is_tried_again(node: Node) -> None:
    await node.add(1)
    node.store.set_state(node.key(1), State.PENDING)
    node.kernel.broken = "busy"
    await node.garbage.look(collect=True)
    assert reported(node) == {"CollectionFailed"}
    node.kernel.broken = ""
    await node.garbage.look(collect=True)
    assert reported(node) == set()
    assert node.allocator.records() == ()


@pytest.mark.parametrize(("seconds", "collects"), [(0.0, True), (1000.0, False)])
async def test_it_looks_again_and_again_and_collects_now_and_then(
    node: Node, monkeypatch: pytest.MonkeyPatch, seconds: float, collects: bool
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(module, "COLLECT_SECONDS", seconds)
    looks: list[bool] = []
    enough = asyncio.Event()

    async def look(*, collect: bool) -> None:
        looks.append(collect)
        if len(looks) == 3:
            enough.set()

    monkeypatch.setattr(node.garbage, "look", look)
    running = asyncio.ensure_future(node.garbage.run())
    await asyncio.wait_for(enough.wait(), 10)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert looks[:3] == [collects] * 3
