"""Tells of denied packets: whose they were, which policies isolate the pod; to the log and who watches.

Owns when the log's group is bound (while some pod is isolated), the names that packets get, and the bounds of
what is told. Rules tell a bounded number of packets a second, and lines are bounded again over all of them;
how many were denied without a line is told now and then, by the kernel's count. Who watches and is slow loses
events, and is told how many; nobody waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from daemon.compile.policy_words import protocol_name
from datapath import text
from datapath.errors import DatapathError
from datapath.packetlog import PacketLog
from datapath.policy import Direction

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.compile.policy import Policies
    from daemon.findings import Findings
    from daemon.metrics import Metrics
    from daemon.podnames import PodNames
    from datapath.nft.policy import DenialLog
    from datapath.packetlog import DeniedPacket

log = structlog.get_logger()

UNAVAILABLE = "DenialLogUnavailable"
RETRY_SECONDS = 30.0
WATCHERS = 4
"""At once: each takes one of the admin service's few calls for as long as it watches."""
BACKLOG = 1000
"""Events that wait for a slow watcher."""


@dataclass(frozen=True, slots=True)
class Denial:
    """One denied packet.

    Attributes:
        when: time.time().
        direction: ingress when it was denied at its destination, egress at its source.
        pod: of this node, NAMESPACE/NAME; "" when it has gone meanwhile.
        peer: the pod at the other end; "" where none is known.
        source, destination: addresses.
        protocol: in words.
        source_port, destination_port: 0 where the protocol has none.
        policies: which isolate the pod in this direction; () while its labels are not known yet.
    """

    when: float
    direction: Direction
    pod: str
    peer: str
    source: str
    destination: str
    protocol: str
    source_port: int
    destination_port: int
    policies: tuple[str, ...]


class Watcher:
    """Events for one who watches."""

    def __init__(self) -> None:
        self._waiting: deque[Denial] = deque()
        self._ready = asyncio.Event()
        self._left_out = 0

    def put(self, denial: Denial) -> None:
        """Let it have an event, if it keeps up."""
        if len(self._waiting) >= BACKLOG:
            self._left_out += 1
            return
        self._waiting.append(denial)
        self._ready.set()

    async def next(self) -> tuple[Denial, int]:
        """Return the next event, and how many were left out since the last one that was returned."""
        while not self._waiting:
            self._ready.clear()
            await self._ready.wait()
        left_out, self._left_out = self._left_out, 0
        return self._waiting.popleft(), left_out


class Denials:
    """What is denied, as it happens; `run` is a task that never ends."""

    def __init__(
        self,
        model: Policies,
        names: PodNames,
        metrics: Metrics,
        findings: Findings,
        *,
        receiver: Callable[[int, Callable[[list[DeniedPacket]], None]], PacketLog] = PacketLog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._names = names
        self._metrics = metrics
        self._findings = findings
        self._receiver = receiver
        self._clock = clock
        self._settings: DenialLog | None = None
        self._isolated = False
        self._changed = asyncio.Event()
        self._watchers: set[Watcher] = set()
        self._tokens = 0.0
        self._refilled = clock()
        self._lines = 0

    def configure(self, settings: DenialLog | None) -> None:
        """Say which group rules log to and how many lines a second are written; None for no log at all."""
        self._settings = settings
        self._tokens = float(settings.rate) if settings is not None else 0.0
        self._changed.set()

    def isolated(self, isolated: bool) -> None:
        """Say whether any pod is isolated now."""
        if isolated != self._isolated:
            self._isolated = isolated
            self._changed.set()

    def watch(self) -> Watcher | None:
        """Return events from now on, until `leave`; None when too many watch already."""
        if len(self._watchers) >= WATCHERS:
            return None
        watcher = Watcher()
        self._watchers.add(watcher)
        return watcher

    def leave(self, watcher: Watcher) -> None:
        """Take no more events."""
        self._watchers.discard(watcher)

    def counted(self, packets: int) -> None:
        """Take how many packets the kernel denied since the last call, and tell how many had no line."""
        untold = packets - self._lines
        self._lines = max(0, -untold)
        if self._settings is not None and untold > 0:
            log.info("denied, and not told one by one", packets=untold)

    async def run(self) -> None:
        """Keep the group bound while some pod is isolated."""
        loop = asyncio.get_running_loop()

        def deliver(packets: list[DeniedPacket]) -> None:
            loop.call_soon_threadsafe(self.take, packets)

        while True:
            self._changed.clear()
            settings = self._settings
            if settings is None or not self._isolated:
                await self._wait(None)
                continue
            receiver = self._receiver(settings.group, deliver)
            try:
                await asyncio.to_thread(receiver.start)
            except DatapathError as error:
                self._findings.report(
                    UNAVAILABLE,
                    "warning",
                    f"denied packets are counted and not told one by one: {error}; give another "
                    "policyLogGroup if an agent on this machine has this one, or 0 as policyLogRate",
                )
                await self._wait(RETRY_SECONDS)
                continue
            self._findings.clear(UNAVAILABLE)
            try:
                await self._wait_while_bound(settings)
            finally:
                receiver.stop()

    async def _wait_while_bound(self, settings: DenialLog) -> None:
        while self._isolated and self._settings == settings:
            self._changed.clear()
            await self._wait(None)

    async def _wait(self, seconds: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    def take(self, packets: list[DeniedPacket]) -> None:
        """Tell of packets."""
        for packet in packets:
            denial = self._name(packet)
            for watcher in self._watchers:
                watcher.put(denial)
            if self._may_write():
                self._write(denial)

    def _name(self, packet: DeniedPacket) -> Denial:
        own, other = packet.source, packet.destination
        if packet.direction is Direction.INGRESS:
            own, other = other, own
        subject = self._model.subject(own)
        return Denial(
            when=time.time(),
            direction=packet.direction,
            pod=subject.pod if subject is not None else "",
            peer=self._names.name(other),
            source=text.address(packet.source),
            destination=text.address(packet.destination),
            protocol=protocol_name(packet.protocol),
            source_port=packet.source_port,
            destination_port=packet.destination_port,
            policies=(subject.isolation(packet.direction) or ()) if subject is not None else (),
        )

    def _may_write(self) -> bool:
        rate = self._settings.rate if self._settings is not None else 0
        now = self._clock()
        self._tokens = min(float(rate), self._tokens + (now - self._refilled) * rate)
        self._refilled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _write(self, denial: Denial) -> None:
        self._lines += 1
        self._metrics.policy_logged.inc()
        ports = (
            {"source_port": denial.source_port, "port": denial.destination_port}
            if denial.destination_port
            else {}
        )
        log.info(
            "denied",
            direction=denial.direction.value,
            pod=denial.pod,
            peer=denial.peer,
            source=denial.source,
            destination=denial.destination,
            protocol=denial.protocol,
            **ports,
            policies=list(denial.policies),
        )
