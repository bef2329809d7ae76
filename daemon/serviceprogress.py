"""How far the kernel is behind the Services: what waits since when, and the figures that kube-proxy gives.

The reconciler of Services says what changed and when a round of writing begins and ends; health endpoints ask
whether something has waited too long. Owns no reconciling. The metrics have kube-proxy's names and meaning
(pkg/proxy/metrics in Kubernetes), so that its dashboards go on working.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from daemon.metrics import Metrics

Kind: TypeAlias = Literal["service", "endpoint"]

LATE_SECONDS = 60.0
"""What waits longer makes the node unhealthy: twice the time after which everything is compared anyway (as
kube-proxy takes twice its sync period)."""


class Progress:
    """Changes of Services and EndpointSlices from their arrival until the kernel has them."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`clock` measures durations, `now` gives the seconds since 1970; other ones are for tests."""
        self._metrics = metrics
        self._clock = clock
        self._now = now
        self._started = now()
        self._applied = False
        self._waiting_since: float | None = None
        self._begun_with: float | None = None
        self._pending: dict[Kind, int] = {"service": 0, "endpoint": 0}
        self._seen: dict[str, float] = {}
        self._triggers: list[float] = []

    @property
    def applied(self) -> bool:
        """Whether a round was completed once."""
        return self._applied

    @property
    def waited(self) -> float:
        """For how many seconds the oldest change is not in the kernel yet; 0 when all are."""
        since = self._begun_with if self._begun_with is not None else self._waiting_since
        return 0.0 if since is None else self._clock() - since

    @property
    def late(self) -> bool:
        """Whether something has waited too long."""
        return self.waited > LATE_SECONDS

    def service_changed(self) -> None:
        """Note that a Service came, went or changed."""
        self._changed("service")

    def endpoints_changed(self, slice_name: str, trigger: float | None = None) -> None:
        """Note that an EndpointSlice came, went or changed.

        Args:
            slice_name: namespace and name; an annotation that stayed the same counts once.
            trigger: its time of last change as it was decoded; None for a slice that is gone.
        """
        self._changed("endpoint")
        if trigger is None:
            self._seen.pop(slice_name, None)
        elif trigger > max(self._started, self._seen.get(slice_name, 0.0)):
            # What was written before this process began says nothing of how fast it is.
            self._seen[slice_name] = trigger
            self._triggers.append(trigger)

    @contextmanager
    def round(self) -> Iterator[None]:
        """Write in the body what has changed so far; what changes meanwhile is for the next round.

        An exception leaves everything waiting.
        """
        began = self._clock()
        since, self._waiting_since = self._waiting_since, None
        pending, self._pending = self._pending, {"service": 0, "endpoint": 0}
        triggers, self._triggers = self._triggers, []
        self._begun_with = since
        try:
            yield
        except BaseException:
            self._waiting_since = since if since is not None else self._waiting_since
            self._triggers[:0] = triggers
            for kind, count in pending.items():
                self._pending[kind] += count
            raise
        else:
            self._done(began, triggers)
        finally:
            self._begun_with = None
            self._show_pending()

    def _changed(self, kind: Kind) -> None:
        metrics = self._metrics
        self._pending[kind] += 1
        if self._waiting_since is None:
            self._waiting_since = self._clock()
        (metrics.service_changes if kind == "service" else metrics.endpoint_changes).inc()
        metrics.services_queued.set(self._now())
        self._show_pending()

    def _done(self, began: float, triggers: list[float]) -> None:
        metrics, now = self._metrics, self._now()
        self._applied = True
        metrics.services_seconds.observe(self._clock() - began)
        metrics.services_last.set(now)
        for trigger in triggers:
            metrics.services_programming.observe(max(0.0, now - trigger))

    def _show_pending(self) -> None:
        self._metrics.service_changes_pending.set(self._pending["service"])
        self._metrics.endpoint_changes_pending.set(self._pending["endpoint"])
