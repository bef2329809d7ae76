"""Services on node `a` of the world of tests/functional/nft: no daemon, but what a daemon's writer does.

Fragments go into the desired state and `RulesetSync` brings the kernel in line, elements one by one. Another
table on the node watches: what becomes of packets to service addresses, and what is left on those that leave.
"""

from __future__ import annotations

import re
import socket
import struct
from typing import TYPE_CHECKING

from datapath.desired import Fragment, SetElements
from datapath.fragments import Fragments
from datapath.netns import entered
from datapath.nft.elements import intervals, key, prefix
from datapath.nft.frontends import (
    NODE_PORT_ADDRESSES,
    NODE_SOURCE,
    POD_CIDRS,
    SERVICE_CIDRS,
    Frontend,
    Need,
    need,
    service_elements,
)
from datapath.nft.plan import plan
from datapath.nft.rules import Family, Protocol, Ruleset
from datapath.nft.services import ServiceOptions
from datapath.nft.tables import TableOptions, node_tables
from datapath.ruleset import RulesetSync
from datapath.text import parse_address
from tests.functional.nft.world import CLUSTER, NUMBERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from datapath.nft.frontends import Balance
    from datapath.nft.rules import Table
    from tests.functional.nft.world import Node, World

CLUSTER_IP = {4: "10.96.0.10", 6: "fd00:96::10"}
UNALLOCATED = {4: "10.96.0.99", 6: "fd00:96::99"}
SERVICE_CIDR = {4: ("10.96.0.0", 16), 6: ("fd00:96::", 64)}
EXTERNAL = {4: "198.18.0.10", 6: "2001:db8:18::10"}
EXTERNAL_CIDR = {4: ("198.18.0.0", 24), 6: ("2001:db8:18::", 64)}
CLIENTS_CIDR = {4: ("203.0.113.0", 24), 6: ("2001:db8:113::", 64)}
"""Where outside clients live; the outsider has the addresses from FIRST_CLIENT on."""
FIRST_CLIENT, MANY_CLIENTS = 100, 40
TCP, UDP = Protocol.TCP, Protocol.UDP

WATCHER = """
table inet watcher {{
    counter escaped {{ }}
    counter translated {{ }}
    counter marked {{ }}
    counter prioritized {{ }}
    counter foreign {{ }}
    chain leaving {{
        type filter hook postrouting priority 200;
        ip daddr {{ {four} }} counter name escaped
        ip6 daddr {{ {six} }} counter name escaped
        ct status dnat ct state new counter name translated
        meta mark and 0x4000 != 0 counter name marked
        ct status dnat meta priority != 0:0 counter name prioritized
        meta mark and 0x10008 == 0x10008 counter name foreign
    }}
}}
"""


def frontend(family: int, port: int = 80, protocol: int = TCP, address: str | None = None) -> Frontend:
    """A frontend at an address, that of the ClusterIP without one."""
    where = parse_address(address if address is not None else CLUSTER_IP[family])
    return Frontend(Family(NUMBERS[family]), where, protocol, port)


def node_port(family: int, port: int = 30080, protocol: int = TCP) -> Frontend:
    return Frontend(Family(NUMBERS[family]), None, protocol, port)


def client_address(family: int, number: int) -> str:
    """One of MANY_CLIENTS addresses of the outsider."""
    return {4: f"203.0.113.{FIRST_CLIENT + number}", 6: f"2001:db8:113::{FIRST_CLIENT + number}"}[family]


