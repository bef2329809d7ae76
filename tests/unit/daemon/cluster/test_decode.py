"""API objects into values: what Kubernetes accepts is understood, what can't be is named."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from daemon.cluster import decode
from daemon.cluster.decode import DecodeError
from daemon.cluster.model import Node, Prefix, ServiceCIDR


def raw_node(**changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "metadata": {"name": "node-1", "uid": "u1", "annotations": {}},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"]},
        "status": {
            "addresses": [
                {"type": "Hostname", "address": "node-1"},
                {"type": "InternalIP", "address": "192.168.0.11"},
                {"type": "ExternalIP", "address": "203.0.113.9"},
                {"type": "InternalIP", "address": "fd00::11"},
            ],
            "capacity": {"pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
    for path, value in changes.items():
        *outer, last = path.split("__")
        place = raw
        for field in outer:
            place = place[field]
        place[last] = value
    return raw


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def test_a_dual_stack_node() -> None:
    assert decode.node(raw_node()) == Node(
        name="node-1",
        uid="u1",
        internal_ips=(packed("192.168.0.11"), packed("fd00::11")),
        pod_cidrs=(Prefix(packed("10.244.1.0"), 24), Prefix(packed("fd00:10:244:1::"), 64)),
        max_pods=110,
    )


def test_the_single_pod_cidr_stands_in_for_the_list() -> None:
    raw = raw_node(spec={"podCIDR": "10.244.9.0/24"})
    assert decode.node(raw).pod_cidrs == (Prefix(packed("10.244.9.0"), 24),)


@pytest.mark.parametrize("absent", ["spec", "status"])
@pytest.mark.parametrize("value", [None, {}, [], "x", 0])
def test_a_node_without_spec_or_status_is_one_that_waits_for_them(absent: str, value: object) -> None:
    node = decode.node(raw_node(**{absent: value}))
    assert node.name == "node-1"
    assert (node.pod_cidrs == ()) == (absent == "spec")
    assert (node.internal_ips == ()) == (absent == "status")


def test_one_internal_ip_per_family_the_first() -> None:
    addresses = [
        {"type": "InternalIP", "address": text} for text in ("10.0.0.2", "10.0.0.1", "fd00::2", "fd00::1")
    ]
    assert decode.node(raw_node(status__addresses=addresses)).internal_ips == (
        packed("10.0.0.2"),
        packed("fd00::2"),
    )


def test_the_underlay_annotation_replaces_addresses() -> None:
    annotations = {"weft.dev/underlay-address": "203.0.113.7, 2001:db8::7"}
    node = decode.node(raw_node(metadata__annotations=annotations))
    assert node.underlay == (packed("203.0.113.7"), packed("2001:db8::7"))


def test_the_network_condition() -> None:
    conditions = [{"type": "NetworkUnavailable", "status": "True"}, "nonsense"]
    assert decode.node(raw_node(status__conditions=conditions)).network_unavailable
    conditions = [{"type": "NetworkUnavailable", "status": "False"}]
    assert not decode.node(raw_node(status__conditions=conditions)).network_unavailable


def test_the_zone_of_a_node() -> None:
    raw = raw_node(metadata__labels={"topology.kubernetes.io/zone": "west-1"})
    assert decode.node(raw).zone == "west-1"
    assert decode.node(raw_node(metadata__labels={"topology.kubernetes.io/zone": 7})).zone == ""
    assert decode.node(raw_node()).zone == ""


def test_a_node_that_is_leaving() -> None:
    taint = {"key": "ToBeDeletedByClusterAutoscaler", "value": "1", "effect": "NoSchedule"}
    assert decode.node(raw_node(spec__taints=[taint])).leaving
    assert decode.node(raw_node(metadata__deletionTimestamp="2026-01-02T03:04:05Z")).leaving
    other = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
    assert not decode.node(raw_node(spec__taints=[other, "x"])).leaving


@pytest.mark.parametrize(
    ("pods", "count"), [("110", 110), (250, 250), (None, 0), ("1k", 0), ("-1", 0), ("٣", 0)]
)
def test_the_number_of_pods(pods: object, count: int) -> None:
    assert decode.node(raw_node(status__capacity={"pods": pods})).max_pods == count


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metadata__name": ""}, "metadata.name is missing"),
        ({"metadata": None}, "metadata.name is missing"),
        ({"spec__podCIDRs": ["10.244.1.0/33"]}, "spec.podCIDRs: '10.244.1.0/33' is not a usable CIDR"),
        ({"spec__podCIDRs": ["0.0.0.0/0"]}, "not a usable CIDR"),
        ({"spec__podCIDRs": [7]}, "spec.podCIDRs: 7 is not a CIDR"),
        ({"spec__podCIDRs": ["10.244.1.0"]}, "is not a CIDR"),
        (
            {"status__addresses": [{"type": "InternalIP", "address": "node-1"}]},
            "'node-1' is not an IP address",
        ),
        ({"status__addresses": [{"type": "InternalIP", "address": "0.0.0.0"}]}, "can be reached at"),
        ({"status__addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]}, "can be reached at"),
        ({"status__addresses": [{"type": "InternalIP", "address": "::1"}]}, "can be reached at"),
        ({"status__addresses": [{"type": "InternalIP", "address": "ff02::1"}]}, "can be reached at"),
        ({"status__addresses": [{"type": "InternalIP"}]}, "None is not an IP address"),
        (
            {"metadata__annotations": {decode.UNDERLAY_ANNOTATION: "here"}},
            "annotation weft.dev/underlay-address",
        ),
        (
            {"metadata__annotations": {decode.UNDERLAY_ANNOTATION: "10.0.0.1,10.0.0.2"}},
            "two addresses of one family",
        ),
    ],
)
def test_what_can_not_be_understood_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode.node(raw_node(**changes))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("010.000.000.001", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("FD00::A", "fd00::a"),
        (" 10.0.0.1 ", "10.0.0.1"),
    ],
)
def test_sloppy_addresses(text: str, address: str) -> None:
    assert decode.address(text) == packed(address)


@pytest.mark.parametrize(
    "text", ["", "10.0.0", "10.0.0.256", "10.0.0.0.1", "fe80::1%eth0", "::g", None, 1, "1.2.3.4/8"]
)
def test_what_is_no_address(text: object) -> None:
    with pytest.raises(DecodeError):
        decode.address(text)


@pytest.mark.parametrize(
    ("text", "start", "length"),
    [
        ("10.244.1.77/24", "10.244.1.0", 24),
        ("::ffff:10.244.1.0/120", "10.244.1.0", 24),
        ("fd00::ff/64", "fd00::", 64),
        ("10.0.0.1/32", "10.0.0.1", 32),
        ("128.0.0.0/1", "128.0.0.0", 1),
    ],
)
def test_sloppy_prefixes(text: str, start: str, length: int) -> None:
    assert decode.prefix(text) == Prefix(packed(start), length)


@pytest.mark.parametrize(
    "text", ["::ffff:10.0.0.0/96", "::ffff:10.0.0.0/64", "fd00::/129", "10.0.0.0/-1", "10.0.0.0/", "/8"]
)
def test_what_is_no_prefix(text: str) -> None:
    with pytest.raises(DecodeError):
        decode.prefix(text)


def test_a_service_cidr() -> None:
    raw = {"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16", "fd00:96::/108"]}}
    expected = (Prefix(packed("10.96.0.0"), 16), Prefix(packed("fd00:96::"), 108))
    assert decode.service_cidr(raw) == ServiceCIDR("kubernetes", expected)


def test_names_of_namespaced_objects() -> None:
    assert decode.name({"metadata": {"name": "a", "namespace": "b"}}) == "b/a"
