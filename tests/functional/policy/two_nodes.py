"""The two nodes of tests/property/policy as network namespaces, and a world that holds all other ends.

    world ══ weft-a-p0 … weft-a-p4 ── n1 ══ n2 ── weft-a-p0 … weft-a-p4 ══ world
                               world ══ up ──┘    └── up ══ world

No address of the world's is one that its kernel knows: frames are sent and received as they are, so nobody
answers, and what comes through is what rules let through. A node speaks and listens by raw sockets, whose
packets pass the node's own hooks.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from typing import TYPE_CHECKING

from datapath.nft.connection import Nft
from datapath.nft.plan import plan
from lab.sctp import PROTOCOL as SCTP
from lab.sctp import Chunk, encode
from tests.functional.nft import frames
from tests.functional.nft.spaces import spaces
from tests.property.policy import clusters
from tests.property.policy.walks import PEER_LINK, UPLINK

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from datapath.nft.rules import Ruleset
    from tests.functional.nft.spaces import Space
    from tests.property.policy.oracle import Connection
    from tests.property.policy.walks import Entrance

_NODE_MAC, _WORLD_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
_ROUTER = {4: "192.0.2.1", 6: "fe80::2"}
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_PACKET_LEVEL, _IGNORE_OUTGOING = 263, 23
"""SOL_PACKET and PACKET_IGNORE_OUTGOING of linux/socket.h and linux/if_packet.h."""
_ALL_PROTOCOLS = 3
_BUFFER_BYTES = 1 << 20
_QUIET_SECONDS = 0.2
_BATCH = 64
_TOKEN = struct.Struct("!4sII")
_MAGIC = b"weft"
_SETTINGS = {
    "net__ipv4__ip_forward": "1",
    "net__ipv6__conf__all__forwarding": "1",
    "net__ipv4__conf__all__rp_filter": "0",
    "net__ipv4__conf__default__rp_filter": "0",
    "net__ipv4__conf__default__send_redirects": "0",
    "net__ipv4__conf__all__send_redirects": "0",
    # A flow is asked for once and never answered; thousands of clusters' need not be remembered.
    "net__netfilter__nf_conntrack_tcp_timeout_syn_sent": "1",
    "net__netfilter__nf_conntrack_udp_timeout": "1",
    "net__netfilter__nf_conntrack_icmp_timeout": "1",
    "net__netfilter__nf_conntrack_icmpv6_timeout": "1",
}


class _Node:
    """One node: its namespace, its rules, and the sockets by which it speaks and listens itself."""

    def __init__(self, name: str, space: Space, nft: Nft, stack: contextlib.ExitStack) -> None:
        self.name = name
        self._nft = nft
        self._voices = {
            family: stack.enter_context(space.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW))
            for family in _FAMILIES
        }
        self.ears = [
            stack.enter_context(space.socket(family, socket.SOCK_RAW, protocol))
            for family in _FAMILIES
            for protocol in (
                frames.TCP,
                frames.UDP,
                SCTP,
                frames.ICMP if family == socket.AF_INET else frames.ICMPV6,
            )
        ]

    def program(self, ruleset: Ruleset) -> None:
        """Make these the node's rules."""
        self._nft.apply(plan(ruleset, self._nft.read()))

    def send(self, destination: str, packet: bytes) -> None:
        """Send a packet as the node's own."""
        family = socket.AF_INET6 if ":" in destination else socket.AF_INET
        self._voices[family].sendto(packet, (destination, 0))


class TwoNodes:
    """What tests do with them; made by `two_nodes`."""

    def __init__(self, nodes: Mapping[str, _Node], world: socket.socket) -> None:
        self._nodes = nodes
        self._world = world
        self._ears = [world, *(each for node in nodes.values() for each in node.ears)]
        for each in self._ears:
            each.setblocking(False)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self._round = 0

    def program(self, rulesets: Mapping[str, Ruleset]) -> None:
        """Make these the nodes' rules."""
        for name, ruleset in rulesets.items():
            self._nodes[name].program(ruleset)

    def passing(self, asked: Mapping[Connection, Entrance], expected: int) -> set[Connection]:
        """Try connections and return those whose first packet arrives.

        Args:
            asked: connections, and where each comes in.
            expected: how many will arrive; with fewer, stragglers are waited for.
        """
        self._round += 1
        numbered = dict(enumerate(asked.items()))
        arrived: set[int] = set()
        for number, (connection, entrance) in numbered.items():
            self._send(connection, entrance, _TOKEN.pack(_MAGIC, self._round, number))
            if number % _BATCH == 0:
                arrived |= self._heard()
        deadline = time.monotonic() + _QUIET_SECONDS
        arrived |= self._heard()
        while len(arrived) < expected and time.monotonic() < deadline:
            arrived |= self._heard()
        return {numbered[number][0] for number in arrived}

    def _send(self, connection: Connection, entrance: Entrance, token: bytes) -> None:
        packet = _first_packet(connection, 20000 + self._round, token)
        if not entrance.link:
            self._nodes[entrance.node].send(connection.destination, packet)
            return
        frame = frames.ethernet(_mac(_WORLD_MAC), _mac(_NODE_MAC), packet)
        self._world.sendto(frame, (_outer(entrance.node, entrance.link), 0))

    def _heard(self) -> set[int]:
        """Return the numbers of what came to the world or to a node's own sockets."""
        found = set()
        for ear in self._ears:
            with contextlib.suppress(BlockingIOError):
                while True:
                    token = ear.recv(512)[-_TOKEN.size :]
                    if token.startswith(_MAGIC):
                        found.add(_TOKEN.unpack(token)[1:])
        assert {came_in for came_in, _ in found} <= {self._round}, "packets came after their round"
        return {number for _, number in found}


