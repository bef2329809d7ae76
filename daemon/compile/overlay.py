"""The road between nodes as fragments: this node's tunnel ends, and what each remote node needs. Pure.

Everything follows from Node objects alone: MAC and address inside the overlay are computed from a node's
name and podCIDRs, so no node has to publish anything. Per remote podCIDR there is either a direct route, or
a route by way of the tunnel address (in IPv6, of the link-local address) with a permanent neighbour (that
address → MAC) and a forwarding entry (MAC → node).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from daemon.compile.local import (
    FAMILY_NAMES,
    IPV4,
    IPV6,
    Problem,
    contains,
    link_local,
    of_family,
    tunnel_family,
    underlay_addresses,
    vtep_mac,
)
from daemon.compile.masquerade import peer_elements
from datapath import text
from datapath.desired import (
    FdbEntry,
    Fragment,
    LinkAddress,
    Neighbour,
    Route,
    RouteKind,
    Sysctl,
    VxlanLink,
)

if TYPE_CHECKING:
    from daemon.cluster.model import Node, Prefix
    from daemon.compile.local import LocalNetwork, Vtep
    from datapath.desired import Address, KernelObject, Mac


class Remote(NamedTuple):
    """What a remote node needs here.

    Attributes:
        fragment: routes, neighbours and forwarding entries; elements of sets.
        problems: why some of its pods can't be reached.
    """

    fragment: Fragment
    problems: tuple[Problem, ...] = ()


def local_fragment(local: LocalNetwork) -> Fragment:
    """Return what this node's own part of the overlay consists of."""
    objects: list[KernelObject] = [
        # First, or forwarding makes the node forget its default route with the next advertisement.
        Sysctl(f"net/ipv6/conf/{link}/accept_ra", "2")
        for link in local.accept_ra_links
    ]
    if IPV4 in local.tunnel_addresses:
        objects.append(Sysctl("net/ipv4/ip_forward", "1"))
    if IPV6 in local.tunnel_addresses:
        objects.append(Sysctl("net/ipv6/conf/all/forwarding", "1"))
    for vtep in local.vteps.values():
        objects += _vtep_objects(local, vtep)
    home = _home(local)
    for family, address in local.tunnel_addresses.items():
        objects.append(LinkAddress(home.link, address, 8 * family))
    objects += [
        # Else packets to an address that no pod has would leave by the default route, and come back.
        Route(cidr.address, cidr.length, None, kind=RouteKind.UNREACHABLE)
        for cidr in local.pod_cidrs
        if cidr.length < 8 * len(cidr.address)
    ]
    return Fragment(objects=tuple(objects))


def remote(local: LocalNetwork, node: Node) -> Remote:
    """Return what a remote node needs on this one."""
    objects: list[KernelObject] = []
    direct: list[Address] = []
    problems: list[Problem] = []
    theirs = underlay_addresses(node)
    tunnel: tuple[Vtep, Mac] | None = None
    for cidr in node.pod_cidrs:
        clash = _clash(local, node, cidr)
        if clash is not None:
            problems.append(clash)
            continue
        if local.overlay != "vxlan":
            gateway = of_family(theirs, len(cidr.address))
            way = local.underlays.get(len(cidr.address))
            if way is not None and gateway is not None and way.reaches(gateway):
                objects.append(Route(cidr.address, cidr.length, way.link, gateway, way.address))
                direct.append(gateway)
                continue
            if local.overlay == "direct":
                problems.append(_not_direct(local, node, cidr, gateway))
                continue
        if tunnel is None:
            family = tunnel_family(local.vteps, theirs)
            if family is None:
                problems.append(_unreachable(node, cidr))
                continue
            tunnel = vtep, mac = local.vteps[family], vtep_mac(node.name, family)
            far = next(address for address in theirs if len(address) == family)
            objects.append(FdbEntry(vtep.link, mac, far))
        vtep, mac = tunnel
        start = cidr.address
        source = local.tunnel_addresses.get(len(start))
        # Linux refuses an IPv6 gateway, onlink or not, that another route (one to be replaced, or one of the
        # network's that covers the pods) sends elsewhere. A link-local gateway it does not look up.
        gateway = start if len(start) == IPV4 else link_local(mac)
        objects.append(Neighbour(vtep.link, gateway, mac))
        objects.append(Route(start, cidr.length, vtep.link, gateway, source, onlink=True))
    return Remote(Fragment(tuple(objects), peer_elements(node, direct)), tuple(problems))


def _vtep_objects(local: LocalNetwork, vtep: Vtep) -> tuple[KernelObject, ...]:
    link = vtep.link
    settings = [
        # Loose: a node with a direct route here may send from its InternalIP by tunnel for a while, as nodes
        # don't change at once. The larger of this and conf/all counts, so 0 would not do where that is 1.
        Sysctl(f"net/ipv4/conf/{link}/rp_filter", "2"),
    ]
    if IPV6 in local.tunnel_addresses:
        settings += [
            Sysctl(f"net/ipv6/conf/{link}/disable_ipv6", "0"),
            Sysctl(f"net/ipv6/conf/{link}/accept_ra", "0"),
        ]
    return (
        VxlanLink(link, local.vni, local.port, vtep.mac, vtep.local, vtep.mtu, local.tx_checksum),
        *settings,
    )


def _home(local: LocalNetwork) -> Vtep:
    """Return the tunnel end that carries the tunnel addresses: they serve both, and exist once."""
    return local.vteps[min(local.vteps)]


def _clash(local: LocalNetwork, node: Node, cidr: Prefix) -> Problem | None:
    for own in local.pod_cidrs:
        if own.length == cidr.length and own.address != cidr.address:
            continue
        if contains(own.address, min(own.length, cidr.length), cidr.address):
            return Problem(
                "PodCidrConflict",
                "error",
                f"Node {node.name} has podCIDR {text.prefix(*cidr)}, which overlaps {text.prefix(*own)} of "
                "this node: delete one of the two Nodes and let it register again",
                node.name,
            )
    return None


def _not_direct(local: LocalNetwork, node: Node, cidr: Prefix, gateway: Address | None) -> Problem:
    family = FAMILY_NAMES[len(cidr.address)]
    if gateway is None:
        reason = f"it has no {family} InternalIP"
    elif len(gateway) not in local.underlays:
        reason = f"this node has no {family} InternalIP"
    else:
        reason = f"{text.address(gateway)} is not on the segment of {local.underlays[len(gateway)].link}"
    return Problem(
        "NoDirectRoute",
        "error",
        f"pods of Node {node.name} ({text.prefix(*cidr)}) can't be reached: {reason}, and overlay is "
        "direct: set overlay to auto",
        node.name,
    )


def _unreachable(node: Node, cidr: Prefix) -> Problem:
    why = (
        "it shares no address family with this node"
        if underlay_addresses(node)
        else "it has no InternalIP (is its kubelet running?)"
    )
    return Problem(
        "NodeUnreachable",
        "warning",
        f"pods of Node {node.name} ({text.prefix(*cidr)}) can't be reached: {why}",
        node.name,
    )
