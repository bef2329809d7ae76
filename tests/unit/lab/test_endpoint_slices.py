from __future__ import annotations

from typing import Any

import pytest

from lab.endpoint_slices import HEADLESS, MAX_ENDPOINTS, SERVICE_NAME, selects, slices_of

ZONES = {"node-1": "a", "node-2": "b"}


def service(**spec: Any) -> dict[str, Any]:
    ports = [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}]
    usual = {"type": "ClusterIP", "selector": {"app": "web"}, "ipFamilies": ["IPv4"], "ports": ports}
    metadata = {"name": "web", "namespace": "d", "uid": "u", "labels": {"team": "x"}}
    return {"metadata": metadata, "spec": {**usual, **spec}}


def pod(name: str, *ips: str, ready: bool = True, node: str = "node-1", **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "d", "uid": name, "labels": {"app": "web"}, **metadata},
        "spec": {"nodeName": node, "containers": []},
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": ip} for ip in ips],
            "conditions": [{"type": "Ready", "status": str(ready)}],
        },
    }


def test_a_slice_for_each_family() -> None:
    pods = [pod("a", "10.0.0.1", "fd00::1"), pod("b", "fd00::2", node="node-2")]
    four, six = sorted(
        slices_of(service(ipFamilies=["IPv4", "IPv6"]), pods, ZONES), key=lambda item: item["addressType"]
    )
    assert [one["addresses"] for one in four["endpoints"]] == [["10.0.0.1"]]
    assert [one["addresses"] for one in six["endpoints"]] == [["fd00::1"], ["fd00::2"]]
    assert [(one["nodeName"], one["zone"]) for one in six["endpoints"]] == [("node-1", "a"), ("node-2", "b")]
    assert six["ports"] == [{"name": "http", "protocol": "TCP", "port": 8080}]
    assert six["metadata"]["labels"][SERVICE_NAME] == "web"
    assert six["metadata"]["labels"]["team"] == "x"
    assert HEADLESS not in six["metadata"]["labels"]
    assert six["metadata"]["ownerReferences"][0]["uid"] == "u"


@pytest.mark.parametrize(
    ("ready", "deleted", "conditions"),
    [
        (True, False, (True, True, False)),
        (False, False, (False, False, False)),
        (True, True, (False, True, True)),
        (False, True, (False, False, True)),
    ],
)
def test_conditions(ready: bool, deleted: bool, conditions: tuple[bool, ...]) -> None:
    marks = {"deletionTimestamp": "now"} if deleted else {}
    (made,) = slices_of(service(), [pod("a", "10.0.0.1", ready=ready, **marks)], {})
    assert tuple(made["endpoints"][0]["conditions"].values()) == conditions
    assert "zone" not in made["endpoints"][0]


def test_unready_addresses_published() -> None:
    (made,) = slices_of(service(publishNotReadyAddresses=True), [pod("a", "10.0.0.1", ready=False)], {})
    assert made["endpoints"][0]["conditions"]["ready"] is True


def test_pods_that_do_not_count() -> None:
    ended = pod("a", "10.0.0.1")
    ended["status"]["phase"] = "Succeeded"
    elsewhere = pod("b", "10.0.0.2", namespace="other")
    (made,) = slices_of(service(), [ended, elsewhere, pod("c"), pod("d", labels={})], {})
    assert made["endpoints"] == []


def test_no_slices_without_a_selector_or_for_a_name() -> None:
    assert slices_of(service(selector={}), [pod("a", "10.0.0.1")], {}) == []
    assert slices_of(service(type="ExternalName"), [pod("a", "10.0.0.1")], {}) == []
    assert not selects(service(selector=None), pod("a"))


def test_a_named_port_may_be_another_number_in_each_pod() -> None:
    pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2"), pod("c", "10.0.0.3"), pod("d", "10.0.0.4")]
    for each, number in ((pods[0], 8081), (pods[1], 8082), (pods[2], 8081)):
        ports = [{"name": "web", "containerPort": number}]
        each["spec"]["containers"] = [{"ports": [{"name": "web", "protocol": "UDP", "containerPort": 1}]}]
        each["spec"]["containers"].append({"ports": ports})
    port = {"name": "http", "protocol": "TCP", "port": 80, "targetPort": "web"}
    made = slices_of(service(ports=[port]), pods, {})
    found = {
        tuple(port["port"] for port in item["ports"]): [one["targetRef"]["name"] for one in item["endpoints"]]
        for item in made
    }
    assert found == {(8081,): ["a", "c"], (8082,): ["b"], (): ["d"]}


@pytest.mark.parametrize(
    ("distribution", "hints"),
    [
        ("", None),
        ("PreferClose", {"forZones": [{"name": "a"}]}),
        ("PreferSameZone", {"forZones": [{"name": "a"}]}),
        ("PreferSameNode", {"forZones": [{"name": "a"}], "forNodes": [{"name": "node-1"}]}),
    ],
)
def test_hints(distribution: str, hints: dict[str, Any] | None) -> None:
    pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2", ready=False)]
    (made,) = slices_of(service(trafficDistribution=distribution), pods, ZONES)
    assert [one.get("hints") for one in made["endpoints"]] == [hints, None]


def test_large_services_have_several_slices_with_names_that_stay() -> None:
    pods = [pod(f"p{number:03}", f"10.0.1.{number}") for number in range(MAX_ENDPOINTS + 1)]
    one = slices_of(service(), pods[:-1], {})
    two = slices_of(service(), pods, {})
    assert sorted(len(item["endpoints"]) for item in two) == [1, MAX_ENDPOINTS]
    assert one[0]["metadata"]["name"] in [item["metadata"]["name"] for item in two]
    assert two == slices_of(service(), pods[::-1], {})


def test_a_headless_service_is_labelled() -> None:
    (made,) = slices_of(service(clusterIP="None", ports=[]), [pod("a", "10.0.0.1")], {})
    assert made["metadata"]["labels"][HEADLESS] == ""
    assert made["ports"] == []
