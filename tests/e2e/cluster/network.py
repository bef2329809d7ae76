"""The wires of the cluster: a namespace with a bridge for the control plane, one namespace per node on it.

The tests move into the control plane's namespace, so nothing is ever added to the machine's own network.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.cluster.processes import run

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTROL_PLANE = "weft-e2e"
PREFIX = f"{CONTROL_PLANE}-"
BRIDGE = "nodes"
SERVER = ("172.30.0.1", "fd30::1")
OUTSIDE = ("198.51.100.1", "2001:db8:51::1")
"""Addresses behind the nodes' default gateway that belong to no node and no pod."""
CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, slots=True)
class Stack:
    """The address families of pods and of nodes, in the order of preference: 0 is IPv4, 1 is IPv6."""

    pods: tuple[int, ...]
    nodes: tuple[int, ...]

    @property
    def server(self) -> str:
        """The control plane's address."""
        return _pick(self.nodes, *SERVER)[0]

    @property
    def url(self) -> str:
        """Of the API server."""
        return f"https://[{self.server}]:6443" if ":" in self.server else f"https://{self.server}:6443"

    @property
    def pod_cidrs(self) -> str:
        return ",".join(_pick(self.pods, "10.244.0.0/16", "fd00:10:244::/48"))

    @property
    def service_cidrs(self) -> str:
        return ",".join(_pick(self.services, "10.96.0.0/16", "fd00:10:96::/108"))

    @property
    def services(self) -> tuple[int, ...]:
        """The API server wants the first service range in the family of its own address."""
        return tuple(sorted(self.pods, key=lambda family: family not in self.nodes))

    @property
    def gateways(self) -> tuple[str, ...]:
        return _pick(self.nodes, *SERVER)

    @property
    def kubernetes_service(self) -> str:
        """The first address of the service range, under which pods know the API server."""
        return _pick(self.services, "10.96.0.1", "fd00:10:96::1")[0]

    @property
    def dns_services(self) -> tuple[str, ...]:
        """Where pods ask for names, if a name service is deployed."""
        return _pick(self.services, "10.96.0.10", "fd00:10:96::a")

    def node_addresses(self, number: int) -> tuple[str, ...]:
        return _pick(self.nodes, f"172.30.0.{10 + number}", f"fd30::{10 + number}")


def _pick(families: tuple[int, ...], v4: str, v6: str) -> tuple[str, ...]:
    return tuple((v4, v6)[family] for family in families)


DUAL = Stack((0, 1), (0, 1))


def namespace(number: int) -> str:
    return f"{PREFIX}n{number}"


def remove_all() -> None:
    """Deletes the namespaces of this and of earlier runs, with all links in them."""
    directory = Path("/run/netns")
    for path in directory.glob(f"{CONTROL_PLANE}*") if directory.is_dir() else ():
        if path.name == CONTROL_PLANE or path.name.startswith(PREFIX):
            run("ip", "netns", "delete", path.name, check=False)


def _setns(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@contextlib.contextmanager
def control_plane() -> Iterator[None]:
    """Makes the control plane's namespace and moves this process's thread into it until the end."""
    run("ip", "netns", "add", CONTROL_PLANE)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        inside = os.open(f"/run/netns/{CONTROL_PLANE}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(inside)
        finally:
            os.close(inside)
        ip("link set lo up")
        ip(f"link add {BRIDGE} type bridge forward_delay 0")
        ip(f"address add {SERVER[0]}/24 dev {BRIDGE}")
        ip(f"address add {SERVER[1]}/64 dev {BRIDGE} nodad")
        for address in OUTSIDE:
            ip(f"address add {address} dev lo")
        ip(f"link set {BRIDGE} up")
        yield
    finally:
        _setns(home)
        os.close(home)
        run("ip", "netns", "delete", CONTROL_PLANE, check=False)


def add_node(number: int, stack: Stack) -> None:
    """Makes a node's namespace with an `eth0` on the bridge, reverse path filtering on, and forwarding off.

    rp_filter=1 is what most distributions set; forwarding is the daemon's to switch on.
    """
    name = namespace(number)
    port = f"n{number}"
    run("ip", "netns", "add", name)
    settings = (
        "net.ipv4.conf.all.rp_filter=1",
        "net.ipv4.conf.default.rp_filter=1",
        "net.ipv4.ip_forward=0",
        "net.ipv6.conf.all.forwarding=0",
    )
    run("ip", "netns", "exec", name, "sysctl", "-qw", *settings)
    # A node that returns with another MAC address would not be reached until caches of the old one expire.
    mac = f"02:00:5e:1e:00:{number:02x}"
    ip(f"link add eth0 address {mac} netns {name} type veth peer name {port}")
    ip(f"link set {port} master {BRIDGE} up")
    # Without it the link-local address, and its routes, appear some time later.
    run("ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=0")
    ip(f"-n {name} link set lo up")
    for address in stack.node_addresses(number):
        ip(f"-n {name} address add {address}" + ("/64 dev eth0 nodad" if ":" in address else "/24 dev eth0"))
    ip(f"-n {name} link set eth0 up")
    for gateway in stack.gateways:
        ip(f"-n {name} route add default via {gateway}")


def remove_node(number: int) -> None:
    run("ip", "netns", "delete", namespace(number), check=False)
    run("ip", "link", "delete", f"n{number}", check=False)


def ip(arguments: str) -> str:
    """Runs iproute2 with arguments that hold no spaces."""
    return run("ip", *arguments.split())
