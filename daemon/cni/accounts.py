"""Figures and log lines of answered requests, written when nobody waits for an answer.

In a burst every microsecond of the loop is taken from the writer's thread, so the books are kept after it.
Refusals are rare and told at once. Owns no metric: they are declared in `daemon.metrics`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from datapath import text
from ipam.errors import ExhaustedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.cni.errors import CniError
    from daemon.metrics import Metrics
    from ipam.record import Record

log = structlog.get_logger()

SETTLE_SECONDS = 0.02
"""After an answer, until the books are looked at; then only when no request is under way."""
PATIENCE_SECONDS = 0.5
"""After an answer, until it is written down whatever else goes on."""
_COMMANDS = frozenset({"ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"})
_QUIET = frozenset({"STATUS", "VERSION", "CHECK"})
"""Commands whose success is no news."""


@dataclass(slots=True)
class Trace:
    """What is known of a request.

    Attributes:
        command: as it was asked for.
        start: time.perf_counter() at the handler's entry.
        attachment: the attachment's key in words, "" when it is about none.
        record: of the attachment, as far as there is one.
        seconds: parts of the request by name.
        total: seconds until the answer.
        failure: why it was refused.
    """

    command: str
    start: float
    attachment: str = ""
    record: Record | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    total: float = 0.0
    failure: CniError | None = None


class Accounts:
    """The books.

    Args:
        metrics: where figures go.
        busy: whether a request is under way.
        attachments: how many there are.
    """

    def __init__(self, metrics: Metrics, *, busy: Callable[[], bool], attachments: Callable[[], int]) -> None:
        self._metrics = metrics
        self._busy = busy
        self._attachments = attachments
        self._answered: list[Trace] = []

    def note(self, trace: Trace) -> None:
        """Remember an answered request; to be called on the event loop."""
        self._answered.append(trace)
        loop = asyncio.get_running_loop()
        if trace.failure is not None:
            loop.call_soon(self.settle)
        elif len(self._answered) == 1:
            loop.call_later(SETTLE_SECONDS, self._settle_at_rest)

    def settle(self) -> None:
        """Write down everything now."""
        answered, self._answered = self._answered, []
        for trace in answered:
            self._count(trace)
            _tell(trace)
        self._metrics.attachments.set(self._attachments())

    def _settle_at_rest(self) -> None:
        oldest = self._answered[0] if self._answered else None
        if oldest and self._busy() and time.perf_counter() - oldest.start - oldest.total < PATIENCE_SECONDS:
            asyncio.get_running_loop().call_later(SETTLE_SECONDS, self._settle_at_rest)
        else:
            self.settle()

    def _count(self, trace: Trace) -> None:
        metrics, failure = self._metrics, trace.failure
        command = trace.command if trace.command in _COMMANDS else "other"
        metrics.cni_requests.labels(command, "0" if failure is None else str(int(failure.code))).inc()
        metrics.cni_seconds.labels(command).observe(trace.total)
        for phase, spent in trace.seconds.items():
            metrics.cni_phase_seconds.labels(command, phase).observe(spent)
        if failure is not None and isinstance(failure.__cause__, ExhaustedError):
            metrics.ipam_exhausted.labels(failure.__cause__.pool).inc()


def _tell(trace: Trace) -> None:
    failure = trace.failure
    if failure is None and trace.command in _QUIET:
        return
    context: dict[str, object] = {"command": trace.command, "milliseconds": round(trace.total * 1000, 2)}
    if trace.attachment:
        context["attachment"] = trace.attachment
    if trace.record is not None:
        context["pod"] = f"{trace.record.pod_namespace}/{trace.record.pod_name}"
        context["addresses"] = [text.address(address) for address in trace.record.addresses]
    if failure is None:
        log.info("served", **context)
    else:
        log.warning("refused", code=int(failure.code), error=str(failure), details=failure.details, **context)
