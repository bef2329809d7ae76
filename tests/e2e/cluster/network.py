"""The wires of the cluster: a namespace with a bridge for the control plane, one namespace per node on it.

The tests move into the control plane's namespace, so nothing is ever added to the machine's own network.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
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


def node_addresses(number: int) -> tuple[str, str]:
    return f"172.30.0.{10 + number}", f"fd30::{10 + number}"


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


def add_node(number: int) -> None:
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
    ip(f"link add eth0 netns {name} type veth peer name {port}")
    ip(f"link set {port} master {BRIDGE} up")
    # Without it the link-local address, and its routes, appear some time later.
    run("ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=0")
    v4, v6 = node_addresses(number)
    for line in (
        "link set lo up",
        f"address add {v4}/24 dev eth0",
        f"address add {v6}/64 dev eth0 nodad",
        "link set eth0 up",
        f"route add default via {SERVER[0]}",
        f"route add default via {SERVER[1]}",
    ):
        ip(f"-n {name} {line}")


def remove_node(number: int) -> None:
    run("ip", "netns", "delete", namespace(number), check=False)
    run("ip", "link", "delete", f"n{number}", check=False)


def ip(arguments: str) -> str:
    """Runs iproute2 with arguments that hold no spaces."""
    return run("ip", *arguments.split())
