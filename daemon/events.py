"""Kubernetes events and the Node condition NetworkUnavailable: what users see of the daemon by kubectl.

Posting is best effort: an API server that is away or refuses loses events, never work. Repeats are dropped
for a while and the rate is limited, so that a fault that recurs for each pod of a node does not flood the
cluster.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog

from daemon.cluster.connection import STRATEGIC_MERGE, ApiError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.cluster.connection import Connection
    from daemon.findings import Finding
    from daemon.metrics import Metrics

_REPEAT_SECONDS = 600
_BURST = 25
_REFILL_SECONDS = 6
_WAITING = 100
_REMEMBERED = 1000
_MAX_MESSAGE = 1024  # validation of core/v1 Event in the API server

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PodReference:
    """The pod that an event is about."""

    namespace: str
    name: str
    uid: str = ""


class Events:
    """Posts events about this node and its pods; `emit` never waits, `run` is a task that never ends."""

    def __init__(
        self,
        connection: Connection,
        node_name: str,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._node = node_name
        self._metrics = metrics
        self._clock = clock
        self._waiting: deque[dict[str, Any]] = deque()
        self._ready = asyncio.Event()
        self._posted: dict[tuple[str, str, PodReference | None], float] = {}
        self._tokens = float(_BURST)
        self._refilled = clock()
        self._number = itertools.count()

    def on_finding(self, finding: Finding, holds: bool) -> None:
        """A listener for Findings: whatever needs an operator becomes an event of the Node."""
        if holds and finding.level != "ok":
            self.emit(finding.name, finding.message, warning=True)

    def emit(self, reason: str, message: str, *, warning: bool, pod: PodReference | None = None) -> None:
        """Have an event posted, about the pod or else about this node."""
        now = self._clock()
        key = (reason, message, pod)
        if now - self._posted.get(key, -_REPEAT_SECONDS) < _REPEAT_SECONDS:
            self._metrics.events_dropped.labels("repeat").inc()
            return
        self._tokens = min(_BURST, self._tokens + (now - self._refilled) / _REFILL_SECONDS)
        self._refilled = now
        if self._tokens < 1 or len(self._waiting) >= _WAITING:
            self._metrics.events_dropped.labels("rate").inc()
            return
        self._tokens -= 1
        self._posted.pop(key, None)
        self._posted[key] = now
        if len(self._posted) > _REMEMBERED:
            del self._posted[next(iter(self._posted))]
        self._waiting.append(self._event(reason, message, warning, pod))
        self._ready.set()

    async def run(self) -> None:
        """Post what was emitted."""
        while True:
            await self._ready.wait()
            try:
                await self.flush()
            except UnreachableError:
                # It waits for the API server; those that come after it find their place or are dropped.
                await asyncio.sleep(_REFILL_SECONDS)

    async def flush(self) -> None:
        """Post what waits.

        Raises:
            UnreachableError: the API server is away; the rest waits on.
        """
        while self._waiting:
            event = self._waiting[0]
            path = f"/api/v1/namespaces/{event['metadata']['namespace']}/events"
            try:
                await self._connection.request("POST", path, body=event)
            except ApiError as error:
                self._metrics.events_dropped.labels("refused").inc()
                log.debug("event refused", reason=event["reason"], error=str(error))
            self._waiting.popleft()
        self._ready.clear()

    def _event(self, reason: str, message: str, warning: bool, pod: PodReference | None) -> dict[str, Any]:
        now = _now()
        if pod is None:
            # kubelet's events name the node's name as uid, and `kubectl describe node` looks for that.
            regarding = {"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": self._node}
            namespace = "default"
        else:
            regarding = {"apiVersion": "v1", "kind": "Pod", "name": pod.name, "namespace": pod.namespace}
            namespace = pod.namespace
            if pod.uid:
                regarding["uid"] = pod.uid
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{regarding['name']}.{time.time_ns():x}{next(self._number):x}",
                "namespace": namespace,
            },
            "involvedObject": regarding,
            "reason": reason,
            "message": message[:_MAX_MESSAGE],
            "type": "Warning" if warning else "Normal",
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": "weft", "host": self._node},
            "reportingComponent": "weft.dev/weftd",
            "reportingInstance": self._node,
        }


async def mark_network_available(connection: Connection, node_name: str) -> None:
    """Set the Node condition NetworkUnavailable to False: cloud providers taint nodes until someone does.

    Raises:
        ApiError: the API server refused, e.g. for lack of the right to patch nodes/status.
        UnreachableError: it could not be reached.
    """
    now = _now()
    condition = {
        "type": "NetworkUnavailable",
        "status": "False",
        "reason": "WeftIsUp",
        "message": "Weft serves pods on this node",
        "lastTransitionTime": now,
        "lastHeartbeatTime": now,
    }
    await connection.request(
        "PATCH",
        f"/api/v1/nodes/{node_name}/status",
        body={"status": {"conditions": [condition]}},
        content_type=STRATEGIC_MERGE,
    )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
