"""The road under the cluster: a namespace with a bridge per segment, router and control plane at once.

Owns the addresses of segments, nodes and the world outside, which is one host in a namespace of its own
behind the router. Only namespaces of the lab carry any of them.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TYPE_CHECKING, Literal

from lab.errors import LabError
from lab.namespaces import CLONE_NEWNET, apart, descriptor_path, new_network, setns

if TYPE_CHECKING:
    from collections.abc import Iterable

IpAddress = IPv4Address | IPv6Address
IpNetwork = IPv4Network | IPv6Network

OUTSIDE: dict[int, IpAddress] = {4: IPv4Address("192.0.2.1"), 6: IPv6Address("2001:db8:ffff::1")}
"""A host outside of the cluster, by address family (documentation prefixes: RFC 5737, RFC 3849)."""
OUTSIDE_NETWORKS: dict[int, IpNetwork] = {
    4: IPv4Network("192.0.2.0/24"),
    6: IPv6Network("2001:db8:ffff::/64"),
}
LOAD_BALANCER_NETWORKS: dict[int, IpNetwork] = {
    4: IPv4Network("198.51.100.0/24"),
    6: IPv6Network("2001:db8:1b::/64"),
}
"""Where the addresses of load balancers come from."""
EXTERNAL_NETWORKS: dict[int, IpNetwork] = {
    4: IPv4Network("203.0.113.0/24"),
    6: IPv6Network("2001:db8:e::/64"),
}
"""Where the tests take externalIPs from."""
Routes = Literal["none", "known", "default"]
API_PORT = 6443
_FIRST_NODE = 10
_ROUTER_LINK_LOCAL = "fe80::fe"
_ROUTER_OUTSIDE: dict[int, IpAddress] = {family: network[254] for family, network in OUTSIDE_NETWORKS.items()}


def families_of(name: str) -> tuple[int, ...]:
    """The address families that dual, ipv4 or ipv6 stand for."""
    return {"dual": (4, 6), "ipv4": (4,), "ipv6": (6,)}[name]


@dataclass(frozen=True, slots=True)
class Segment:
    """A layer 2 network; nodes on it reach each other without the router."""

    number: int

    @property
    def bridge(self) -> str:
        """The bridge in the control plane's namespace."""
        return f"segment-{self.number}"

    @property
    def mac(self) -> str:
        """The bridge's MAC address."""
        return f"02:00:00:00:{self.number >> 8:02x}:{self.number & 0xFF:02x}"

    def network(self, family: int) -> IpNetwork:
        """Its prefix of that address family."""
        return ip_network(f"172.31.{self.number}.0/24" if family == 4 else f"fd31:{self.number}::/64")

    def router(self, family: int) -> IpAddress:
        """The control plane's address on it, where the API server listens."""
        return self.network(family)[1]

    def node(self, family: int, index: int) -> IpAddress:
        """The address of the index-th node of the lab, if that stands here."""
        return self.network(family)[_FIRST_NODE + index]


async def ip_batch(net: str, lines: Iterable[str]) -> None:
    """Let one `ip -batch` do all `lines` in the network namespace at path `net`."""
    command = ("nsenter", f"--net={net}", "ip", "-batch", "-")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    script = "\n".join(lines)
    _, errors = await process.communicate(script.encode())
    if process.returncode != 0:
        message = errors.decode().strip()
        raise LabError(f"ip -batch refused: {message}; the script was:\n{script}")


