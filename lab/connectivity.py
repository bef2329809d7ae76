"""The connectivity matrix: every road of a packet in the cluster, and the source its receiver must see.

`plan` computes the probes from what the API says (pure but for reading the pods' MTU); `run` carries them
out.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import time
from dataclasses import asdict, dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

from lab.echo import ask
from lab.namespaces import CLONE_NEWNET, apart, setns
from lab.runtime import IFNAME
from lab.underlay import OUTSIDE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from lab.cluster import Cluster
    from lab.node import Node
    from lab.underlay import IpAddress

_PARALLEL = 24
_SIOCGIFMTU = 0x8921
_PROTOCOLS = ("tcp", "udp")


@dataclass(frozen=True, slots=True)
class Probe:
    """One question: from where to where, and what the answer must be."""

    road: str
    """The kind of road in words, such as "pod → pod, other node"."""
    source: str
    net: int
    destination: str
    address: IpAddress
    protocol: str
    expected_sources: tuple[str, ...] = ()
    """Addresses that the receiver may see; empty: any."""
    size: int = 0
    """For UDP the length of the IP packet, sent unfragmented."""
    expected_fault: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a probe; `fault` is empty when all is as it must be."""

    road: str
    source: str
    destination: str
    family: int
    protocol: str
    seen: str
    fault: str
    seconds: float

    def row(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Pod:
    name: str
    node: str
    net: int
    addresses: dict[int, IpAddress]


def plan(cluster: Cluster, *, outside: bool = True) -> list[Probe]:
    """All probes for the running pods and nodes of the cluster."""
    return list(_Planner(cluster).probes(outside=outside))


class _Planner:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.nodes = cluster.nodes
        self.cidrs = {
            name: [ip_network(cidr) for cidr in node.get("spec", {}).get("podCIDRs", [])]
            for name, node in cluster.node_objects().items()
        }
        self.pods = [
            _Pod(pod["metadata"]["name"], node.name, sandbox.descriptor, _by_family(sandbox.addresses))
            for pod in cluster.pods()
            if (node := self.nodes.get(pod["spec"].get("nodeName", ""))) is not None
            and (sandbox := node.kubelet.sandboxes.get(pod["metadata"]["uid"])) is not None
        ]

    def direct(self, one: str, other: str, family: int) -> bool:
        """Whether the nodes exchange pods' packets of the family without encapsulation."""
        overlay = self.cluster.options.overlay
        if family not in self.cluster.underlay.families or overlay == "vxlan":
            return False
        return overlay == "direct" or self.nodes[one].segment == self.nodes[other].segment

    def tunnel_address(self, node: str, family: int) -> tuple[str, ...]:
        """The address by which a node itself sends into the overlay: the first one of its slice."""
        return tuple(str(cidr[0]) for cidr in self.cidrs[node] if cidr.version == family)

    def probes(self, *, outside: bool) -> Iterator[Probe]:
        for pod in self.pods:
            yield from self._to_pods(pod)
            yield from self._to_nodes(pod)
            yield from self._full_size(pod)
            if outside:
                yield from self._to_outside(pod)
        for node in self.nodes.values():
            yield from self._from_node(node)

    def _to_pods(self, pod: _Pod) -> Iterator[Probe]:
        for other in self.pods:
            if other is pod:
                continue
            road = "pod → pod, same node" if other.node == pod.node else "pod → pod, other node"
            for family, address in other.addresses.items():
                expected = (str(pod.addresses[family]),)
                for protocol in _PROTOCOLS:
                    yield Probe(road, pod.name, pod.net, other.name, address, protocol, expected)

    def _to_nodes(self, pod: _Pod) -> Iterator[Probe]:
        own = self.nodes[pod.node]
        for node in self.nodes.values():
            road = "pod → own node" if node is own else "pod → other node"
            for family, address in _by_family(map(str, node.addresses)).items():
                if family not in pod.addresses:
                    continue
                kept = node is own or self.direct(own.name, node.name, family)
                source = pod.addresses[family] if kept else _by_family(map(str, own.addresses))[family]
                for protocol in _PROTOCOLS:
                    yield Probe(road, pod.name, pod.net, node.name, address, protocol, (str(source),))

    def _to_outside(self, pod: _Pod) -> Iterator[Probe]:
        for family, source in _by_family(map(str, self.nodes[pod.node].addresses)).items():
            if family in pod.addresses and self.cluster.options.routes != "none":
                here = (pod.name, pod.net, "outside", OUTSIDE[family])
                for protocol in _PROTOCOLS:
                    yield Probe("pod → world outside", *here, protocol, (str(source),))

    def _from_node(self, node: Node) -> Iterator[Probe]:
        own = _by_family(map(str, node.addresses))
        for pod in self.pods:
            road = "node → own pod" if pod.node == node.name else "node → other node's pod"
            for family, address in pod.addresses.items():
                expected: tuple[str, ...] = (str(own[family]),) if family in own else ()
                if pod.node != node.name and not self.direct(node.name, pod.node, family):
                    expected = self.tunnel_address(node.name, family)
                for protocol in _PROTOCOLS:
                    yield Probe(road, node.name, node.namespaces.net, pod.name, address, protocol, expected)

    def _full_size(self, pod: _Pod) -> Iterator[Probe]:
        """A packet as long as the pod's MTU reaches one pod of each other node; a longer one is refused."""
        mtu = link_mtu(pod.net)
        far = {other.node: other for other in self.pods if other.node != pod.node}
        for other in far.values():
            for family, address in other.addresses.items():
                expected = (str(pod.addresses[family]),)
                here = (pod.name, pod.net, other.name, address, "udp")
                yield Probe("path MTU: full size passes", *here, expected, mtu)
                yield Probe("path MTU: longer is refused", *here, expected, mtu + 1, "EMSGSIZE")


def _by_family(addresses: Iterable[str]) -> dict[int, IpAddress]:
    return {address.version: address for address in map(ip_address, addresses)}


def link_mtu(net: int, ifname: str = IFNAME) -> int:
    """The MTU of an interface in a network namespace."""

    def read() -> int:
        setns(net, CLONE_NEWNET)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            answer = fcntl.ioctl(sock, _SIOCGIFMTU, struct.pack("16si12x", ifname.encode(), 0))
        return int(struct.unpack("16si12x", answer)[1])

    return apart(read)


async def run(probes: list[Probe], progress: Callable[[Outcome], None] = lambda _: None) -> list[Outcome]:
    """Carry out the probes, some at a time; outcomes in the order of the probes."""
    room = asyncio.Semaphore(_PARALLEL)

    async def one(probe: Probe) -> Outcome:
        async with room:
            outcome = await _carry_out(probe)
        progress(outcome)
        return outcome

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(probe)) for probe in probes]
    return [task.result() for task in tasks]


async def _carry_out(probe: Probe) -> Outcome:
    begin = time.monotonic()
    answer = await ask(probe.net, probe.address, probe.protocol, size=probe.size)
    fault = ""
    if answer.fault != probe.expected_fault:
        fault = answer.fault or f"passed, but {probe.expected_fault} is due"
    elif not answer.fault and answer.name != probe.destination:
        fault = f"answered by {answer.name}"
    elif not answer.fault and probe.expected_sources and answer.source not in probe.expected_sources:
        fault = f"source seen is {answer.source}, must be {' or '.join(probe.expected_sources)}"
    return Outcome(
        probe.road,
        probe.source,
        probe.destination,
        probe.address.version,
        probe.protocol,
        answer.source,
        fault,
        time.monotonic() - begin,
    )
