"""Nodes and links for these tests, written as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daemon.cluster.model import Node, Prefix
from daemon.compile.local import compile_local
from daemon.config import Config
from datapath.text import parse_address, parse_prefix
from datapath.underlay import HostLink

if TYPE_CHECKING:
    from daemon.compile.local import LocalNetwork


def node(name: str, ips: str = "", cidrs: str = "", underlay: str = "") -> Node:
    """A Node with addresses and podCIDRs separated by spaces."""
    return Node(
        name,
        f"uid-{name}",
        tuple(map(parse_address, ips.split())),
        tuple(Prefix(*parse_prefix(each)) for each in cidrs.split()),
        tuple(map(parse_address, underlay.split())),
    )


def link(
    name: str = "eth0", addresses: str = "192.168.7.1/24 fd07::1/64", mtu: int = 1500, **more: Any
) -> HostLink:
    """A link with addresses separated by spaces."""
    return HostLink(name, mtu, tuple(map(parse_prefix, addresses.split())), **more)


def local(
    config: Config | None = None,
    *,
    ips: str = "192.168.7.1",
    cidrs: str = "10.244.1.0/24",
    vxlan6: bool = False,
) -> LocalNetwork:
    """This node, a, on eth0."""
    made, problems = compile_local("a", node("a", ips, cidrs), [link()], config or Config(), vxlan6=vxlan6)
    assert made is not None, problems
    return made
