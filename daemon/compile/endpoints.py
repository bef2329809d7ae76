"""Which endpoints of a Service port serve whom. Pure.

Policy Cluster: who is ready, and of these only the near ones where all have topology hints and some are for
us; if nobody is ready, who serves while terminating. Policy Local: the same of this node alone, hints aside
(KEP-1669, KEP-2433, KEP-3015).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from datapath.nft.frontends import Backend

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from daemon.cluster.model import Endpoint, EndpointSlice, ServicePort

Found: TypeAlias = "Mapping[Backend, Endpoint]"
"""The endpoints of one port and family, by address and port."""


@dataclass(frozen=True, slots=True)
class Site:
    """This node, as far as a Service depends on it: name, zone ("" without one), and primary addresses."""

    node: str
    zone: str = ""
    addresses: tuple[bytes, ...] = ()


def find(slices: Iterable[EndpointSlice], port: ServicePort, family: int, site: Site) -> Found:
    """Return all endpoints that slices of a Service have for one of its ports.

    Slices are joined by the port's name and protocol, each with a number of its own. Of an endpoint that is
    in several, as while it moves from one to another, the entry counts that says it is local, then ready.

    Args:
        slices: those of the Service, always in the same order.
        port: of the Service.
        family: 4 or 6.
        site: this node.
    """
    found: dict[Backend, Endpoint] = {}
    for each in slices:
        if each.family != family:
            continue
        for target in each.ports:
            if target.name != port.name or target.protocol != port.protocol:
                continue
            number = target.port
            for endpoint in each.endpoints:
                backend = Backend(endpoint.address, number)
                known = found.setdefault(backend, endpoint)
                if known is not endpoint and _weight(endpoint, site) > _weight(known, site):
                    found[backend] = endpoint
    return found


def anywhere(found: Found, site: Site) -> tuple[Backend, ...]:
    """Return the endpoints for policy Cluster, sorted."""
    ready = {backend: endpoint for backend, endpoint in found.items() if endpoint.ready}
    if ready:
        return tuple(sorted(_near(ready, site)))
    return tuple(sorted([backend for backend, endpoint in found.items() if _lingers(endpoint)]))


def here(found: Found, site: Site) -> tuple[Backend, ...]:
    """Return the endpoints for policy Local, sorted."""
    local = {backend: endpoint for backend, endpoint in found.items() if endpoint.node == site.node}
    ready = [backend for backend, endpoint in local.items() if endpoint.ready]
    return tuple(sorted(ready or [backend for backend, endpoint in local.items() if _lingers(endpoint)]))


def serving(found: Found) -> frozenset[Backend]:
    """Return the endpoints that may go on answering: whoever serves, or is ready because the Service says so.

    A Service with publishNotReadyAddresses has endpoints that are ready and do not serve.
    """
    return frozenset([backend for backend, endpoint in found.items() if endpoint.serving or endpoint.ready])


def local_ready(found: Found, site: Site) -> int:
    """Return how many addresses of this node are ready, as health checks of load balancers count."""
    ready = {backend.address for backend, endpoint in found.items() if _here_and_ready(endpoint, site)}
    return len(ready)


def _here_and_ready(endpoint: Endpoint, site: Site) -> bool:
    return endpoint.ready and endpoint.node == site.node


def _near(ready: Found, site: Site) -> Iterable[Backend]:
    """Topology: hints for nodes first, then for zones; each counts only if every ready endpoint has one."""
    if all(endpoint.nodes for endpoint in ready.values()):
        near = [backend for backend, endpoint in ready.items() if site.node in endpoint.nodes]
        if near:
            return near
    if all(endpoint.zones for endpoint in ready.values()):
        near = [backend for backend, endpoint in ready.items() if site.zone in endpoint.zones]
        if near:
            return near
    return ready


def _lingers(endpoint: Endpoint) -> bool:
    return endpoint.serving and endpoint.terminating


def _weight(endpoint: Endpoint, site: Site) -> tuple[bool, bool, bool]:
    return (endpoint.node == site.node, endpoint.ready, endpoint.serving)
