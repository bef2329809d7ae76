"""This node's own part of the network: its addresses, its ways to other nodes, its MTU.

Pure. What hinders the network is returned as values (`Problem`), never raised: the rest goes on working.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from datapath import text
from datapath.desired import VXLAN6_LINK, VXLAN_LINK

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence

    from daemon.cluster.model import Node, Prefix
    from daemon.config import Config
    from datapath.desired import Address, Mac
    from datapath.underlay import HostLink

Family: TypeAlias = int
"""Bytes of an address of the family: 4 or 16."""
IPV4: Family = 4
IPV6: Family = 16
FAMILY_NAMES = {IPV4: "IPv4", IPV6: "IPv6"}
OVERHEAD = {IPV4: 50, IPV6: 70}
"""Bytes that VXLAN adds by family of the underlay: IP, UDP, VXLAN, inner Ethernet."""
IPV6_MINIMUM_MTU = 1280
VXLAN_LINKS = {IPV4: VXLAN_LINK, IPV6: VXLAN6_LINK}


class Problem(NamedTuple):
    """What hinders the network; becomes a finding of this name, level and message."""

    name: str
    level: Literal["warning", "error"]
    message: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class Underlay:
    """How one family of packets leaves this node for others.

    `connected` are the prefixes that `link` reaches without a gateway.
    """

    link: str
    address: Address
    mtu: int
    connected: tuple[tuple[Address, int], ...] = ()

    def reaches(self, address: Address) -> bool:
        """Whether an address is a neighbour on the link."""
        return any(contains(prefix, length, address) for prefix, length in self.connected)


@dataclass(frozen=True, slots=True)
class Vtep:
    """This node's end of the tunnels over one family of underlay."""

    link: str
    mac: Mac
    local: Address
    mtu: int


@dataclass(frozen=True, slots=True)
class LocalNetwork:
    """What the rest of the daemon needs to know of this node's network.

    Attributes:
        node_name: name of the Node object.
        internal_ips: InternalIPs of the Node, at most one per family.
        pod_cidrs: where this node's pods get their addresses from.
        sources: the node's address per family as pods on this node see it: preferred source of their host
        routes. mtu: of pods' interfaces, bytes.
        underlays: the way out by family of the underlay.
        vteps: tunnel ends by family of the underlay.
        tunnel_addresses: this node's address inside the overlay by family, first address of the podCIDR.
        problems: what hinders the network.
    """

    node_name: str
    internal_ips: tuple[Address, ...]
    pod_cidrs: tuple[Prefix, ...]
    sources: tuple[Address, ...]
    mtu: int
    overlay: Literal["vxlan", "direct", "auto"]
    vni: int
    port: int
    tx_checksum: bool
    underlays: Mapping[Family, Underlay] = field(default_factory=dict)
    vteps: Mapping[Family, Vtep] = field(default_factory=dict)
    tunnel_addresses: Mapping[Family, Address] = field(default_factory=dict)
    accept_ra_links: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    def internal_ip(self, family: Family) -> Address | None:
        """Return the node's address of one family."""
        return of_family(self.internal_ips, family)


def compile_local(
    node_name: str,
    node: Node | None,
    links: Sequence[HostLink],
    config: Config,
    *,
    vxlan6: bool = False,
    previous: LocalNetwork | None = None,
) -> tuple[LocalNetwork | None, tuple[Problem, ...]]:
    """Work out this node's network.

    Args:
        node_name: name of this node's Node object.
        node: the object, None while there is none.
        links: the links of this machine that are not ours.
        config: the daemon's configuration.
        vxlan6: whether a peer can be reached by VXLAN over IPv6 only .
        previous: what this returned last. While an InternalIP is on no link (a DHCP client or NetworkManager
            takes it away and adds it again) the way that it had is kept: tearing the overlay down would
            lengthen the gap.

    Returns:
        The network, or None while it can't be known, and what hinders it.
    """
    if node is None:
        return None, (
            Problem(
                "NodeMissing",
                "error",
                f"there is no Node object named {node_name!r}: is kubelet registered, is nodeName of the "
                "configuration (or NODE_NAME) the name that it registers under?",
            ),
        )
    if not node.pod_cidrs:
        return None, (
            Problem(
                "PodCidrMissing",
                "error",
                f"Node {node_name} has no spec.podCIDR: run kube-controller-manager with "
                "--allocate-node-cidrs=true and --cluster-cidr, or set podCIDRs on the Node",
            ),
        )
    problems: list[Problem] = []
    underlays = _underlays(node, links, previous, problems)
    if not underlays:
        return None, tuple(problems)
    vteps = _vteps(node_name, underlays, vxlan6=vxlan6)
    tunnels: dict[Family, Address] = {}
    for cidr in node.pod_cidrs:
        tunnels.setdefault(len(cidr.address), cidr.address)
    sources = tuple(
        underlays[family].address if family in underlays else address
        for family, address in sorted(tunnels.items())
    )
    local = LocalNetwork(
        node_name=node_name,
        internal_ips=node.internal_ips,
        pod_cidrs=node.pod_cidrs,
        sources=sources,
        mtu=_pod_mtu(config, underlays, vteps, tunnels, problems),
        overlay=config.overlay,
        vni=config.vni,
        port=config.vxlan_port,
        tx_checksum=config.tx_checksum_offload != "off",
        underlays=underlays,
        vteps=vteps,
        tunnel_addresses=tunnels,
        accept_ra_links=_links_that_rely_on_advertisements(underlays, links) if IPV6 in tunnels else (),
        problems=tuple(problems),
    )
    return local, local.problems


