"""What load balancers ask of this node: the health check ports of Services with externalTrafficPolicy Local.

Each such Service has a port of its own (spec.healthCheckNodePort), where any request is answered by whether
this node has endpoints of it, so that a load balancer sends packets only where their source can be kept. Owns
the listeners; who should listen where is given from outside, and one port more or less disturbs no other. A
port that can't be bound is a finding and is tried again. The answers are kube-proxy's
(pkg/proxy/healthcheck in Kubernetes), as cloud providers read them.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web

from daemon.findings import Finding
from datapath import text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from daemon.findings import Findings
    from datapath.desired import Address

PORT = "HealthCheckPortTaken"
RETRY_SECONDS = 10.0
IDLE_SECONDS = 15.0
"""How long a connection may be kept for the next question; load balancers ask every few seconds."""


class HealthCheck(NamedTuple):
    """What is told of a Service: its name, and how many of its endpoints on this node serve."""

    namespace: str
    name: str
    local_endpoints: int


class HealthCheckPorts:
    """The listeners; `set` says what should be, `run` is a task that never ends and makes it so."""

    def __init__(self, findings: Findings, healthy: Callable[[], bool]) -> None:
        """`healthy` tells whether this node's Services are up to date at all."""
        self._findings = findings
        self._healthy = healthy
        self._services: Mapping[int, HealthCheck] = {}
        self._addresses: frozenset[Address] = frozenset()
        self._open: dict[tuple[Address, int], web.TCPSite] = {}
        self._wake = asyncio.Event()

    @property
    def listening(self) -> Collection[tuple[Address, int]]:
        """Where answers are given now."""
        return self._open.keys()

    def set(self, services: Mapping[int, HealthCheck], addresses: Collection[Address]) -> None:
        """Say what each port answers, and on which addresses of this node; counts apply at once."""
        moved = services.keys() != self._services.keys() or set(addresses) != self._addresses
        self._services = dict(services)
        self._addresses = frozenset(addresses)
        if moved:
            self._wake.set()

    async def run(self) -> None:
        """Listen where it was said."""
        runner = web.ServerRunner(
            web.Server(self._answer, access_log=None, keepalive_timeout=IDLE_SECONDS), shutdown_timeout=1
        )
        await runner.setup()
        try:
            while True:
                self._wake.clear()
                failures = await self._listen(runner)
                self._findings.replace({PORT}, [_finding(*failure) for failure in failures.items()])
                try:
                    async with asyncio.timeout(RETRY_SECONDS if failures else None):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            self._open.clear()
            await runner.cleanup()

    async def _listen(self, runner: web.ServerRunner) -> dict[tuple[int, str], list[str]]:
        """Open and close what differs; returns why, by port and Service, where something can't be opened."""
        services, addresses = self._services, self._addresses
        wanted = {(address, port) for port in services for address in addresses}
        for key in self._open.keys() - wanted:
            await self._open.pop(key).stop()
        failures: dict[tuple[int, str], list[str]] = {}
        for address, port in sorted(wanted - self._open.keys()):
            site = web.TCPSite(runner, text.address(address), port, reuse_address=True)
            try:
                await site.start()
            except OSError as error:
                await site.stop()
                name = f"{services[port].namespace}/{services[port].name}"
                failures.setdefault((port, name), []).append(
                    f"{text.address(address)}: {error.strerror or error}"
                )
            else:
                self._open[address, port] = site
        return failures

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        transport = request.transport
        service = (
            self._services.get(transport.get_extra_info("sockname")[1]) if transport is not None else None
        )
        if service is None:
            # The port was given up while the connection was kept.
            gone = web.Response(status=503, text="no Service has this health check port any more\n")
            gone.force_close()
            return gone
        healthy = self._healthy()
        body = {
            "service": {"namespace": service.namespace, "name": service.name},
            "localEndpoints": service.local_endpoints,
            "serviceProxyHealthy": healthy,
        }
        return web.Response(
            status=200 if healthy and service.local_endpoints > 0 else 503,
            body=json.dumps(body).encode(),
            headers={
                "Content-Type": "application/json",
                "X-Content-Type-Options": "nosniff",
                "X-Load-Balancing-Endpoint-Weight": str(service.local_endpoints),
            },
        )


def _finding(port_and_service: tuple[int, str], reasons: list[str]) -> Finding:
    port, service = port_and_service
    return Finding(
        PORT,
        "warning",
        f"health check port {port} of Service {service} can't be served ({'; '.join(reasons)}), so its load "
        f"balancer takes this node for one without endpoints: free the port, or set another "
        f"spec.healthCheckNodePort (tried again every {RETRY_SECONDS:.0f} s)",
        str(port),
    )
