"""Pods and Namespaces into values: what policies depend on, each thing that is shared held once."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from daemon.cluster.decode import DecodeError
from daemon.cluster.decode_pods import namespace, pod
from daemon.cluster.model import ContainerPort, Namespace, Pod
from daemon.cluster.selectors import labels

TCP, UDP, SCTP = 6, 17, 132


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def raw_pod(spec: Any = None, status: Any = None, **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "shop",
            "name": "web-1",
            "uid": "u1",
            "labels": {"app": "web"},
            **metadata,
        },
        "spec": {"nodeName": "n1", "containers": [{"name": "c"}], **(spec or {})},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.244.1.2"}, {"ip": "fd00::2"}], **(status or {})},
    }


def ports(*entries: dict[str, Any], **spec: Any) -> tuple[ContainerPort, ...]:
    return pod(raw_pod({"containers": [{"ports": list(entries)}], **spec})).ports


def test_a_plain_pod() -> None:
    assert pod(raw_pod()) == Pod(
        namespace="shop",
        name="web-1",
        uid="u1",
        node="n1",
        labels=labels({"app": "web"}),
        ips=(packed("10.244.1.2"), packed("fd00::2")),
    )
    assert pod(raw_pod()).key == "shop/web-1"


def test_a_pod_that_runs_nowhere_yet() -> None:
    fresh = pod({"metadata": {"namespace": "shop", "name": "new"}, "spec": {}, "status": {}})
    assert fresh == Pod("shop", "new", "", "", labels({}))


def test_pods_of_a_workload_share_their_labels_and_ports() -> None:
    container = [{"ports": [{"name": "http", "containerPort": 80}]}]
    one, two = pod(raw_pod({"containers": container})), pod(raw_pod({"containers": container}, name="web-2"))
    assert one.labels is two.labels
    assert one.ports is two.ports
    assert one.namespace is two.namespace
    assert one.node is two.node


@pytest.mark.parametrize(
    ("phase", "finished"),
    [("Pending", False), ("Running", False), ("Unknown", False), ("Succeeded", True), ("Failed", True)],
)
def test_a_pod_is_finished_by_its_phase(phase: str, finished: bool) -> None:
    assert pod(raw_pod(status={"phase": phase})).finished is finished


def test_a_terminating_pod_is_as_alive_as_before() -> None:
    assert pod(raw_pod(deletionTimestamp="2026-01-02T03:04:05Z")) == pod(raw_pod())


def test_host_network() -> None:
    assert pod(raw_pod({"hostNetwork": True})).host_network
    assert not pod(raw_pod()).host_network


def test_the_first_address_of_each_family_counts() -> None:
    listed = [{"ip": "10.244.1.2"}, {"ip": "10.244.1.3"}, {}, {"ip": "fd00::2"}]
    assert pod(raw_pod(status={"podIPs": listed})).ips == (packed("10.244.1.2"), packed("fd00::2"))


def test_the_single_address_stands_in_for_the_list() -> None:
    assert pod(raw_pod(status={"podIPs": None, "podIP": "10.244.1.9"})).ips == (packed("10.244.1.9"),)
    assert pod(raw_pod(status={"podIPs": [], "podIP": ""})).ips == ()


def test_sloppy_addresses_are_read() -> None:
    assert pod(raw_pod(status={"podIPs": [{"ip": "010.244.001.002"}]})).ips == (packed("10.244.1.2"),)


@pytest.mark.parametrize("bad", ["nonsense", "127.0.0.1", "0.0.0.0"])
def test_an_address_that_is_none_is_told(bad: str) -> None:
    with pytest.raises(DecodeError, match=r"status\.podIPs"):
        pod(raw_pod(status={"podIPs": [{"ip": bad}]}))


def test_a_pod_without_a_namespace_is_none() -> None:
    with pytest.raises(DecodeError, match=r"metadata\.namespace"):
        pod({"metadata": {"name": "x"}})


def test_only_ports_with_names_are_kept_and_the_protocol_is_tcp_by_default() -> None:
    assert ports(
        {"name": "http", "containerPort": 80},
        {"containerPort": 81},
        {"name": "dns", "containerPort": 53, "protocol": "UDP"},
        {"name": "dns", "containerPort": 5353, "protocol": "TCP"},
        {"name": "s", "containerPort": 7, "protocol": "SCTP"},
    ) == (
        ContainerPort("http", TCP, 80),
        ContainerPort("dns", UDP, 53),
        ContainerPort("dns", TCP, 5353),
        ContainerPort("s", SCTP, 7),
    )


def test_of_two_ports_with_one_name_the_first_counts() -> None:
    assert ports({"name": "a", "containerPort": 1}, {"name": "a", "containerPort": 2}) == (
        ContainerPort("a", TCP, 1),
    )


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "a", "containerPort": 0},
        {"name": "a", "containerPort": 70000},
        {"name": "a", "containerPort": "80"},
        {"name": "a", "containerPort": True},
        {"name": "a"},
        {"name": "a", "containerPort": 1, "protocol": "ICMP"},
        {"name": "", "containerPort": 1},
    ],
)
def test_a_port_that_is_none_resolves_no_name(entry: dict[str, Any]) -> None:
    assert ports(entry) == ()


def test_sidecars_have_ports_and_other_init_containers_have_none() -> None:
    """An init container that restarts always runs beside the others (KEP-753)."""
    init = [
        {"restartPolicy": "Always", "ports": [{"name": "metrics", "containerPort": 9}]},
        {"ports": [{"name": "once", "containerPort": 8}]},
    ]
    assert ports({"name": "http", "containerPort": 80}, initContainers=init) == (
        ContainerPort("http", TCP, 80),
        ContainerPort("metrics", TCP, 9),
    )


def test_a_static_pods_uid_is_the_one_that_the_runtime_knows() -> None:
    mirror = {"kubernetes.io/config.mirror": "abc"}
    assert pod(raw_pod(annotations=mirror)).uid == "abc"


def test_labels_that_are_none_are_left_out() -> None:
    assert pod(raw_pod(labels={"app": "web", "n": 1})).labels is labels({"app": "web"})
    assert pod(raw_pod(labels=None)).labels is labels({})


def test_a_namespace() -> None:
    assert namespace({"metadata": {"name": "shop", "labels": {"team": "a"}}}) == Namespace(
        "shop", labels({"team": "a"})
    )
    assert namespace({"metadata": {"name": "bare"}}) == Namespace("bare", labels({}))
    with pytest.raises(DecodeError, match=r"metadata\.name"):
        namespace({"metadata": {}})
