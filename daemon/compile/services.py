"""One Service and its endpoints as seen from this node: what becomes of connections to each of its frontends.

Pure. Knows no other Service: who gets a frontend that several want is decided in `catalog`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

from daemon.compile import endpoints
from datapath.nft.elements import disjoint, prefix
from datapath.nft.frontends import Absence, Balance, Frontend, Snat
from datapath.nft.rules import Family, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from daemon.cluster.model import EndpointSlice, Service, ServicePort
    from daemon.compile.endpoints import Found, Site
    from datapath.nft.elements import Range
    from datapath.nft.frontends import Backend

_FAMILIES = {4: (Family.IPV4, 4), 16: (Family.IPV6, 6)}
_EXPOSED = frozenset({"NodePort", "LoadBalancer"})


class Kind(Enum):
    """How a Service is reached at a frontend; what comes first wins where one has the same address twice."""

    CLUSTER_IP = "ClusterIP"
    LOAD_BALANCER = "LoadBalancer"
    EXTERNAL_IP = "ExternalIP"
    NODE_PORT = "NodePort"


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """What a load balancer asks this node: the port it asks at, and how many endpoints are ready here."""

    port: int
    local_endpoints: int


@dataclass(slots=True)
class Compiled:
    """What one Service is on this node.

    Attributes:
        balances: what becomes of new connections, by frontend.
        kinds: how the Service is reached at each frontend.
        serving: who may answer, by frontend of protocol UDP: flows that others answer are stale.
        local: endpoints of this node among those in use.
        health_check: None unless the Service has one.
        by_zone: whether another zone of this node may make a difference.
        by_address: whether other addresses of this node may make a difference.
    """

    balances: dict[Frontend, Balance] = field(default_factory=dict)
    kinds: dict[Frontend, Kind] = field(default_factory=dict)
    serving: dict[Frontend, frozenset[Backend]] = field(default_factory=dict)
    local: set[Backend] = field(default_factory=set)
    health_check: HealthCheck | None = None
    by_zone: bool = False
    by_address: bool = False


def compile_service(service: Service, slices: Sequence[EndpointSlice], site: Site) -> Compiled:
    """Compile one Service.

    A family that the Service has no ClusterIP of is none of its families, whatever else it has addresses of.

    Args:
        service: the Service; a headless one and one of type ExternalName compile to nothing.
        slices: its EndpointSlices, in the order of their names.
        site: this node.
    """
    result = Compiled()
    external_local = service.external_local and externally_reachable(service)
    checked = bool(external_local and service.health_check_node_port and service.type == "LoadBalancer")
    ready_here = 0
    for address in service.cluster_ips:
        family, version = _FAMILIES[len(address)]
        sources = _sources(service, len(address), site)
        for port in service.ports:
            found = endpoints.find(slices, port, version, site)
            if checked:
                ready_here = max(ready_here, endpoints.local_ready(found, site))
            internal, external = _balances(service, found, site, external_local=external_local)
            serving = endpoints.serving(found) if port.protocol == Protocol.UDP else None
            for frontend, kind in frontends(service, port, family, address):
                if frontend in result.balances:
                    continue
                balance = internal if kind is Kind.CLUSTER_IP else external
                if kind is Kind.LOAD_BALANCER and sources is not None:
                    balance = replace(balance, sources=sources)
                result.balances[frontend] = balance
                result.kinds[frontend] = kind
                if serving is not None:
                    result.serving[frontend] = serving
            result.local.update([each for each, endpoint in found.items() if endpoint.node == site.node])
    if checked:
        result.health_check = HealthCheck(service.health_check_node_port, ready_here)
    result.by_zone = any(endpoint.zones for each in slices for endpoint in each.endpoints)
    result.by_address = bool(service.source_ranges)
    return result


def frontends(
    service: Service, port: ServicePort, family: Family, cluster_ip: bytes
) -> Iterator[tuple[Frontend, Kind]]:
    """Yield where one port of a Service is reached in the family of one of its ClusterIPs."""
    protocol, number, width = port.protocol, port.port, len(cluster_ip)
    yield Frontend(family, cluster_ip, protocol, number), Kind.CLUSTER_IP
    for address in service.load_balancer_ips:
        if len(address) == width:
            yield Frontend(family, address, protocol, number), Kind.LOAD_BALANCER
    for address in service.external_ips:
        if len(address) == width:
            yield Frontend(family, address, protocol, number), Kind.EXTERNAL_IP
    if port.node_port:
        yield Frontend(family, None, protocol, port.node_port), Kind.NODE_PORT


def externally_reachable(service: Service) -> bool:
    """Whether externalTrafficPolicy means something: there is a way in from outside."""
    return service.type in _EXPOSED or bool(service.external_ips)


def _balances(service: Service, found: Found, site: Site, *, external_local: bool) -> tuple[Balance, Balance]:
    """Return what becomes of connections to the ClusterIP, and to all other frontends."""
    anywhere = endpoints.anywhere(found, site)
    here = endpoints.here(found, site) if service.internal_local or external_local else ()
    seconds = service.affinity_seconds
    inside = here if service.internal_local else anywhere
    internal = Balance(
        backends=inside,
        snat=Snat.FOREIGN,
        absence=Absence.DROP if anywhere and not inside else Absence.REFUSE,
        affinity_seconds=seconds,
    )
    external = Balance(
        backends=anywhere,
        snat=Snat.NEVER if external_local else Snat.ALWAYS,
        # Where nobody serves at all, everybody is told so.
        outside=here if external_local and anywhere else None,
        affinity_seconds=seconds,
    )
    return internal, external


def _sources(service: Service, width: int, site: Site) -> tuple[Range, ...] | None:
    """Return where clients of the load balancer's addresses may come from; None for everywhere.

    A range with this node in it stands for the node's own connections too, and a load balancer whose address
    is also one of the node's makes those come from that address.
    """
    allowed = [each for each in service.source_ranges if len(each.address) == width]
    if not allowed or not all(each.length for each in allowed):
        return None
    ranges = [prefix(*each) for each in allowed]
    ours = [address for address in site.addresses if len(address) == width]
    if any(first <= address <= last for first, last in ranges for address in ours):
        ranges += [prefix(each, 8 * width) for each in service.load_balancer_ips if len(each) == width]
    return disjoint(ranges)
