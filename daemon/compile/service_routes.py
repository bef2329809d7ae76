"""Where ClusterIPs come from, as routes and as a set: what a host needs to connect to one at all. Pure.

A host's own connection is routed before its destination is replaced: without any route it fails with
ENETUNREACH and no rule ever sees it. So each service CIDR has a route of last resort. No packet leaves by it:
one to a ClusterIP gets a backend as its destination and is routed again, any other to the CIDR is dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.cluster import decode
from datapath.desired import Fragment, Route, SetElements
from datapath.nft.elements import intervals, prefix
from datapath.nft.frontends import SERVICE_CIDRS
from datapath.nft.rules import Family
from datapath.nft.tables import TABLE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from daemon.cluster.model import Prefix, ServiceCIDR
    from daemon.compile.local import LocalNetwork
    from daemon.config import Config
    from datapath.desired import Address, FragmentKey

SERVICE_ROUTES: FragmentKey = ("service-routes",)
LAST_RESORT = 1 << 31
"""Metric of the routes: a route to the same prefix that somebody else has made comes first."""

_FAMILIES = {4: Family.IPV4, 16: Family.IPV6}


def service_cidrs(config: Config, objects: Iterable[ServiceCIDR]) -> tuple[Prefix, ...]:
    """Return where ClusterIPs come from: what the configuration says, else all ServiceCIDR objects."""
    configured = [decode.prefix(item) for item in config.service_cidrs]
    return tuple(sorted(set(configured or [cidr for each in objects for cidr in each.cidrs])))


def service_routes(local: LocalNetwork, cidrs: Iterable[Prefix]) -> Fragment:
    """Return the routes of last resort and the elements of SERVICE_CIDRS of both tables.

    A family that this node has no address of has no routes.
    """
    cidrs = tuple(cidrs)
    ways = {width: _way(local, width) for width in _FAMILIES}
    routes = [
        Route(cidr.address, cidr.length, way[0], source=way[1], metric=LAST_RESORT)
        for cidr in cidrs
        if (way := ways[len(cidr.address)]) is not None
    ]
    ranges = [prefix(*cidr) for cidr in cidrs]
    elements = [
        SetElements(
            (int(family), TABLE),
            SERVICE_CIDRS,
            intervals(each for each in ranges if len(each.first) == width),
        )
        for width, family in _FAMILIES.items()
    ]
    return Fragment(objects=tuple(routes), elements=tuple(elements))


def _way(local: LocalNetwork, width: int) -> tuple[str, Address] | None:
    """Return link and source address: the underlay's, or the tunnel's in a family that only pods have."""
    underlay = local.underlays.get(width)
    if underlay is not None:
        return underlay.link, underlay.address
    address = local.tunnel_addresses.get(width)
    if address is None or not local.vteps:
        return None
    return local.vteps[min(local.vteps)].link, address
