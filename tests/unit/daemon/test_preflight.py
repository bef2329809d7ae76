"""Checks of address plan, kernel and surroundings: what is wrong is named with its remedy."""

from __future__ import annotations

import ipaddress
import itertools
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon import preflight
from daemon.cluster import decode
from daemon.cluster.endpoint import Endpoint
from daemon.cluster.model import Node, Prefix, ServiceCIDR
from daemon.config import Config
from daemon.preflight import Use, check_cluster, check_kernel, check_machine
from datapath.probe import MissingFeature
from datapath.surroundings import Surroundings

if TYPE_CHECKING:
    from daemon.findings import Finding


def node(name: str, cidrs: str, ips: str, underlay: str = "") -> Node:
    return Node(
        name,
        name,
        tuple(decode.address(text) for text in ips.split()),
        tuple(decode.prefix(text) for text in cidrs.split()),
        tuple(decode.address(text) for text in underlay.split()),
    )


def check(*nodes: Node, services: str = "", connected: str = "", **config: tuple[str, ...]) -> list[Finding]:
    return check_cluster(
        {each.name: each for each in nodes},
        {"kubernetes": ServiceCIDR("kubernetes", tuple(decode.prefix(text) for text in services.split()))},
        Config(**config),  # type: ignore[arg-type]
        "a",
        connected=[decode.prefix(text) for text in connected.split()],
    )


A = node("a", "10.244.0.0/24 fd00:244::/64", "192.168.0.1 fd01::1")
B = node("b", "10.244.1.0/24 fd00:244:0:1::/64", "192.168.0.2 fd01::2")


def test_a_good_plan_has_no_findings() -> None:
    found = check(
        A,
        B,
        services="10.96.0.0/16 fd00:96::/108",
        connected="192.168.0.0/24 fd01::/64",
        cluster_cidrs=("10.244.0.0/16", "fd00:244::/56"),
    )
    assert found == []


@pytest.mark.parametrize(
    ("nodes", "options", "words"),
    [
        (
            (A, node("b", "10.244.0.0/25", "192.168.0.2")),
            {},
            ["10.244.0.0/24 (pods of a)", "10.244.0.0/25 (pods of b)"],
        ),
        ((A,), {"services": "10.244.0.0/16"}, ["10.244.0.0/16 (Services)", "10.244.0.0/24 (pods of a)"]),
        ((A,), {"services": "10.244.0.128/25"}, ["10.244.0.128/25 (Services)"]),
        (
            (A,),
            {"service_cidrs": ("fd00:244::/108",)},
            ["fd00:244::/108 (Services)", "fd00:244::/64 (pods of a)"],
        ),
        ((A, node("b", "192.168.0.0/24", "10.0.0.2")), {}, ["192.168.0.1/32 (node address of a)"]),
        ((A,), {"services": "192.168.0.0/16"}, ["192.168.0.1/32 (node address of a)"]),
        ((A,), {"connected": "10.244.0.0/16"}, ["10.244.0.0/16 (network of this node)"]),
        ((A,), {"cluster_cidrs": ("10.0.0.0/8",), "services": "10.96.0.0/16"}, ["10.0.0.0/8 (pods)"]),
        (
            (A, node("b", "10.244.1.0/24", "192.168.0.2", "10.244.1.5")),
            {},
            ["10.244.1.5/32 (node address of b)"],
        ),
    ],
)
def test_an_overlap_names_both_sides(
    nodes: tuple[Node, ...], options: dict[str, object], words: list[str]
) -> None:
    found = [row for row in check(*nodes, **options) if row.name == preflight.OVERLAP]  # type: ignore[arg-type]
    assert found
    assert all(row.level == "error" for row in found)
    for part in words:
        assert any(part in row.message for row in found)
    assert all(". " in row.message for row in found), "no remedy"


def test_many_overlaps_are_summed_up() -> None:
    nodes = [node(f"n{number}", f"10.96.{number}.0/24", f"192.168.0.{number}") for number in range(1, 40)]
    found = check(*nodes, services="10.96.0.0/16")
    assert len(found) == 11
    assert "29 more" in found[-1].message


def test_many_nodes_with_one_address_are_summed_up() -> None:
    nodes = [node(f"n{number}", f"10.96.{number}.0/24", "192.168.0.1") for number in range(1, 40)]
    found = check(*nodes)
    assert len(found) == 11
    assert "28 more" in found[-1].message


def test_two_nodes_with_one_address() -> None:
    found = check(A, node("b", "10.244.1.0/24", "192.168.0.1"))
    (row,) = found
    assert row.name == preflight.DUPLICATE
    assert "Nodes a and b have the same address 192.168.0.1" in row.message
    # Behind NAT, addresses may repeat: those that others send to count.
    assert check(A, node("b", "10.244.1.0/24", "192.168.0.1", "203.0.113.9")) == []


