"""What the sets of the static tables hold that depend on nodes and links. Pure.

Who may send VXLAN, where pods keep their address, which addresses are pods', where node ports are served, and
by which address this node speaks to its pods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.compile.local import IPV4, contains
from datapath import text
from datapath.desired import Fragment, SetElements
from datapath.nft.elements import intervals, key, prefix
from datapath.nft.frontends import NODE_PORT_ADDRESSES, NODE_SOURCE, POD_CIDRS
from datapath.nft.tables import DIRECT, LOCAL, NODES, TABLES, UNMASQUERADED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from daemon.cluster.model import Node
    from daemon.compile.local import LocalNetwork
    from daemon.config import Config
    from datapath.desired import Address
    from datapath.nft.elements import Range
    from datapath.underlay import HostLink


def peer_elements(node: Node, direct: Sequence[Address]) -> tuple[SetElements, ...]:
    """Return the elements that are there for one remote node.

    Args:
        node: it; its addresses may send VXLAN.
        direct: those of its addresses with a direct route in both directions. Towards another's address a pod
            is masqueraded: its own address would arrive there beside the tunnel, where rp_filter drops it.
    """
    found = []
    for name, addresses in ((NODES, (*node.underlay, *node.internal_ips)), (DIRECT, direct)):
        for width, table in TABLES.items() if addresses else ():
            elements = {address: b"" for address in addresses if len(address) == width}
            if elements:
                found.append(SetElements(table, name, elements))
    return tuple(found)


def sets_fragment(
    local: LocalNetwork, nodes: Mapping[str, Node], config: Config, node_ports: Iterable[Address] = ()
) -> Fragment:
    """Return the elements of all sets that depend on this node or on all of them together.

    Those of `peer_elements` are named as well: they may have no other.

    Args:
        local: this node's network.
        nodes: all nodes, this one included.
        config: the daemon's configuration.
        node_ports: addresses of this node at which node ports are served.
    """
    ours = {vtep.local for vtep in local.vteps.values()} | set(local.internal_ips)
    pods = pod_ranges(nodes.values(), config)
    kept = [*pods, *(prefix(*text.parse_prefix(cidr)) for cidr in config.non_masquerade_cidrs)]
    node_ports = tuple(node_ports)
    elements: list[SetElements] = []
    for width, table in TABLES.items():
        elements += [
            _addresses(table, NODES, (), width),
            _addresses(table, LOCAL, ours, width),
            _addresses(table, DIRECT, (), width),
            _ranges(table, UNMASQUERADED, kept, width),
            _ranges(table, POD_CIDRS, pods, width),
            _addresses(table, NODE_PORT_ADDRESSES, node_ports, width),
            SetElements(
                table,
                NODE_SOURCE,
                {key(bytes([table[0]])): address for address in local.sources if len(address) == width},
            ),
        ]
    return Fragment(elements=tuple(elements))


def pod_ranges(nodes: Iterable[Node], config: Config) -> Sequence[Range]:
    """Return the addresses of the cluster's pods: as configured, else all nodes' podCIDRs."""
    if config.cluster_cidrs:
        return [prefix(*text.parse_prefix(cidr)) for cidr in config.cluster_cidrs]
    return [prefix(*cidr) for node in nodes for cidr in node.pod_cidrs]


def node_port_addresses(
    local: LocalNetwork, links: Iterable[HostLink], config: Config
) -> tuple[Address, ...]:
    """Return where node ports are served: at the Node's addresses, or at all within configured CIDRs.

    Never at a loopback address.
    """
    if not config.node_port_addresses:
        return tuple(way.address for way in local.underlays.values())
    wanted = [text.parse_prefix(cidr) for cidr in config.node_port_addresses]
    return tuple(
        address
        for link in links
        for address, _ in link.addresses
        if any(contains(*each, address) for each in wanted) and not _is_loopback(address)
    )


def _is_loopback(address: Address) -> bool:
    return address[0] == 127 if len(address) == IPV4 else int.from_bytes(address, "big") == 1


def _ranges(table: tuple[int, str], name: str, ranges: Iterable[Range], width: int) -> SetElements:
    return SetElements(table, name, intervals(each for each in ranges if len(each.first) == width))


def _addresses(table: tuple[int, str], name: str, addresses: Iterable[Address], width: int) -> SetElements:
    return SetElements(table, name, {address: b"" for address in addresses if len(address) == width})
