"""The addresses by which nodes come through the overlay, and which of them a block of addresses means. Pure.

Whoever writes a policy knows a node by its own address. Through the overlay it speaks from the first address
of its podCIDR, which therefore counts as that node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.compile.policy_sets import SharedSets
from datapath.policy import contains

if TYPE_CHECKING:
    from daemon.cluster.model import Node
    from daemon.compile.policy_rules import BlockScope


class TunnelSets:
    """The nodes' tunnel addresses, and those within each block in use.

    Attributes:
        sets: the sets in use, and what of them has changed.
        nodes: the node's own address by tunnel address.
        touched: tunnel addresses that may have come or gone.
    """

    def __init__(self) -> None:
        self.sets: SharedSets[BlockScope, bytes] = SharedSets()
        self.nodes: dict[bytes, bytes] = {}
        self.touched: set[bytes] = set()
        self._of: dict[str, dict[bytes, bytes]] = {}
        self._claims: dict[bytes, dict[str, bytes]] = {}

    def acquire(self, name: str, scope: BlockScope) -> None:
        """Use a set, which is filled if it is new."""
        new = self.sets.acquire(name, scope)
        if new is not None:
            width = len(scope.ranges[0].first)
            self.sets.add(
                new,
                [
                    tunnel
                    for tunnel, address in self.nodes.items()
                    if len(address) == width and contains(scope.ranges, address)
                ],
            )

    def release(self, name: str) -> None:
        """Use a set no more; the last one takes it away."""
        self.sets.release(name)

    def put_node(self, name: str, node: Node | None) -> None:
        """Take a node; None where there is no such node."""
        before, after = self._of.get(name, {}), _tunnels(node) if node is not None else {}
        if before == after:
            return
        self._of[name] = after
        if not after:
            del self._of[name]
        for tunnel in before.keys() | after.keys():
            claims = self._claims.setdefault(tunnel, {})
            claims.pop(name, None)
            if tunnel in after:
                claims[name] = after[tunnel]
            # Two nodes with one podCIDR are a fault; whose address counts must not depend on who came first.
            self._put(tunnel, claims[min(claims)] if claims else None)
            if not claims:
                del self._claims[tunnel]

    def _put(self, tunnel: bytes, after: bytes | None) -> None:
        before = self.nodes.get(tunnel)
        if before == after:
            return
        self.touched.add(tunnel)
        if after is None:
            del self.nodes[tunnel]
        else:
            self.nodes[tunnel] = after
        for each in self.sets.by_name.values():
            was, now = _within(each.scope, before), _within(each.scope, after)
            if now and not was:
                self.sets.add(each, [tunnel])
            elif was and not now:
                self.sets.remove(each, [tunnel])


def _within(scope: BlockScope, address: bytes | None) -> bool:
    if address is None or len(address) != len(scope.ranges[0].first):
        return False
    return contains(scope.ranges, address)


def _tunnels(node: Node) -> dict[bytes, bytes]:
    """Return a node's own address by its tunnel address, for each family that it has both of."""
    found: dict[bytes, bytes] = {}
    for cidr in node.pod_cidrs:
        for address in node.internal_ips:
            if len(address) == len(cidr.address) and address not in found.values():
                found[cidr.address] = address
    return found