def test_a_slice_outside_the_cluster_cidrs() -> None:
    (row,) = check(A, cluster_cidrs=("10.0.0.0/16", "fd00:244::/48"))
    assert (row.name, row.level, row.key) == (preflight.OUTSIDE, "warning", "10.244.0.0/24")


def test_an_api_server_behind_a_cluster_ip() -> None:
    services = {"kubernetes": ServiceCIDR("kubernetes", (decode.prefix("10.96.0.0/16"),))}
    endpoint = Endpoint("https://10.96.0.1:443", "environment KUBERNETES_SERVICE_HOST", from_environment=True)
    (row,) = check_cluster({}, services, Config(), "a", endpoint=endpoint)
    assert row.name == preflight.CLUSTER_IP
    assert "Set apiServer" in row.message
    for url in ("https://192.168.0.1:6443", "https://api.example:6443"):
        real = Endpoint(url, "environment KUBERNETES_SERVICE_HOST", from_environment=True)
        assert check_cluster({}, services, Config(), "a", endpoint=real) == []


def test_what_checks_report_is_among_the_names_that_are_cleared() -> None:
    machine = check_machine(
        Surroundings(
            {"flannel": "link flannel.1"},
            ("ip filter FORWARD",),
            firewalld=True,
            kube_proxy=("table ip kube-proxy",),
        )
    )
    assert {row.name for row in machine} == preflight.MACHINE_NAMES
    assert "link flannel.1 of flannel" in machine[0].message
    assert "chain ip filter FORWARD" in machine[1].message
    kernel = check_kernel(
        [MissingFeature("VXLAN links", "pods on other nodes", "CONFIG_VXLAN", "Unknown device type")]
    )
    assert {row.name for row in kernel} == preflight.KERNEL_NAMES
    assert "CONFIG_VXLAN" in kernel[0].message
    assert check_machine(Surroundings()) == []


def test_five_thousand_nodes_are_checked_fast() -> None:
    nodes = [
        node(
            f"n{number}",
            f"10.{number // 250}.{number % 250}.0/24 fd00:0:0:{number:x}::/64",
            f"172.16.{number // 250}.{number % 250}",
        )
        for number in range(5000)
    ]
    start = time.perf_counter()
    assert check(*nodes, services="192.168.0.0/16") == []
    assert time.perf_counter() - start < 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["pods", "Services", "node address", "network of this node"]),
            st.integers(0, 255),
            st.integers(25, 32),
            st.sampled_from(["", "a", "b"]),
        ),
        max_size=12,
    )
)
def test_the_walk_finds_what_comparing_all_pairs_finds(
    rows: list[tuple[preflight.Purpose, int, int, str]],
) -> None:
    uses = []
    for purpose, last, length, owner in rows:
        network = ipaddress.ip_network((f"10.0.0.{last}", length), strict=False)
        uses.append(Use(Prefix(network.network_address.packed, length), purpose, owner))
    expected = any(
        (preflight.contains(one.prefix, other.prefix) or preflight.contains(other.prefix, one.prefix))
        and not preflight._may_overlap(one, other)
        for one, other in itertools.combinations(uses, 2)
    )
    assert bool(list(preflight._overlaps(uses))) == expected


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            Surroundings(kube_proxy=("table ip kube-proxy", "table ip6 kube-proxy")),
            ("has left its rules on this node (table ip kube-proxy, table ip6 kube-proxy)", "--cleanup"),
        ),
        (
            Surroundings(kube_proxy=("9 chains KUBE-* in table ip nat",), kube_proxy_ports=(10249, 10256)),
            ("runs beside Weft (port 10249 and 10256 is listened on; 9 chains KUBE-*", "delete daemonset"),
        ),
        (
            Surroundings(kube_proxy_ports=(10249,), legacy_nat=True),
            ("(port 10249 is listened on; its rules can't be seen, iptables-legacy has a nat table)",),
        ),
        (Surroundings(kube_proxy_ports=(10256,)), ("its rules can't be seen)",)),
    ],
)
def test_a_second_proxy_is_named_with_what_to_do(found: Surroundings, words: tuple[str, ...]) -> None:
    (row,) = check_machine(found)
    assert (row.name, row.level) == (preflight.KUBE_PROXY, "warning")
    for each in words:
        assert each in row.message


def test_a_nat_table_of_iptables_legacy_alone_means_nothing() -> None:
    assert check_machine(Surroundings(legacy_nat=True)) == []