class Site:
    """Node `a` with its Services."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.node: Node = world.a
        self.fragments = Fragments()
        self.sync = RulesetSync(self.node.nft, self.fragments)
        self.need = Need()
        self._counted: dict[str, int] = {}
        self._route()
        networks = {
            family: ", ".join("/".join(map(str, each[family])) for each in (SERVICE_CIDR, EXTERNAL_CIDR))
            for family in (4, 6)
        }
        self.node.space.nft(WATCHER.format(four=networks[4], six=networks[6]))
        self.put(("sets",), Fragment(elements=tuple(self._sets())))
        self.shape(ServiceOptions())

    def put(self, name: tuple[str, ...], fragment: Fragment | None) -> None:
        """Take a fragment into the desired state, without bringing the kernel in line."""
        self.sync.touch(self.fragments.replace(name, fragment))

    def settle(self) -> None:
        while not self.sync.idle:
            self.sync.step()
        assert self.sync.failure is None

    def shape(self, options: ServiceOptions) -> None:
        """Have the tables that these options need."""
        self.put(("tables",), Fragment(tables=node_tables(TableOptions(services=options))))
        self.settle()

    def replace_tables(self, tables: tuple[Table, ...]) -> None:
        self.put(("tables",), Fragment(tables=tables))
        self.settle()

    def offer(self, name: str, balances: Mapping[Frontend, Balance], cluster_ips: Iterable[str] = ()) -> None:
        """Give a service these frontends, in words only."""
        addresses = [parse_address(each) for each in cluster_ips]
        elements = service_elements(balances, cluster_ips=addresses)
        self.put(("service", name), Fragment(elements=elements) if elements else None)

    def serve(
        self, balances: Mapping[Frontend, Balance], *, name: str = "shop", cluster_ips: Iterable[str] = ()
    ) -> None:
        """Have a service with these frontends, and the chains that it needs."""
        wanted = need(balances.values())
        grown = Need(self.need.sizes | wanted.sizes, self.need.timeouts | wanted.timeouts)
        if grown != self.need:
            self.need = grown
            self.shape(ServiceOptions(sizes=tuple(grown.sizes), timeouts=tuple(sorted(grown.timeouts))))
        self.offer(name, balances, cluster_ips)
        self.settle()

    def forget_flows(self) -> None:
        """Flush connection tracking: else a datagram from a port that comes up again is one of before."""
        with (
            entered(self.node.space.descriptor),
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as flush,
        ):
            # IPCTNL_MSG_CT_DELETE of everything, acknowledged.
            flush.send(struct.pack("=IHHII4x", 20, 0x102, 5, 1, 0))
            assert struct.unpack_from("=i", flush.recv(4096), 16) == (0,)

    def clear(self) -> None:
        """Be as at first."""
        self.forget_flows()
        for name in [name for name, _ in self.fragments.items() if name[0] == "service"]:
            self.put(name, None)
        self.settle()
        if self.need.timeouts:
            maps = [f"{family} weft {twin}clients" for family in ("ip", "ip6") for twin in ("", "node-port-")]
            self.node.space.nft("".join(f"flush map {each};" for each in maps))
        if self.need != Need():
            self.need = Need()
            self.shape(ServiceOptions())
        self.forget_counts()

    def assert_in_line(self) -> None:
        """The kernel holds what is desired, and `nft` can print it."""
        wanted = Ruleset(tuple(self.fragments.tables.values()), self.fragments.sets())
        assert plan(wanted, self.node.nft.read()) == []
        listed = self.node.space.run("nft", "list", "ruleset")
        assert "table ip weft" in listed
        assert "table ip6 weft" in listed

    def forget_counts(self) -> None:
        """Have the watcher's counters start from 0."""
        self._counted = self._counters()

    def count(self, *counters: str) -> int:
        """Packets that the watcher counted since they were forgotten."""
        now = self._counters()
        return sum(now[each] - self._counted[each] for each in counters)

    def _counters(self) -> dict[str, int]:
        listed = self.node.space.run("nft", "list", "counters", "table", "inet", "watcher")
        found = re.findall(r"counter (\w+) \{\s*packets (\d+)", listed)
        return {name: int(packets) for name, packets in found}

    def _sets(self) -> Iterable[SetElements]:
        for (number, table_name, name), elements in self.world.elements(self.node).items():
            yield SetElements((number, table_name), name, elements)
        for family, number in NUMBERS.items():
            table, ours = (number, "weft"), parse_address(self.node.underlay(family))
            for name, cidr in ((SERVICE_CIDRS, SERVICE_CIDR), (POD_CIDRS, CLUSTER)):
                address, length = cidr[family]
                yield SetElements(table, name, intervals([prefix(parse_address(address), length)]))
            yield SetElements(table, NODE_PORT_ADDRESSES, {ours: b""})
            yield SetElements(table, NODE_SOURCE, {key(bytes([number])): ours})

    def _route(self) -> None:
        """Service addresses are reached by way of node `a`, which would hand them on to the outsider."""
        world = self.world
        for space in (world.a.space, world.b.space, world.outside):
            space.set(net__ipv4__conf__all__send_redirects="0", net__ipv4__conf__eth0__send_redirects="0")
        # Refusals are counted here, not rationed.
        world.a.space.set(
            net__ipv4__icmp_ratelimit="0",
            net__ipv4__icmp_msgs_per_sec="100000",
            net__ipv6__icmp__ratelimit="0",
        )
        world.outside.set(net__ipv4__ip_forward="0", net__ipv6__conf__all__forwarding="0")
        for family, host in ((4, 32), (6, 128)):
            for address, length in (SERVICE_CIDR[family], EXTERNAL_CIDR[family]):
                for space, gateway in (
                    (world.a.space, world_outside(family)),
                    (world.b.space, world.a.underlay(family)),
                    (world.outside, world.a.underlay(family)),
                ):
                    space.ip(f"route add {address}/{length} via {gateway}")
            for number in range(MANY_CLIENTS):
                nodad = " nodad" if family == 6 else ""
                world.outside.ip(f"addr add {client_address(family, number)}/{host} dev lo{nodad}")
            address, length = CLIENTS_CIDR[family]
            for node in (world.a, world.b):
                node.space.ip(f"route add {address}/{length} via {world_outside(family)}")
        # A pod of the other node comes as itself.
        direct = [each for family in (4, 6) for each in (EXTERNAL[family], world.a.underlay(family))]
        world.program(world.b, direct=direct)


def world_outside(family: int) -> str:
    return {4: "192.0.2.9", 6: "2001:db8::9"}[family]
