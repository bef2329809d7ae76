"""Two nodes, their pods and an outsider on one segment, wired as Weft wires them, for both families.

    pod1, pod2 ── a ══ segment ══ b ── remote            outside is on the segment too

The nodes' VXLAN devices are real. Reverse path filters are off: what is dropped here, our rules drop.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datapath.nft.connection import Nft
from datapath.nft.elements import intervals, key, prefix
from datapath.nft.frontends import NODE_SOURCE
from datapath.nft.plan import plan
from datapath.nft.rules import Ruleset
from datapath.nft.tables import (
    DIRECT,
    LOCAL,
    NODES,
    UNMASQUERADED,
    TableOptions,
    node_tables,
    pod_sources,
)
from datapath.text import parse_address
from tests.functional.nft.spaces import spaces

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from datapath.desired import SetElements
    from datapath.nft.rules import SetKey
    from tests.functional.nft.spaces import Space

VXLAN_PORT = 4789
VNI = 4096
GATEWAY = {4: "169.254.1.1", 6: "fe80::1"}
HOST_MAC = "ee:ee:ee:ee:ee:ee"
NUMBERS = {4: 2, 6: 10}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

UNDERLAY = {4: "192.0.2.{}", 6: "2001:db8::{}"}
SECONDARY = {4: "192.0.2.10{}", 6: "2001:db8::10{}"}
TUNNEL = {4: "10.244.{}.0", 6: "fd00:244:{}::"}
POD = {4: "10.244.{}.{}", 6: "fd00:244:{}::{}"}
EXEMPT = {4: "198.51.100.9", 6: "2001:db8:51::9"}
OUTSIDE = {4: "203.0.113.9", 6: "2001:db8:113::9"}
CLUSTER = {4: ("10.244.0.0", 16), 6: ("fd00:244::", 32)}


@dataclass
class Node:
    space: Space
    number: int
    nft: Nft

    def vtep(self) -> str:
        return f"02:00:00:00:00:0{self.number}"

    def underlay(self, family: int) -> str:
        return UNDERLAY[family].format(self.number)

    def secondary(self, family: int) -> str:
        return SECONDARY[family].format(self.number)

    def tunnel(self, family: int) -> str:
        return TUNNEL[family].format(self.number)


@dataclass
class Pod:
    space: Space
    node: Node
    link: str
    number: int

    def address(self, family: int) -> str:
        return POD[family].format(self.node.number, self.number)


@dataclass
class World:
    a: Node
    b: Node
    outside: Space
    pod1: Pod
    pod2: Pod
    remote: Pod

    def program(
        self,
        node: Node,
        *,
        direct: Iterable[str] = (),
        exempt: bool = True,
        masquerade: bool = True,
        more: Iterable[SetElements] = (),
    ) -> None:
        """Bring a node's nftables to what Weft wants there, with `more` elements."""
        options = TableOptions(vxlan_port=VXLAN_PORT, masquerade=masquerade)
        elements = self.elements(node, direct=direct, exempt=exempt)
        for each in more:
            elements.setdefault(each.key, {}).update(each.elements)
        ruleset = Ruleset(node_tables(options), elements)
        node.nft.apply(plan(ruleset, node.nft.read()))

    def elements(
        self, node: Node, *, direct: Iterable[str] = (), exempt: bool = True
    ) -> dict[SetKey, dict[bytes, bytes]]:
        elements: dict[SetKey, dict[bytes, bytes]] = {}
        peer = self.b if node is self.a else self.a
        for family, number in NUMBERS.items():
            kept = [prefix(parse_address(CLUSTER[family][0]), CLUSTER[family][1])]
            if exempt:
                kept.append(prefix(parse_address(EXEMPT[family]), 32 if family == 4 else 128))
            elements[number, "weft", UNMASQUERADED] = intervals(kept)
            elements[number, "weft", NODES] = {key(parse_address(peer.underlay(family))): b""}
            elements[number, "weft", LOCAL] = {key(parse_address(node.underlay(family))): b""}
            source = key(parse_address(node.underlay(family)))
            elements[number, "weft", NODE_SOURCE] = {key(bytes((number,))): source}
            elements[number, "weft", DIRECT] = {
                key(parse_address(each)): b"" for each in direct if (":" in each) == (family == 6)
            }
        for pod in (self.pod1, self.pod2, self.remote):
            if pod.node is node:
                for each in pod_sources(pod.link, [parse_address(pod.address(f)) for f in (4, 6)]):
                    elements.setdefault(each.key, {}).update(each.elements)
        return elements


