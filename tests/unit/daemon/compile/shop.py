"""Services, slices and backends for these tests, written as text."""

from __future__ import annotations

from typing import Any

from daemon.cluster.model import Endpoint, EndpointPort, EndpointSlice, Prefix, Service, ServicePort
from daemon.compile.endpoints import Site
from datapath.nft.frontends import Backend, Frontend
from datapath.nft.rules import Family
from datapath.text import parse_address, parse_prefix

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
SITE = Site("here", "west", (parse_address("192.168.7.1"), parse_address("fd07::1")))


def addresses(text: str) -> tuple[bytes, ...]:
    """Addresses separated by spaces."""
    return tuple(map(parse_address, text.split()))


def port(text: str) -> ServicePort:
    """A port from `NAME:PROTOCOL:PORT[:NODE PORT]`."""
    name, protocol, *numbers = text.split(":")
    return ServicePort(name, PROTOCOLS[protocol], *map(int, numbers))


def service(
    cluster_ips: str = "10.96.0.7",
    ports: str = "http:tcp:80",
    *,
    external: str = "",
    balanced: str = "",
    ranges: str = "",
    name: str = "web",
    **more: Any,
) -> Service:
    """A Service of the namespace shop."""
    return Service(
        "shop",
        name,
        cluster_ips=addresses(cluster_ips),
        external_ips=addresses(external),
        load_balancer_ips=addresses(balanced),
        ports=tuple(map(port, ports.split())),
        source_ranges=tuple(Prefix(*parse_prefix(each)) for each in ranges.split()),
        **more,
    )


def endpoint(text: str) -> Endpoint:
    """An endpoint from `ADDRESS[@NODE][ WORD...]`.

    Words: `unready`, `lingering` (serves while it terminates), `dying` (terminates and serves no more),
    `unheard` (ready, but not serving), `zone=a,b`, `node=x,y`.
    """
    place, *words = text.split()
    address, _, node = place.partition("@")
    hints = {kind: tuple(names.split(",")) for kind, _, names in (w.partition("=") for w in words)}
    return Endpoint(
        parse_address(address),
        ready=not {"unready", "lingering", "dying"} & hints.keys(),
        serving=not {"unready", "dying", "unheard"} & hints.keys(),
        terminating=bool({"lingering", "dying"} & hints.keys()),
        node=node or "there",
        zones=hints.get("zone", ()),
        nodes=hints.get("node", ()),
    )


def slice_(
    *endpoints: str, ports: str = "http:tcp:8080", name: str = "web-1", of: str = "web"
) -> EndpointSlice:
    """A slice of the namespace shop; its family is that of the first endpoint, or IPv4."""
    family = 6 if endpoints and endpoints[0].count(":") > 1 else 4
    targets = [port(each) for each in ports.split()]
    return EndpointSlice(
        "shop",
        name,
        of,
        family,
        tuple(map(endpoint, endpoints)),
        tuple(EndpointPort(each.name, each.protocol, each.port) for each in targets),
    )


def backends(text: str, number: int = 8080) -> tuple[Backend, ...]:
    """Sorted backends of one port, addresses separated by spaces."""
    return tuple(sorted(Backend(address, number) for address in addresses(text)))


def frontend(text: str) -> Frontend:
    """A frontend from `PROTOCOL ADDRESS PORT`, or `PROTOCOL node PORT` and `PROTOCOL node6 PORT`."""
    protocol, place, number = text.split()
    family = Family.IPV6 if ":" in place or place == "node6" else Family.IPV4
    address = None if place.startswith("node") else parse_address(place)
    return Frontend(family, address, PROTOCOLS[protocol], int(number))
