"""A host without a default route reaches ClusterIPs: the rules that replace their destination see it."""

from __future__ import annotations

import errno
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from daemon.cluster.model import Prefix
from daemon.compile.service_routes import service_routes
from datapath.desired import object_key
from datapath.diff import diff
from datapath.execute import execute
from datapath.observe import Observer
from datapath.text import parse_prefix
from tests.functional.datapath.conftest import run
from tests.unit.daemon.compile.nodes import local

if TYPE_CHECKING:
    from tests.functional.datapath.conftest import Node

VIPS = {"IPv4": ("ip", "10.96.0.10", "192.168.7.1"), "IPv6": ("ip6", "fd96::10", "fd07::1")}
CIDRS = [Prefix(*parse_prefix(each)) for each in ("10.96.0.0/16", "fd96::/112")]


def connect(address: str) -> str:
    """The source address that a connection gets; raises OSError."""
    with socket.create_connection((address, 80), timeout=1) as client:
        return str(client.getsockname()[0])


@pytest.fixture
def routes(node: Node) -> Observer:
    """The namespace with an underlay and without a default route; the routes are in and read back."""
    run("ip link add eth0 type veth peer name far")
    run("ip link set eth0 up")
    run("ip link set far up")
    run("ip addr add 192.168.7.1/24 dev eth0")
    run("ip addr add fd07::1/64 dev eth0 nodad")
    for _, vip, _ in VIPS.values():
        with pytest.raises(OSError) as refused:  # noqa: PT011 - the number is looked at
            connect(vip)
        assert refused.value.errno == errno.ENETUNREACH
    fragment = service_routes(local(ips="192.168.7.1 fd07::1"), CIDRS)
    desired = {object_key(each): each for each in fragment.objects}
    observer = Observer(node.host)
    observed = observer.read()
    outcome = execute(node.host, diff(desired, observed.objects), observed.indexes)
    assert not outcome.failed
    assert observer.read().objects == desired
    return observer


@pytest.mark.usefixtures("routes")
@pytest.mark.parametrize("family", VIPS)
def test_a_connection_to_a_cluster_ip_reaches_its_backend_with_the_nodes_address(family: str) -> None:
    name, vip, source = VIPS[family]
    target = f"[{source}]" if ":" in source else source
    rules = f"""
        table {name} t {{
            chain o {{
                type nat hook output priority -100
                {name} daddr {vip} tcp dport 80 counter dnat to {target}:8080
            }}
            chain f {{
                type filter hook output priority 0
                {name} daddr {CIDR_TEXT[name]} tcp dport 80 counter reject with tcp reset
            }}
        }}
        """
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True, timeout=30)
    kind = socket.AF_INET6 if ":" in source else socket.AF_INET
    with socket.create_server((source, 8080), family=kind):
        assert connect(vip) == source
    # Another address of the CIDR meets the rules too, and not a missing route.
    with pytest.raises(ConnectionRefusedError):
        connect(vip + "1")


CIDR_TEXT = {"ip": "10.96.0.0/16", "ip6": "fd96::/112"}


@pytest.mark.usefixtures("routes")
def test_a_route_of_somebody_else_to_the_same_prefix_comes_first() -> None:
    run("ip link add other type veth peer name beyond")
    run("ip link set other up")
    run("ip link set beyond up")
    run("ip addr add 192.168.8.1/24 dev other")
    run("ip route add 10.96.0.0/16 dev other metric 4000")
    assert "dev other" in run("ip route get 10.96.0.10")
    run("ip route del 10.96.0.0/16 dev other metric 4000")
    assert "dev eth0 src 192.168.7.1" in run("ip route get 10.96.0.10")
