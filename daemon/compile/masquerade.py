"""What the sets of the static tables hold: who may send VXLAN, where pods keep their address. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.compile.local import underlay_addresses
from datapath import text
from datapath.desired import Fragment, SetElements
from datapath.nft.elements import intervals, prefix
from datapath.nft.rules import Family
from datapath.nft.tables import DIRECT, LOCAL, NODES, TABLE, UNMASQUERADED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from daemon.cluster.model import Node
    from daemon.compile.local import LocalNetwork
    from daemon.config import Config
    from datapath.desired import Address
    from datapath.nft.elements import Range

_FAMILIES = {4: Family.IPV4, 16: Family.IPV6}


def sets_fragment(
    local: LocalNetwork, nodes: Mapping[str, Node], direct: Iterable[Address], config: Config
) -> Fragment:
    """Return the elements of all sets that depend on the nodes.

    Args:
        local: this node's network.
        nodes: all nodes, this one included.
        direct: addresses of nodes with a direct route in both directions. Towards another's address a pod is
            masqueraded: its own address would arrive there beside the tunnel, where rp_filter drops it.
        config: the daemon's configuration.
    """
    senders = {
        address
        for node in nodes.values()
        if node.name != local.node_name
        for address in (*underlay_addresses(node), *node.internal_ips)
    }
    ours = {vtep.local for vtep in local.vteps.values()} | set(local.internal_ips)
    kept = unmasqueraded(nodes.values(), config)
    elements: list[SetElements] = []
    for width, family in _FAMILIES.items():
        table = (int(family), TABLE)
        elements += [
            _addresses(table, NODES, senders, width),
            _addresses(table, LOCAL, ours, width),
            _addresses(table, DIRECT, direct, width),
            SetElements(table, UNMASQUERADED, intervals(each for each in kept if len(each.first) == width)),
        ]
    return Fragment(elements=tuple(elements))


def unmasqueraded(nodes: Iterable[Node], config: Config) -> Sequence[Range]:
    """Return where pods keep their address: the cluster's pod CIDRs and what the configuration exempts."""
    ranges = [prefix(*text.parse_prefix(cidr)) for cidr in config.non_masquerade_cidrs]
    if config.cluster_cidrs:
        ranges += [prefix(*text.parse_prefix(cidr)) for cidr in config.cluster_cidrs]
    else:
        ranges += [prefix(*cidr) for node in nodes for cidr in node.pod_cidrs]
    return ranges


def _addresses(table: tuple[int, str], name: str, addresses: Iterable[Address], width: int) -> SetElements:
    return SetElements(table, name, {address: b"" for address in addresses if len(address) == width})
