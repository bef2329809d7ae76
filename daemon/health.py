"""The daemon's HTTP endpoints: health and metrics. Owns readiness and the loop's heartbeat.

/livez tells whether the daemon works at all: the event loop turns, and no change of a Service waits for long.
An API server in trouble is nothing that killing the daemon would mend. /healthz is what load balancers ask of
a node (kube-proxy's port and path): besides, the Services are in the kernel and the Node is not about to go
(KEP-3458, KEP-3836). /readyz is 200 while every named condition of readiness holds. A port that somebody else
holds is a finding, not an end: it is tried again until it is free.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.exposition import generate_latest

from daemon.config import split_listen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from aiohttp.typedefs import Handler

    from daemon.findings import Findings
    from daemon.metrics import Metrics
    from daemon.serviceprogress import Progress

_BEAT_SECONDS = 1.0
_DEAD_SECONDS = 30.0
_RETRY_SECONDS = 10.0


class Health:
    """Heartbeat and readiness."""

    def __init__(
        self,
        metrics: Metrics,
        conditions: Iterable[str],
        *,
        services: Progress | None = None,
        leaving: Callable[[], str] = lambda: "",
    ) -> None:
        """Nothing is promised yet.

        Args:
            metrics: where readiness is shown.
            conditions: the names of all that readiness consists of; none of them holds yet.
            services: how far the kernel is behind the Services, where the daemon proxies them.
            leaving: why load balancers should send nothing new to this node, "" while they may.
        """
        self._metrics = metrics
        self._services = services
        self._leaving = leaving
        self._missing = dict.fromkeys(conditions, "not yet")
        self._conditions = tuple(self._missing)
        self._beat = time.monotonic()

    @property
    def ready(self) -> bool:
        """Whether all conditions hold."""
        return not self._missing

    @property
    def missing(self) -> Mapping[str, str]:
        """The conditions that do not hold, and why."""
        return self._missing

    def set(self, condition: str, missing: str = "") -> None:
        """Say that a condition holds, or what it lacks."""
        if missing:
            self._missing[condition] = missing
        else:
            self._missing.pop(condition, None)
        self._metrics.ready.set(self.ready)

    async def run(self) -> None:
        """Beat, and measure how late the loop is."""
        while True:
            asked = time.monotonic()
            await asyncio.sleep(_BEAT_SECONDS)
            self._beat = time.monotonic()
            self._metrics.loop_lag.observe(max(0.0, self._beat - asked - _BEAT_SECONDS))

    @property
    def fault(self) -> str:
        """Why the daemon does not work; empty while it does."""
        age = time.monotonic() - self._beat
        if age >= _DEAD_SECONDS:
            return f"the event loop's last beat was {age:.0f} s ago"
        if self._services is not None and self._services.late:
            return f"a change of a Service has waited for {self._services.waited:.0f} s"
        return ""

    @property
    def proxying(self) -> bool:
        """Whether this node's Services are up to date: what health check ports tell as well."""
        return not self.fault and (self._services is None or self._services.applied)

    async def live(self, _request: web.Request) -> web.Response:
        """GET /livez."""
        return _verdict(self.fault)

    async def healthy(self, _request: web.Request) -> web.Response:
        """GET /healthz."""
        return _verdict(
            self.fault
            or ("" if self.proxying else "the Services are not in the kernel yet")
            or self._leaving()
        )

    async def readiness(self, _request: web.Request) -> web.Response:
        """GET /readyz: a line for each condition."""
        lines = [
            f"[-] {name}: {self._missing[name]}" if name in self._missing else f"[+] {name}"
            for name in self._conditions
        ]
        return web.Response(status=200 if self.ready else 503, text="\n".join(lines) + "\n")

    def routes(self) -> dict[str, Handler]:
        """Paths and what answers them."""
        return {"/livez": self.live, "/healthz": self.healthy, "/readyz": self.readiness}


def _verdict(fault: str) -> web.Response:
    return web.Response(status=503 if fault else 200, text=f"{fault or 'ok'}\n")


def metrics_routes(metrics: Metrics) -> dict[str, Handler]:
    """The path that Prometheus reads."""

    async def answer(_request: web.Request) -> web.Response:
        body = generate_latest(metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    return {"/metrics": answer}


async def serve(address: str, routes: Mapping[str, Handler], findings: Findings, *, key: str) -> None:
    """Answer GET requests at `address` (see config.split_listen) until cancelled; never ends by itself.

    `key` is the configuration key that names the address; an empty address serves nothing.
    """
    if not address:
        await asyncio.Event().wait()
    host, port = split_listen(address)
    application = web.Application()
    for path, answer in routes.items():
        application.router.add_get(path, answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        while True:
            try:
                await web.TCPSite(runner, host, port, reuse_address=True).start()
            except OSError as error:
                findings.report(
                    "PortTaken",
                    "warning",
                    f"{key} {address} can't be served: {error.strerror or error}; free the port or set "
                    f"another {key} (tried again every {_RETRY_SECONDS:.0f} s)",
                    key=key,
                )
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            findings.clear("PortTaken", key=key)
            await asyncio.Event().wait()
    finally:
        await runner.cleanup()
