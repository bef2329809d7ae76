"""The nodes of a random cluster as a kernel has them: policy tables, links, routes; and walks through them.

Holds what the tracer and the kernel's namespaces have in common, so that both are asked the same questions:
which links there are, whose packets come in where, and which questions are worth asking. Decides nothing
about policies.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from daemon.compile.policy_tables import PolicyTables
from datapath.fragments import Fragments
from datapath.nft.evaluation import Packet
from datapath.nft.rules import CtStatus, Family, Ruleset
from datapath.trace import Fate, Host, Route, trace
from tests.property.policy import clusters
from tests.property.policy.oracle import Connection
from tests.unit.daemon.compile.town import PROTOCOLS, Town
from tests.unit.daemon.compile.town import packed as slowly_packed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemon.compile.policy import Policies
    from tests.property.policy.clusters import Raw

packed = functools.cache(slowly_packed)
UPLINK, PEER_LINK = "up", "peer"
"""A node's links to the world outside and to the other node."""
PROBES: list[tuple[str, int | None]] = [
    ("TCP", 1),
    ("TCP", 80),
    ("TCP", 443),
    ("TCP", 81),
    ("UDP", 53),
    ("UDP", 80),
    ("SCTP", 81),
    ("ICMP", None),
]
"""Protocols and ports that policies tell apart."""


class Entrance(NamedTuple):
    """Where packets from an address come in: at a node by a link, or ("") from the node itself."""

    node: str
    link: str


def town_of(cluster: dict[str, list[Raw]]) -> Town:
    """Return the cluster as its nodes compile it."""
    town = Town(*cluster["nodes"])
    for kind in ("policies", "pods", "namespaces"):
        town.put(*cluster[kind])
    return town


def ruleset(model: Policies) -> Ruleset:
    """Return the tables of policies that a node needs which has compiled nothing before."""
    fragments = Fragments()
    for key, fragment in PolicyTables().take(model, model.changes()).items():
        fragments.replace(key, fragment)
    return Ruleset(tuple(fragments.tables.values()), fragments.sets())


def link_name(pod: Raw) -> str:
    """Return the host link of a pod, as in Town."""
    return f"weft-{pod['metadata']['namespace']}-{pod['metadata']['name']}"


def routes_of(place: int) -> dict[str, tuple[str, ...]]:
    """Return the networks that a node reaches by each link; what is none of the nodes' by its uplink."""
    other = len(clusters.NODES) + 1 - place
    own = [f"{each}/{128 if ':' in each else 32}" for each in clusters.node_addresses(other)[:2]]
    return {UPLINK: ("0.0.0.0/0", "::/0"), PEER_LINK: (*clusters.pod_networks(other), *own)}


class Walks:
    """Where addresses of a cluster are, and which connections are worth trying.

    Attributes:
        entrances: of each address that a pod with a network of its own or a node speaks from.
        pods: the addresses of such pods.
    """

    def __init__(self, cluster: dict[str, list[Raw]]) -> None:
        self.entrances: dict[str, Entrance] = {}
        self.pods: set[str] = set()
        self._cluster = cluster
        for name in clusters.NODES:
            own = clusters.node_addresses(clusters.NODES.index(name) + 1)
            self.entrances |= dict.fromkeys(own, Entrance(name, ""))
        for pod in cluster["pods"]:
            if not pod["spec"].get("hostNetwork") and pod["status"]["phase"] not in ("Succeeded", "Failed"):
                found = [entry["ip"] for entry in pod["status"]["podIPs"]]
                self.pods.update(found)
                self.entrances |= dict.fromkeys(found, Entrance(pod["spec"]["nodeName"], link_name(pod)))

    def connections(self, step: int = 1) -> Iterator[Connection]:
        """Yield every protocol and port between every two addresses of which one at least is a pod's.

        With `step` only each so manieth; where it has no factor in common with the number of probes, pairs
        that follow one another get different ones.
        """
        return itertools.islice(self._connections(), 0, None, step)

    def _connections(self) -> Iterator[Connection]:
        for source, destination in itertools.product(clusters.addresses(self._cluster), repeat=2):
            if (":" in source) is (":" in destination) and {source, destination} & self.pods:
                for protocol, port in PROBES:
                    yield Connection(source, destination, protocol, port)

    def entrance(self, connection: Connection) -> Entrance:
        """Return where a connection comes in: one from outside at the node of the pod that it is for."""
        found = self.entrances.get(connection.source)
        return found or Entrance(self.entrances[connection.destination].node, UPLINK)


class Traced:
    """The cluster in the packet tracer."""

    def __init__(self, town: Town, walks: Walks) -> None:
        self._walks = walks
        self._rulesets = {name: ruleset(model) for name, model in town.models.items()}
        self._hosts = {name: _host(place, walks) for place, name in enumerate(clusters.NODES, 1)}

    def passes(self, connection: Connection) -> bool:
        """Whether no rule on the whole way drops the connection's first packet."""
        here = self._walks.entrance(connection)
        six = ":" in connection.destination
        protocol = PROTOCOLS["icmpv6" if six and connection.port is None else connection.protocol.lower()]
        packet = Packet(
            Family.IPV6 if six else Family.IPV4,
            protocol,
            packed(connection.source),
            packed(connection.destination),
            connection.port or 0,
            here.link,
            icmp_type=128,
        )
        node = here.node
        while True:
            (path,) = trace(self._rulesets[node], packet, self._hosts[node])
            if path.fate in (Fate.DELIVERED, Fate.SENT) and path.packet.oif != PEER_LINK:
                return True
            if path.fate is not Fate.SENT:
                assert path.fate is Fate.DROPPED, path
                return False
            node = next(each for each in clusters.NODES if each != node)
            packet = replace(path.packet, iif=PEER_LINK, oif="", status=CtStatus(0))


def _host(place: int, walks: Walks) -> Host:
    name = clusters.NODES[place - 1]
    routes = [
        Route(packed(address), int(length), link)
        for link, networks in routes_of(place).items()
        for address, _, length in (each.partition("/") for each in networks)
    ]
    for address in walks.pods:
        entrance = walks.entrances[address]
        if entrance.node == name:
            routes.append(Route(packed(address), len(packed(address)) * 8, entrance.link))
    return Host(frozenset(map(packed, clusters.node_addresses(place))), tuple(routes))