@dataclass(slots=True)
class Underlay:
    """The control plane's namespace and what hangs on its bridges."""

    families: tuple[int, ...]
    segments: tuple[Segment, ...]
    mtu: int = 1500
    net: int = field(default=-1)
    outside: int = field(default=-1)
    """The network namespace of the host outside."""

    @property
    def path(self) -> str:
        """Its network namespace."""
        return descriptor_path(self.net)

    async def build(self) -> None:
        """Make router, bridges and the host outside."""
        self.net, self.outside = new_network(), new_network()
        outside = descriptor_path(self.outside)
        lines = ["link set lo up", f"link add name outside type veth peer name eth0 netns {outside}"]
        lines += [
            "link set outside up addrgenmode none",
            f"addr add {_ROUTER_LINK_LOCAL}/64 dev outside nodad",
        ]
        lines += [
            f"addr add {router}/{OUTSIDE_NETWORKS[family].prefixlen} dev outside {_nodad(family)}"
            for family, router in _ROUTER_OUTSIDE.items()
        ]
        for segment in self.segments:
            # A bridge without a MAC address of its own changes it whenever a node comes or goes.
            lines.append(
                f"link add {segment.bridge} address {segment.mac} mtu {self.mtu} type bridge mcast_snooping 0"
            )
            lines.append(f"link set {segment.bridge} up addrgenmode none")
            # Without a link-local address a router cannot ask for its neighbours.
            lines.append(f"addr add {_ROUTER_LINK_LOCAL}/64 dev {segment.bridge} nodad")
            for family in self.families:
                prefix = segment.network(family).prefixlen
                lines.append(
                    f"addr add {segment.router(family)}/{prefix} dev {segment.bridge} {_nodad(family)}"
                )
        await ip_batch(self.path, lines)
        lines = ["link set lo up", "link set eth0 up"]
        for family, address in OUTSIDE.items():
            prefix = OUTSIDE_NETWORKS[family].prefixlen
            lines.append(f"addr add {address}/{prefix} dev eth0 {_nodad(family)}")
            lines.append(f"route add default via {_ROUTER_OUTSIDE[family]}")
        await ip_batch(outside, lines)
        self.forward()

    def forward(self) -> None:
        """Be a router between the segments."""
        set_sysctls(self.net, {"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"})

    async def attract(self, networks: Iterable[IpNetwork], addresses: Iterable[IpAddress]) -> None:
        """Let the router send what is for the networks to a node, by its address of each family."""
        hops = {address.version: address for address in addresses}
        lines = [f"route replace {net} via {hops[net.version]}" for net in networks if net.version in hops]
        await ip_batch(self.path, lines)

    async def connect(self, node: str, net: str, segment: Segment, index: int, routes: Routes) -> None:
        """Give the namespace at `net` an eth0 on the segment with the index-th node's addresses.

        Besides, the node has no routes ("none"), some to the other segments and the known networks outside
        ("known"), or a default route.
        """
        lines = [
            f"link add name {_port(node)} mtu {self.mtu} type veth peer name eth0 mtu {self.mtu} netns {net}",
            f"link set {_port(node)} master {segment.bridge} up addrgenmode none",
        ]
        await ip_batch(self.path, lines)
        inside = ["link set lo up", "link set eth0 up"]
        for family in self.families:
            prefix = segment.network(family).prefixlen
            inside.append(f"addr add {segment.node(family, index)}/{prefix} dev eth0 {_nodad(family)}")
            via = segment.router(family)
            if routes == "default":
                inside.append(f"route add default via {via}")
            elif routes == "known":
                others = [other.network(family) for other in self.segments if other != segment]
                worlds = (OUTSIDE_NETWORKS, LOAD_BALANCER_NETWORKS, EXTERNAL_NETWORKS)
                others += [world[family] for world in worlds]
                inside += [f"route add {other} via {via}" for other in others]
        await ip_batch(net, inside)

    async def disconnect(self, node: str) -> None:
        """Pull the node's cable."""
        await ip_batch(self.path, [f"link del {_port(node)}"])

    def api_url(self, segment: Segment) -> str:
        """Where nodes on the segment find the API server."""
        address = segment.router(self.families[0])
        return f"http://{address}:{API_PORT}" if address.version == 4 else f"http://[{address}]:{API_PORT}"

    def close(self) -> None:
        """Let go of the namespaces."""
        for descriptor in (self.net, self.outside):
            if descriptor >= 0:
                os.close(descriptor)
        self.net = self.outside = -1


def _port(node: str) -> str:
    return f"to-{node}"[:15]


def _nodad(family: int) -> str:
    return "nodad" if family == 6 else ""


def set_sysctls(net: int, values: dict[str, str]) -> None:
    """Write network sysctls of a namespace; /proc/sys/net shows those of the thread that opens the file."""

    def write() -> None:
        setns(net, CLONE_NEWNET)
        for name, value in values.items():
            with open("/proc/sys/" + name.replace(".", "/"), "w") as file:
                file.write(value)

    apart(write)
