"""What is seen to by the way: the Node's condition, the address plan, the kernel's features."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, cast

import pytest

from daemon import preflight, upkeep
from daemon.cluster import decode
from daemon.cluster.connection import ApiError, Connection, UnreachableError
from daemon.cluster.model import Node
from daemon.cluster.store import Store
from daemon.config import Config
from daemon.findings import Findings
from daemon.metrics import Metrics
from datapath import probe
from datapath.errors import DatapathError
from datapath.probe import MissingFeature
from datapath.surroundings import Surroundings
from ipam.ports import PortMapping
from ipam.record import AttachmentKey, Record

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Recorder:
    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.patches = 0
        self.endpoint = None

    async def request(self, *_: Any, **__: Any) -> dict[str, Any]:
        if self.failures:
            raise self.failures.pop(0)
        self.patches += 1
        return {}


async def work(body: Coroutine[Any, Any, None], steps: float = 0.05) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(body, steps)


def node(*, unavailable: bool = False) -> Node:
    return Node("a", "a", (), (), network_unavailable=unavailable)


async def test_the_condition_is_set_once_and_again_when_somebody_takes_it_back() -> None:
    store, findings, api = Store(), Findings(), Recorder()
    store.nodes.put("a", node())
    task = asyncio.ensure_future(upkeep.keep_condition(cast(Connection, api), store, "a", findings))
    await asyncio.sleep(0.01)
    assert api.patches == 1
    store.nodes.put("b", node(unavailable=True))
    store.nodes.put("a", Node("a", "a", (bytes(4),), ()))
    await asyncio.sleep(0.01)
    assert api.patches == 1
    store.nodes.put("a", node(unavailable=True))
    await asyncio.sleep(0.01)
    assert api.patches == 2
    store.nodes.remove("a")
    await asyncio.sleep(0.01)
    assert api.patches == 2
    task.cancel()


async def test_a_refused_condition_is_a_finding_and_an_outage_is_waited_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upkeep, "RETRY_SECONDS", 0.01)
    store, findings = Store(), Findings()
    api = Recorder(UnreachableError("connect", "away"), ApiError(403, "Forbidden", "no"))
    store.nodes.put("a", node())
    task = asyncio.ensure_future(upkeep.keep_condition(cast(Connection, api), store, "a", findings))
    await asyncio.sleep(0.05)
    assert [row.name for row in findings.rows()] == ["NodeConditionNotSet"]
    assert "grant patch on nodes/status" in findings.rows()[0].message
    store.nodes.put("a", node(unavailable=True))
    await asyncio.sleep(0.01)
    assert api.patches == 1
    assert not findings.rows()
    task.cancel()


async def test_the_address_plan_is_checked_at_each_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "SETTLE_SECONDS", 0.01)
    store, findings = Store(), Findings()
    slices = (decode.prefix("10.244.0.0/24"),)
    store.nodes.put("a", Node("a", "a", (), slices))
    task = asyncio.ensure_future(
        upkeep.check_cluster(
            store, Config(), "a", findings, local=lambda: None, connection=cast(Connection, Recorder())
        )
    )
    await asyncio.sleep(0.02)
    assert not findings.rows()
    store.nodes.put("b", Node("b", "b", (), slices))
    await asyncio.sleep(0.05)
    assert [row.name for row in findings.rows()] == [preflight.OVERLAP]
    store.nodes.remove("b")
    await asyncio.sleep(0.05)
    assert not findings.rows()
    task.cancel()


async def test_missing_kernel_features_are_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = MissingFeature("VXLAN links", "pods on other nodes", "CONFIG_VXLAN", "no")
    monkeypatch.setattr(probe, "missing_features", lambda _: (missing,))
    findings = Findings()
    await upkeep.check_kernel(Config(), findings)
    assert [row.name for row in findings.rows()] == [preflight.FEATURE]


async def test_the_machine_is_looked_at_again_even_when_it_could_not_be_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[Surroundings | Exception] = [
        DatapathError("busy"),
        Surroundings({"flannel": "link flannel.1"}),
        Surroundings(),
    ]

    def look() -> Surroundings:
        found = looks.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(upkeep, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(upkeep, "_look_around", look)
    findings = Findings()
    seen: list[tuple[str, bool]] = []
    findings.listen(lambda finding, holds: seen.append((finding.name, holds)))
    with pytest.raises(IndexError):
        await asyncio.wait_for(upkeep.check_machine(findings), 5)
    assert seen == [(preflight.LEFTOVER, True), (preflight.LEFTOVER, False)]


async def test_the_writers_queue_is_sampled() -> None:
    class Writer:
        queued = (3, 40)

    metrics = Metrics()
    await work(upkeep.sample(cast(Any, Writer()), metrics))
    value = metrics.registry.get_sample_value
    assert value("weft_writer_queue", {"kind": "attachment"}) == 3
    assert value("weft_writer_queue", {"kind": "bulk"}) == 40


async def test_host_ports_that_hide_node_ports_are_told_while_they_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upkeep, "SAMPLE_SECONDS", 0.01)
    findings = Findings()
    web = PortMapping(b"", 6, 30080, 80)
    pod = Record(
        AttachmentKey("weft", "c", "eth0"),
        "/n",
        "weft1",
        bytes(6),
        1,
        (bytes(4),),
        "shop",
        "web",
        ports=(web,),
    )
    records = [pod]
    async with asyncio.TaskGroup() as group:
        task = group.create_task(upkeep.check_host_ports(lambda: records, lambda _: "shop/front", findings))
        await asyncio.sleep(0.02)
        (row,) = findings.rows()
        assert row.name == "HostPortHidesNodePort"
        assert "shop/web" in row.message
        assert "shop/front" in row.message
        records.clear()
        await asyncio.sleep(0.02)
        assert findings.rows() == ()
        task.cancel()