def tunnel_family(own: Container[Family], other: Iterable[Address]) -> Family | None:
    """Return the family that two nodes tunnel over: IPv4 where both have it; None with nothing in common.

    Args:
        own: families of one node's underlay addresses.
        other: the underlay addresses of the other.
    """
    found = None
    for address in other:
        family = len(address)
        if family in own and (found is None or family < found):
            found = family
    return found


def underlay_addresses(node: Node) -> tuple[Address, ...]:
    """Return the addresses that other nodes send to."""
    return node.underlay or node.internal_ips


def vtep_mac(node_name: str, family: Family) -> Mac:
    """Return a node's MAC address inside the overlay: the same wherever it is computed.

    Locally administered unicast, out of a hash of the name: 46 bits, so that 5,000 nodes collide once in 5
    million clusters.
    """
    digest = sha256(f"{node_name}/{FAMILY_NAMES[family]}".encode()).digest()
    return bytes(((digest[0] & 0xFC) | 0x02,)) + digest[1:6]


def link_local(mac: Mac) -> Address:
    """Return the IPv6 link-local address made of a MAC address. RFC 4291, appendix A."""
    return bytes.fromhex("fe80") + bytes(6) + bytes((mac[0] ^ 0x02,)) + mac[1:3] + b"\xff\xfe" + mac[3:]


def of_family(addresses: Iterable[Address], family: Family) -> Address | None:
    """Return the first address of a family."""
    return next((address for address in addresses if len(address) == family), None)


def contains(prefix: Address, length: int, address: Address) -> bool:
    """Whether an address lies within a prefix, whose host bits don't matter; False across families."""
    if len(prefix) != len(address):
        return False
    whole = length >> 3
    if prefix[:whole] != address[:whole]:
        return False
    rest = 8 - (length & 7)
    return rest == 8 or prefix[whole] >> rest == address[whole] >> rest


def _underlays(
    node: Node, links: Sequence[HostLink], previous: LocalNetwork | None, problems: list[Problem]
) -> dict[Family, Underlay]:
    wanted = node.internal_ips or tuple(
        address for link in links if link.default for address, _ in link.addresses
    )
    if not wanted:
        problems.append(
            Problem(
                "InternalIPMissing",
                "error",
                f"Node {node.name} has no InternalIP and this machine no default route: "
                "set kubelet's --node-ip",
            )
        )
    underlays: dict[Family, Underlay] = {}
    for address in wanted:
        family = len(address)
        way = _carried(address, links)
        if way is None:
            kept = previous.underlays.get(family) if previous is not None else None
            way = kept if kept is not None and kept.address == address else _default(address, links)
            if way is None or way is kept:
                problems.append(_not_carried(address))
        if way is None:
            continue
        underlays.setdefault(family, way)
    return underlays


def _carried(address: Address, links: Sequence[HostLink]) -> Underlay | None:
    """Return the way out by the link that carries an InternalIP."""
    for link in links:
        if any(own == address for own, _ in link.addresses):
            return _underlay(link, address)
    return None


def _default(address: Address, links: Sequence[HostLink]) -> Underlay | None:
    """Return the way out by the default route: a cloud's 1:1 NAT keeps the InternalIP off the machine."""
    for link in links:
        local = of_family((own for own, _ in link.addresses), len(address))
        if link.default and local is not None:
            return _underlay(link, local)
    return None


def _underlay(link: HostLink, local: Address) -> Underlay:
    family = len(local)
    connected = tuple(
        (own, length) for own, length in link.addresses if len(own) == family and length < 8 * family
    )
    return Underlay(link.name, local, link.mtu, connected)


def _not_carried(address: Address) -> Problem:
    family = FAMILY_NAMES[len(address)]
    return Problem(
        "InternalIPMissing",
        "error",
        f"no link of this machine carries the Node's InternalIP {text.address(address)}, and no {family} "
        "default route names another: add the address, or correct kubelet's --node-ip",
        family,
    )


def _vteps(node_name: str, underlays: Mapping[Family, Underlay], *, vxlan6: bool) -> dict[Family, Vtep]:
    return {
        family: Vtep(
            VXLAN_LINKS[family], vtep_mac(node_name, family), way.address, way.mtu - OVERHEAD[family]
        )
        for family, way in underlays.items()
        if family == IPV4 or vxlan6 or IPV4 not in underlays
    }


def _pod_mtu(
    config: Config,
    underlays: Mapping[Family, Underlay],
    vteps: Mapping[Family, Vtep],
    tunnels: Mapping[Family, Address],
    problems: list[Problem],
) -> int:
    if config.overlay == "direct":
        largest = min(way.mtu for way in underlays.values())
    else:
        largest = min(vtep.mtu for vtep in vteps.values())
    mtu = config.mtu or largest
    if mtu > largest:
        problems.append(
            Problem(
                "MtuTooLarge",
                "warning",
                f"mtu {mtu} of the configuration exceeds {largest}, what the underlay leaves with overlay "
                f"{config.overlay}: large packets between nodes will be fragmented or lost",
            )
        )
    if IPV6 in tunnels and mtu < IPV6_MINIMUM_MTU:
        problems.append(
            Problem(
                "MtuTooSmall",
                "error",
                f"pods would get MTU {mtu}, and IPv6 needs {IPV6_MINIMUM_MTU}: raise the underlay's MTU",
            )
        )
    return mtu


def _links_that_rely_on_advertisements(
    underlays: Mapping[Family, Underlay], links: Sequence[HostLink]
) -> tuple[str, ...]:
    """Return underlay links that accept router advertisements now and would not once they forward."""
    ways = {way.link for way in underlays.values()}
    return tuple(
        link.name
        for link in links
        if (link.name in ways or link.default) and link.accept_ra == 1 and not link.forwarding
    )
