"""How this node reaches another, read off what is compiled for it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.admin.sources import Path
from daemon.compile import overlay
from datapath.desired import FdbEntry, Route

if TYPE_CHECKING:
    from daemon.cluster.model import Node
    from daemon.compile.local import LocalNetwork


def path(local: LocalNetwork | None, node: Node) -> Path:
    """Return how `node` is reached; `direct+vxlan` when its families differ in that."""
    if local is None:
        return Path("none", problem="this node's own network is not known yet (see weftctl status)")
    if node.name == local.node_name:
        vteps = local.vteps
        return Path("local", vteps[min(vteps)].mac if vteps else None)
    if not node.pod_cidrs:
        return Path("none", problem="its Node has no podCIDR yet")
    remote = overlay.remote(local, node)
    peers = [value for value in remote.fragment.objects if isinstance(value, FdbEntry)]
    routes = [value for value in remote.fragment.objects if isinstance(value, Route)]
    ways = [
        name
        for name, used in (
            ("direct", any(not route.onlink for route in routes)),
            ("vxlan", any(route.onlink for route in routes)),
        )
        if used
    ]
    problem = "; ".join(found.message for found in remote.problems)
    return Path("+".join(ways) or "none", peers[0].mac if peers else None, problem)