@contextlib.contextmanager
def world() -> Iterator[World]:
    """Build all of it; the nodes hold Weft's rules."""
    with (
        spaces("switch", "a", "b", "outside", "pod1", "pod2", "remote") as made,
        Nft(namespace=made[1].descriptor) as nft_a,
        Nft(namespace=made[2].descriptor) as nft_b,
    ):
        switch, space_a, space_b, outside, space1, space2, space3 = made
        a, b = Node(space_a, 1, nft_a), Node(space_b, 2, nft_b)
        pods = (
            Pod(space1, a, "weft00000000001", 11),
            Pod(space2, a, "weft00000000002", 12),
            Pod(space3, b, "weft00000000003", 13),
        )
        switch.set(net__ipv6__conf__all__disable_ipv6="1")
        switch.ip("link add name bridge0 type bridge", "link set bridge0 up")
        for number, space in ((1, space_a), (2, space_b), (9, outside)):
            space.set(net__ipv4__conf__all__rp_filter="0", net__ipv4__conf__default__rp_filter="0")
            _plug(switch, space, number)
        for node, peer in ((a, b), (b, a)):
            _node(node, peer)
        for pod in pods:
            _pod(pod)
        outside.ip(
            *(f"addr add {each[family]} dev lo nodad" for each in (EXEMPT, OUTSIDE) for family in (4, 6)),
            *(
                f"route add {TUNNEL[family].format(node.number)}{length} via {node.underlay(family)}"
                for node in (a, b)
                for family, length in ((4, "/24"), (6, "/48"))
            ),
        )
        built = World(a, b, outside, *pods)
        for node in (a, b):
            built.program(node)
        yield built


def _plug(switch: Space, space: Space, number: int) -> None:
    switch.ip(
        f"link add name p{number} type veth peer name eth0 netns {space.name}",
        f"link set p{number} master bridge0 up",
    )
    space.ip(
        "link set eth0 up",
        f"addr add {UNDERLAY[4].format(number)}/24 dev eth0",
        f"addr add {UNDERLAY[6].format(number)}/64 dev eth0 nodad",
    )


def _node(node: Node, peer: Node) -> None:
    node.space.set(net__ipv4__ip_forward="1", net__ipv6__conf__all__forwarding="1")
    commands = [
        f"addr add {node.secondary(4)}/24 dev eth0",
        f"addr add {node.secondary(6)}/64 dev eth0 nodad preferred_lft 0",
        (
            f"link add name weft.vxlan address {node.vtep()} type vxlan id {VNI} dstport {VXLAN_PORT}"
            f" local {node.underlay(4)} nolearning"
        ),
        "link set weft.vxlan up",
    ]
    for family, length in ((4, 24), (6, 48)):
        host = 32 if family == 4 else 128
        commands += [
            f"addr add {node.tunnel(family)}/{host} dev weft.vxlan" + (" nodad" if family == 6 else ""),
            f"neigh add {peer.tunnel(family)} lladdr {peer.vtep()} dev weft.vxlan nud permanent",
            (
                f"route add {peer.tunnel(family)}/{length} via {peer.tunnel(family)} dev weft.vxlan onlink"
                f" src {node.tunnel(family)}"
            ),
            f"route add {EXEMPT[family]} via {UNDERLAY[family].format(9)}",
            f"route add {OUTSIDE[family]} via {UNDERLAY[family].format(9)}",
        ]
    node.space.ip(*commands)
    node.space.run(
        "bridge",
        "fdb",
        "append",
        peer.vtep(),
        "dev",
        "weft.vxlan",
        "dst",
        peer.underlay(4),
        "self",
        "permanent",
    )


def _pod(pod: Pod) -> None:
    node = pod.node.space
    node.ip(f"link add name {pod.link} address {HOST_MAC} type veth peer name eth0 netns {pod.space.name}")
    node.ip(f"link set {pod.link} up", f"addr add {GATEWAY[6]}/64 dev {pod.link} nodad")
    pod.space.ip(
        f"addr add {pod.address(4)}/32 dev eth0",
        f"addr add {pod.address(6)}/128 dev eth0 nodad",
        "link set eth0 up",
        f"route add {GATEWAY[4]} dev eth0 scope link",
        f"neigh add {GATEWAY[4]} lladdr {HOST_MAC} dev eth0 nud permanent",
        f"route add default via {GATEWAY[4]} dev eth0",
        # No neighbour entry for this one: the pod has to discover it.
        f"route add default via {GATEWAY[6]} dev eth0",
    )
    for family in (4, 6):
        node.ip(f"route add {pod.address(family)} dev {pod.link}")
