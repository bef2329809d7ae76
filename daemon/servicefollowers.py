"""What follows from Services once the kernel has them: stale UDP flows go, health check ports answer.

Translates the catalog for those who do it; owns no reconciling and no socket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.servicehealth import HealthCheck
from datapath.conntrack import Destination, StaleFlows

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.compile.catalog import Catalog
    from daemon.compile.local import LocalNetwork
    from daemon.servicehealth import HealthCheckPorts
    from datapath.conntrack import Sweeper


class ServiceFollowers:
    """Those who have to hear of Services that are in the kernel."""

    def __init__(
        self, sweeper: Sweeper, ports: HealthCheckPorts, local: Callable[[], LocalNetwork | None]
    ) -> None:
        self._sweeper = sweeper
        self._ports = ports
        self._local = local

    def follow(self, catalog: Catalog) -> None:
        """Do what the catalog's latest state asks for."""
        stale = {
            Destination(frontend.family, frontend.address, frontend.port): frozenset(
                (backend.address, backend.port) for backend in serving
            )
            for frontend, serving in catalog.stale_flows().items()
        }
        if stale:
            self._sweeper.offer(StaleFlows(stale))
        checks = {}
        for key, check in catalog.health_checks.items():
            namespace, _, name = key.partition("/")
            checks[check.port] = HealthCheck(namespace, name, check.local_endpoints)
        local = self._local()
        addresses = [way.address for way in local.underlays.values()] if local is not None else []
        self._ports.set(checks, addresses)