def _first_packet(connection: Connection, port: int, token: bytes) -> bytes:
    """The packet that starts a connection; ends with the token. Each round has a source port of its own."""
    source, destination = connection.source, connection.destination
    ends = (source, destination, port, connection.port or 0)
    if connection.protocol == "TCP":
        return frames.ip(source, destination, frames.syn(*ends, token), protocol=frames.TCP)
    if connection.protocol == "UDP":
        return frames.ip(source, destination, frames.udp(*ends, token))
    if connection.protocol == "SCTP":
        init = encode(Chunk(port, connection.port or 0, 0, 1, initiate_tag=1, cookie=token))
        return frames.ip(source, destination, init, protocol=SCTP)
    echo = frames.echo_request(source, destination, port, token)
    protocol = frames.ICMPV6 if ":" in source else frames.ICMP
    return frames.ip(source, destination, echo, protocol=protocol)


@contextlib.contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    """Build them; they have no rules yet."""
    with contextlib.ExitStack() as stack:
        *node_spaces, world = stack.enter_context(spaces(*clusters.NODES, "world"))
        world.set(net__ipv6__conf__all__disable_ipv6="1", net__ipv6__conf__default__disable_ipv6="1")
        for space in node_spaces:
            space.set(**_SETTINGS)
        _join(*node_spaces)
        nodes = {}
        for place, (name, space) in enumerate(zip(clusters.NODES, node_spaces, strict=True), 1):
            _furnish(place, space, world)
            nft = stack.enter_context(Nft(namespace=space.descriptor))
            nodes[name] = _Node(name, space, nft, stack)
        every = socket.htons(_ALL_PROTOCOLS)
        outside = stack.enter_context(world.socket(socket.AF_PACKET, socket.SOCK_RAW, every))
        outside.setsockopt(_PACKET_LEVEL, _IGNORE_OUTGOING, 1)
        yield TwoNodes(nodes, outside)


def _join(one: Space, other: Space) -> None:
    one.ip(
        f"link add name {PEER_LINK} address {_NODE_MAC} type veth peer name {PEER_LINK} netns {other.name}"
    )
    other.ip(f"link set dev {PEER_LINK} address {_NODE_MAC}")


def _furnish(place: int, space: Space, world: Space) -> None:
    """Give a node its addresses, its links to the world, and its routes."""
    name, other = clusters.NODES[place - 1], len(clusters.NODES) + 1 - place
    peers = clusters.node_addresses(other)[:2]
    made = [f"addr add {each} dev lo nodad" for each in clusters.node_addresses(place) if ":" in each]
    made += [f"addr add {each} dev lo" for each in clusters.node_addresses(place) if ":" not in each]
    made.append(f"link set dev {PEER_LINK} up")
    for peer, network in zip(peers, clusters.pod_networks(other), strict=True):
        made += [f"route add {peer} dev {PEER_LINK}", _neighbour(peer, PEER_LINK, _NODE_MAC)]
        made.append(f"route add {network} via {peer} dev {PEER_LINK} onlink")
    links = {UPLINK: tuple(_ROUTER.values())}
    for number in range(clusters.MOST_PODS):
        links[clusters.link_name(number)] = clusters.pod_addresses(place, number)
    for link, addresses in links.items():
        made.append(
            f"link add name {link} address {_NODE_MAC} type veth"
            f" peer name {_outer(name, link)} netns {world.name}"
        )
        made.append(f"link set dev {link} up")
        made += [_neighbour(each, link, _WORLD_MAC) for each in addresses]
        if link == UPLINK:
            made += [f"route add default via {each} dev {link} onlink" for each in addresses]
        else:
            made += [f"route add {each} dev {link}" for each in addresses]
    space.ip(*made)
    world.ip(*(f"link set dev {_outer(name, link)} up" for link in links))


def _neighbour(address: str, link: str, mac: str) -> str:
    return f"neigh add {address} lladdr {mac} dev {link} nud permanent"


def _outer(node: str, link: str) -> str:
    """The world's end of a node's link."""
    return f"{node}-{link.removeprefix('weft-')}"


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
