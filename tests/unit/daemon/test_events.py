"""Kubernetes events: about Node or pod, without repeats or floods, waiting out an outage."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, cast

from daemon import events as module
from daemon.cluster.connection import ApiError, UnreachableError
from daemon.events import Events, PodReference, mark_network_available
from daemon.findings import Findings
from daemon.metrics import Metrics

if TYPE_CHECKING:
    import pytest

    from daemon.cluster.connection import Connection


class Recorder:
    """Stands in for the connection."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any]] = []
        self.failures: list[Exception] = []

    async def request(self, method: str, path: str, *, body: Any, **_: Any) -> dict[str, Any]:
        if self.failures:
            raise self.failures.pop(0)
        self.requests.append((method, path, body))
        return {}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(recorder: Recorder, clock: Clock | None = None) -> Events:
    return Events(cast("Connection", recorder), "node-1", Metrics(), clock=clock or Clock())


async def post(events: Events) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(events.run(), 0.05)


async def test_an_event_of_the_node_is_where_kubectl_describe_looks_for_it() -> None:
    recorder = Recorder()
    events = make(recorder)
    findings = Findings()
    findings.listen(events.on_finding)
    findings.report("AddressOverlap", "error", "what happened and what to do")
    findings.report("Fine", "ok", "nothing")
    findings.clear("AddressOverlap")
    await post(events)
    ((method, path, body),) = recorder.requests
    assert (method, path) == ("POST", "/api/v1/namespaces/default/events")
    assert body["involvedObject"] == {"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "node-1"}
    assert (body["reason"], body["type"], body["message"]) == (
        "AddressOverlap",
        "Warning",
        "what happened and what to do",
    )
    assert body["metadata"]["name"].startswith("node-1.")


async def test_an_event_of_a_pod_is_in_its_namespace() -> None:
    recorder = Recorder()
    events = make(recorder)
    events.emit("AddressesExhausted", "x" * 5000, warning=False, pod=PodReference("default", "web", "u1"))
    await post(events)
    ((_, path, body),) = recorder.requests
    assert path == "/api/v1/namespaces/default/events"
    assert body["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": "web",
        "namespace": "default",
        "uid": "u1",
    }
    assert body["type"] == "Normal"
    assert len(body["message"]) == 1024


async def test_repeats_are_dropped_for_ten_minutes() -> None:
    recorder, clock = Recorder(), Clock()
    events = make(recorder, clock)
    for _ in range(5):
        events.emit("A", "same", warning=True)
    events.emit("A", "other", warning=True)
    clock.now += 601
    events.emit("A", "same", warning=True)
    await post(events)
    assert [body["message"] for _, _, body in recorder.requests] == ["same", "other", "same"]
    assert len({body["metadata"]["name"] for _, _, body in recorder.requests}) == 3


async def test_a_flood_is_cut_and_flows_again_slowly() -> None:
    recorder, clock = Recorder(), Clock()
    events = make(recorder, clock)
    for number in range(200):
        events.emit("A", f"text {number}", warning=True)
    await post(events)
    assert len(recorder.requests) == 25
    clock.now += 12.5
    for number in range(200, 210):
        events.emit("A", f"text {number}", warning=True)
    await post(events)
    assert len(recorder.requests) == 27


async def test_an_outage_delays_and_a_refusal_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REFILL_SECONDS", 0.01)
    recorder = Recorder()
    recorder.failures = [UnreachableError("connect", "away"), ApiError(403, "Forbidden", "no")]
    events = make(recorder)
    events.emit("First", "refused after the outage", warning=True)
    events.emit("Second", "comes through", warning=True)
    await post(events)
    assert [body["reason"] for _, _, body in recorder.requests] == ["Second"]


async def test_what_is_remembered_is_bounded() -> None:
    clock = Clock()
    events = make(Recorder(), clock)
    for number in range(3000):
        clock.now += 10
        events.emit("A", f"text {number}", warning=True)
        if number % 50 == 0:
            await post(events)
    assert len(events._posted) <= 1000


async def test_the_node_condition() -> None:
    recorder = Recorder()
    await mark_network_available(cast("Connection", recorder), "node-1")
    ((method, path, body),) = recorder.requests
    assert (method, path) == ("PATCH", "/api/v1/nodes/node-1/status")
    (condition,) = body["status"]["conditions"]
    assert (condition["type"], condition["status"]) == ("NetworkUnavailable", "False")
