"""The messages that wire a pod: for its pair of links, for its own side, for the node's side. Pure.

Owns what they say and in which order. Most of it is alike for all pods of a shape (which families, names of
which length), so each shape has a template, made with the encoders when the first pod has it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from datapath.desired import LinkAddress, Neighbour, Route
from datapath.netlink.addresses import new_address
from datapath.netlink.links import (
    IPV4_ARP_NOTIFY,
    IPV4_FORWARDING,
    IPV4_ROUTE_LOCALNET,
    LOOPBACK_INDEX,
    VethPair,
    address_family_settings,
    new_veth,
    set_link,
)
from datapath.netlink.neighbours import learned_neighbour, new_neighbour
from datapath.netlink.routes import PROTOCOL_BOOT, get_route, new_route
from datapath.netlink.template import Template
from datapath.text import parse_address

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from datapath.attachment import AttachRequest
    from datapath.desired import Address, Mac
    from datapath.netlink.transport import Message

    Filling: TypeAlias = tuple[Template, tuple[bytes | int, ...]]
    """A template and the values of its fields."""

GATEWAYS = {4: parse_address("169.254.1.1"), 16: parse_address("fe80::1")}
"""What pods have as their default gateway, by address length: the node's end of each veth."""

_HOST_SETTINGS = address_family_settings({IPV4_FORWARDING: 1}, ipv6_link_local=False)
_LOOPBACK_SETTINGS = address_family_settings(
    {IPV4_FORWARDING: 1, IPV4_ROUTE_LOCALNET: 1}, ipv6_link_local=False
)
_POD_SETTINGS = address_family_settings({IPV4_ARP_NOTIFY: 1})
_ANYWHERE = {4: bytes(4), 16: bytes(16)}
_INTEGER, _MAC = "I", "6s"
_SHAPES = 256


def pair(request: AttachRequest, namespace: int) -> Filling:
    """Return the message that creates both links, the pod's in the namespace of that descriptor."""
    here, there = request.host_link.encode(), request.ifname.encode()
    values = (here, request.host_mac, there, request.mac, namespace, request.mtu)
    return _pair(len(here), len(there)), values


def pod_side(request: AttachRequest, index: int) -> Filling:
    """Return what is set up in the pod; repeating it all is harmless."""
    addresses = request.addresses
    return _pod_side(tuple(map(len, addresses))), (index, request.host_mac, *addresses)


def host_lead(request: AttachRequest, index: int, *, on_loopback: bool) -> tuple[Message, ...]:
    """Return what comes before `host_side`: the alias, which has any length, and settings of the link.

    Settings first: with the other end up, a link-local address would be generated at once.
    """
    settings = _LOOPBACK_SETTINGS if on_loopback else _HOST_SETTINGS
    return (set_link(index, alias=request.alias, settings=settings),)


def host_side(request: AttachRequest, index: int) -> Filling:
    """Return the rest of what is set up on the node."""
    addresses, sources = request.addresses, request.sources
    template = _host_side(tuple(map(len, addresses)), tuple(map(len, sources)))
    return template, (index, request.mac, *addresses, *sources)


def host_pairs(
    link: str, addresses: Sequence[Address], sources: Sequence[Address]
) -> list[tuple[LinkAddress, Route]]:
    """Return what the node's side holds for each address of a pod: the gateway's address, and the route."""
    by_size = {len(source): source for source in sources}
    return [
        (
            LinkAddress(link, GATEWAYS[size], 8 * size),
            Route(address, 8 * size, link, source=by_size.get(size)),
        )
        for size, address in zip(map(len, addresses), addresses, strict=True)
    ]


@lru_cache(maxsize=_SHAPES)
def _pair(here: int, there: int) -> Template:
    def make(name: bytes, mac: Mac, peer: bytes, peer_mac: Mac, namespace: int, mtu: int) -> list[Message]:
        return [new_veth(VethPair(name.decode(), mac, peer.decode(), peer_mac, namespace, mtu))]

    return Template(make, (f"{here}s", _MAC, f"{there}s", _MAC, _INTEGER, _INTEGER))


@lru_cache(maxsize=_SHAPES)
def _pod_side(sizes: tuple[int, ...]) -> Template:
    """Addresses, then up, then routes, as these need a link that is up."""

    def make(index: int, gateway_mac: Mac, *addresses: Address) -> list[Message]:
        messages = [set_link(LOOPBACK_INDEX, up=True)]
        for address in addresses:
            own = LinkAddress("", address, 8 * len(address))
            messages.append(new_address(own, index, prefix_route=False))
        messages.append(set_link(index, up=True, settings=_POD_SETTINGS))
        for size in sizes:
            gateway = GATEWAYS[size]
            if size == 4:
                messages.append(new_route(Route(gateway, 32, ""), index, protocol=PROTOCOL_BOOT))
            default = Route(_ANYWHERE[size], 0, "", gateway=gateway)
            messages.append(new_route(default, index, protocol=PROTOCOL_BOOT))
            messages.append(new_neighbour(Neighbour("", gateway, gateway_mac), index))
        # Its answer tells whether packets to it arrive already, see `datapath.arrival`.
        messages += [get_route(address) for address in addresses if len(address) == 16]
        return messages

    return Template(make, (_INTEGER, _MAC, *(f"{size}s" for size in sizes)))


@lru_cache(maxsize=_SHAPES)
def _host_side(sizes: tuple[int, ...], source_sizes: tuple[int, ...]) -> Template:
    """The neighbours come when both ends are up: an end without carrier drops what is not permanent."""

    def make(index: int, mac: Mac, *values: Address) -> list[Message]:
        addresses, sources = values[: len(sizes)], values[len(sizes) :]
        messages = [set_link(index, up=True)]
        for gateway, route in host_pairs("", addresses, sources):
            messages.append(new_address(gateway, index, prefix_route=False, link_scope=True))
            messages.append(new_route(route, index))
        messages += [learned_neighbour(Neighbour("", address, mac), index) for address in addresses]
        return messages

    return Template(make, (_INTEGER, _MAC, *(f"{size}s" for size in (*sizes, *source_sizes))))
