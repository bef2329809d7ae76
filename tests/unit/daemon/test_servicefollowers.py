"""What is told to others once Services are in the kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from daemon.compile.catalog import Catalog
from daemon.servicefollowers import ServiceFollowers
from daemon.servicehealth import HealthCheck
from datapath.conntrack import Destination, StaleFlows
from datapath.nft.rules import Family
from datapath.text import parse_address
from tests.unit.daemon.compile.nodes import local
from tests.unit.daemon.compile.shop import SITE, service, slice_

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from daemon.cluster.model import EndpointSlice
    from daemon.servicehealth import HealthCheckPorts
    from datapath.conntrack import Sweeper
    from datapath.desired import Address

DNS = service("10.96.0.10", "dns:udp:53", name="dns")


class Listener:
    """Stands for the sweeper and for the ports."""

    def __init__(self) -> None:
        self.swept: list[StaleFlows] = []
        self.checks: Mapping[int, HealthCheck] = {}
        self.addresses: Collection[Address] = ()

    def offer(self, stale: StaleFlows) -> None:
        self.swept.append(stale)

    def set(self, services: Mapping[int, HealthCheck], addresses: Collection[Address]) -> None:
        self.checks, self.addresses = services, addresses


def followers(listener: Listener) -> ServiceFollowers:
    return ServiceFollowers(cast("Sweeper", listener), cast("HealthCheckPorts", listener), local)


def named(*endpoints: str) -> EndpointSlice:
    return slice_(*endpoints, ports="dns:udp:5353", of="dns")


def test_flows_are_stale_whose_backend_left() -> None:
    listener, catalog = Listener(), Catalog()
    both, one = named("10.0.0.1", "10.0.0.2"), named("10.0.0.1")
    place = Destination(Family.IPV4, parse_address("10.96.0.10"), 53)
    catalog.update({DNS.key: DNS}, lambda _: (both,), [DNS.key], SITE)
    followers(listener).follow(catalog)
    catalog.update({DNS.key: DNS}, lambda _: (one,), [DNS.key], SITE)
    followers(listener).follow(catalog)
    stays = frozenset({(parse_address("10.0.0.1"), 5353)})
    assert listener.swept[-1] == StaleFlows({place: stays})
    followers(listener).follow(catalog)
    assert len(listener.swept) == 2


def test_each_health_check_has_its_port_on_the_nodes_addresses() -> None:
    listener, catalog = Listener(), Catalog()
    web = service(
        balanced="203.0.113.1", type="LoadBalancer", external_local=True, health_check_node_port=30999
    )
    catalog.update({web.key: web}, lambda _: (slice_("10.0.0.1@here", "10.0.0.2@there"),), [web.key], SITE)
    followers(listener).follow(catalog)
    assert listener.checks == {30999: HealthCheck("shop", "web", 1)}
    assert set(listener.addresses) == {way.address for way in local().underlays.values()}
