"""Compares an attachment with the kernel, on both sides, and says in words what is wrong. Changes nothing.

What plugins chained behind us may change is no fault: the pod's MAC address and MTU, further addresses and
routes, and a default route that points elsewhere. What cuts the pod off is one.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

from datapath.attachment import DOOMED_GROUP, GATEWAYS, host_objects
from datapath.desired import Sysctl
from datapath.errors import NamespaceError, NetlinkError
from datapath.netlink.addresses import decode_address, get_addresses
from datapath.netlink.links import IFF_LOWER_UP, decode_link, get_link
from datapath.netlink.neighbours import decode_neighbour, get_neighbours
from datapath.netlink.routes import TABLE_MAIN, decode_route, get_routes
from datapath.netlink.transport import Socket
from datapath.netns import open_namespace
from datapath.nft.hostports import host_port_elements, show_place
from datapath.observe import read_setting
from datapath.text import address as show
from datapath.text import mac as show_mac
from datapath.text import prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from datapath.attachment import Attachment
    from datapath.desired import Address, Mac, SetKey
    from datapath.netlink.links import LinkState
    from datapath.netlink.routes import RouteState

_FAMILIES = {4: socket.AF_INET, 16: socket.AF_INET6}


def inspect(host: Socket, attachment: Attachment) -> tuple[str, ...]:
    """Return the faults of an attachment, empty when it is sound.

    Args:
        host: a socket in the node's namespace.
        attachment: what was wired.

    Raises:
        NetlinkError: the kernel could not be read.
    """
    here = _find(host, attachment.host_link)
    if here is None or here.group == DOOMED_GROUP:
        return (f"the node has no link {attachment.host_link}",)
    faults = list(_node_faults(host, attachment, here))
    try:
        namespace = open_namespace(attachment.netns)
    except NamespaceError as error:
        return (*faults, str(error))
    try:
        with Socket(namespace=namespace) as pod:
            faults += _pod_faults(host, pod, attachment, here)
    finally:
        os.close(namespace)
    return tuple(faults)


def inspect_ports(
    elements: Callable[[SetKey], Mapping[bytes, bytes]], attachment: Attachment
) -> tuple[str, ...]:
    """Return what is wrong with an attachment's host ports, empty when they are sound.

    Args:
        elements: returns what a set of ours holds in the kernel.
        attachment: what was wired.

    Raises:
        DatapathError: the kernel could not be read.
    """
    faults = []
    for wanted in host_port_elements(attachment.addresses, attachment.ports):
        held = elements(wanted.key)
        faults += [
            f"host port {show_place(wanted, place)} does not lead to the pod"
            for place, target in wanted.elements.items()
            if held.get(place) != target
        ]
    for each in host_objects(attachment, ()):
        if isinstance(each, Sysctl) and read_setting(each.path) != each.value:
            faults.append(f"the node does not reach the pod by 127.0.0.1: {each.path} is not {each.value}")
    return tuple(faults)


def _node_faults(host: Socket, attachment: Attachment, link: LinkState) -> Iterator[str]:
    name = attachment.host_link
    if link.kind != "veth":
        yield f"the node's link {name} is a {link.kind or 'device'}, not a veth"
    if not link.up:
        yield f"the node's link {name} is down"
    elif not link.flags & IFF_LOWER_UP:
        yield f"the node's link {name} has no carrier: its other end is down"
    routes = {(route.destination, route.length) for route in _routes(host, link.index, attachment.addresses)}
    held = _addresses(host, link.index, attachment.addresses)
    for address in attachment.addresses:
        if (address, 8 * len(address)) not in routes:
            yield f"the node has no route to {show(address)} by {name}"
        if GATEWAYS[len(address)] not in held:
            yield f"the node's link {name} lacks the gateway's address {show(GATEWAYS[len(address)])}"


def _pod_faults(host: Socket, pod: Socket, attachment: Attachment, host_link: LinkState) -> Iterator[str]:
    name, netns = attachment.ifname, attachment.netns
    link = _find(pod, name)
    if link is None:
        yield f"{netns} has no interface {name}"
        return
    if link.kind != "veth" or link.peer_index != host_link.index or host_link.peer_index != link.index:
        yield f"{name} in {netns} is not the other end of {attachment.host_link}"
    if not link.up:
        yield f"{name} in {netns} is down"
    held = _addresses(pod, link.index, attachment.addresses)
    # Of any link: a plugin behind us may lead the pod's traffic elsewhere.
    routes = _routes(pod, 0, attachment.addresses)
    for address in attachment.addresses:
        size = len(address)
        if address not in held:
            yield f"{name} in {netns} has no address {show(address)}"
        if not any(route.length == 0 and len(route.destination) == size for route in routes):
            yield f"{netns} has no default route {prefix(bytes(size), 0)}"
    for neighbour, mac in _permanent_neighbours(pod, link.index, attachment.addresses):
        if neighbour in GATEWAYS.values() and mac != host_link.mac:
            yield f"{netns} sends to {show(neighbour)} at {show_mac(mac)}, which no link of the node has"
    # A permanent entry of someone else doesn't follow when the pod's MAC address changes.
    for neighbour, mac in _permanent_neighbours(host, host_link.index, attachment.addresses):
        if neighbour in attachment.addresses and mac != link.mac:
            mine, wrong = show_mac(link.mac), show_mac(mac)
            yield f"the node sends to {show(neighbour)} at {wrong}, but the pod has {mine}"


def _find(where: Socket, name: str) -> LinkState | None:
    try:
        return decode_link(where.request(get_link(name), f"link {name} can't be read"))
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise


def _families(addresses: tuple[Address, ...]) -> set[int]:
    return {_FAMILIES[len(address)] for address in addresses}


def _routes(where: Socket, index: int, addresses: tuple[Address, ...]) -> list[RouteState]:
    found = [
        decode_route(payload)
        for family in _families(addresses)
        for payload in where.dump(get_routes(family, link_index=index), "routes can't be read")
    ]
    return [route for route in found if route.table == TABLE_MAIN]


def _addresses(where: Socket, index: int, addresses: tuple[Address, ...]) -> set[Address]:
    return {
        decode_address(payload).address
        for family in _families(addresses)
        for payload in where.dump(get_addresses(family, index), "addresses can't be read")
    }


def _permanent_neighbours(
    where: Socket, index: int, addresses: tuple[Address, ...]
) -> Iterator[tuple[Address, Mac]]:
    for family in _families(addresses):
        for payload in where.dump(get_neighbours(family, index), "neighbours can't be read"):
            entry = decode_neighbour(payload)
            if entry.permanent and entry.mac is not None:
                yield entry.address, entry.mac
