from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lab.api.patches import strategic
from lab.api.storage import Storage
from lab.errors import ApiError

if TYPE_CHECKING:
    from lab.api.resources import Object


class Api:
    """A storage with service CIDRs, and short ways to its Services."""

    def __init__(self, *cidrs: str) -> None:
        self.storage = Storage()
        self.resource = self.storage.catalogue.named("services")
        networks = self.storage.catalogue.named("servicecidrs")
        item = {"metadata": {"name": "kubernetes"}, "spec": {"cidrs": list(cidrs)}}
        self.storage.create(networks, "", item)

    def create(self, name: str = "web", **spec: Any) -> Object:
        spec.setdefault("ports", [{"port": 80}])
        created = self.storage.create(self.resource, "d", {"metadata": {"name": name}, "spec": spec})
        stored: Object = created["spec"]
        return stored

    def patch(self, name: str = "web", **spec: Any) -> Object:
        changed = self.storage.update(self.resource, "d", name, lambda old: strategic(old, {"spec": spec}))
        result: Object = changed["spec"]
        return result

    def delete(self, name: str = "web") -> None:
        self.storage.delete(self.resource, "d", name)


@pytest.fixture
def api() -> Api:
    return Api("10.96.0.0/16", "fd96::/112")


def test_the_defaults(api: Api) -> None:
    assert api.create(selector={"app": "web"}) == {
        "type": "ClusterIP",
        "selector": {"app": "web"},
        "clusterIP": "10.96.0.1",
        "clusterIPs": ["10.96.0.1"],
        "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack",
        "internalTrafficPolicy": "Cluster",
        "sessionAffinity": "None",
        "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
    }


@pytest.mark.parametrize(
    ("spec", "addresses", "policy"),
    [
        ({"ipFamilyPolicy": "PreferDualStack"}, ["10.96.0.1", "fd96::1"], "PreferDualStack"),
        ({"ipFamilies": ["IPv6", "IPv4"]}, ["fd96::1", "10.96.0.1"], "RequireDualStack"),
        ({"ipFamilies": ["IPv6"]}, ["fd96::1"], "SingleStack"),
        (
            {"ipFamilies": ["IPv6"], "ipFamilyPolicy": "RequireDualStack"},
            ["fd96::1", "10.96.0.1"],
            "RequireDualStack",
        ),
        ({"clusterIP": "10.96.7.7"}, ["10.96.7.7"], "SingleStack"),
        ({"clusterIPs": ["fd96::77"]}, ["fd96::77"], "SingleStack"),
        (
            {"clusterIP": "fd96::77", "ipFamilyPolicy": "PreferDualStack"},
            ["fd96::77", "10.96.0.1"],
            "PreferDualStack",
        ),
    ],
)
def test_families_and_addresses(api: Api, spec: dict[str, Any], addresses: list[str], policy: str) -> None:
    made = api.create(**spec)
    assert (made["clusterIPs"], made["clusterIP"]) == (addresses, addresses[0])
    assert made["ipFamilyPolicy"] == policy
    assert made["ipFamilies"] == ["IPv6" if ":" in address else "IPv4" for address in addresses]


def test_a_single_stack_cluster() -> None:
    api = Api("fd96::/112")
    assert api.create(ipFamilyPolicy="PreferDualStack")["clusterIPs"] == ["fd96::1"]
    for wrong in ({"ipFamilyPolicy": "RequireDualStack"}, {"ipFamilies": ["IPv4"]}):
        with pytest.raises(ApiError):
            api.create("other", **wrong)


def test_no_cluster_ip_stays_none(api: Api) -> None:
    headless = api.create(clusterIP="None", selector={"a": "b"}, ports=[])
    assert (headless["clusterIP"], headless["clusterIPs"]) == ("None", ["None"])
    assert headless["ipFamilies"] == ["IPv4"]
    assert api.patch(publishNotReadyAddresses=True)["clusterIPs"] == ["None"]
    assert api.create("bare", clusterIP="None")["ipFamilies"] == ["IPv4", "IPv6"]
    assert api.create("third")["clusterIP"] == "10.96.0.1"


def test_a_cluster_ip_is_kept_and_cannot_be_changed(api: Api) -> None:
    api.create(ipFamilyPolicy="PreferDualStack")
    assert api.patch(ports=[{"port": 81}])["clusterIPs"] == ["10.96.0.1", "fd96::1"]
    replaced = {"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}}
    there = api.storage.update(api.resource, "d", "web", lambda _: replaced)
    assert there["spec"]["clusterIP"] == "10.96.0.1"
    with pytest.raises(ApiError, match="may not change"):
        api.patch(clusterIP="10.96.0.9")
    assert api.create("free", clusterIP="10.96.0.9")["clusterIP"] == "10.96.0.9"


def test_what_is_deleted_can_be_had_again(api: Api) -> None:
    ports = [{"port": 80, "nodePort": 30080}]
    spec: dict[str, Any] = {"type": "NodePort", "clusterIP": "10.96.5.5", "ports": ports}
    api.create(**spec)
    with pytest.raises(ApiError, match="allocated already, to d/web"):
        api.create("other", clusterIP="10.96.5.5")
    with pytest.raises(ApiError, match="allocated already, to d/web"):
        api.create("other", type="NodePort", ports=[{"port": 80, "nodePort": 30080}])
    api.delete()
    assert api.create("other", **spec)["clusterIP"] == "10.96.5.5"


def test_a_refused_service_holds_nothing(api: Api) -> None:
    api.create(type="NodePort", ports=[{"port": 80, "nodePort": 30080}])
    with pytest.raises(ApiError):
        api.create("other", clusterIP="10.96.5.5", type="NodePort", ports=[{"port": 80, "nodePort": 30080}])
    assert api.create("third", clusterIP="10.96.5.5")["clusterIP"] == "10.96.5.5"


def test_a_refused_change_leaves_what_is_held(api: Api) -> None:
    api.create(type="NodePort", ports=[{"port": 80, "nodePort": 30080}])
    with pytest.raises(ApiError, match="valid ports"):
        api.patch(ports=[{"port": 80, "nodePort": 80}])
    with pytest.raises(ApiError, match="allocated already"):
        api.create("other", type="NodePort", ports=[{"port": 80, "nodePort": 30080}])


def test_node_ports_are_chosen_kept_and_shared_by_protocols(api: Api) -> None:
    ports = [
        {"name": "a", "port": 53, "protocol": "UDP"},
        {"name": "b", "port": 53},
        {"name": "c", "port": 54, "nodePort": 30000},
        {"name": "d", "port": 54, "nodePort": 30000, "protocol": "SCTP"},
    ]
    made = api.create(type="NodePort", ports=ports)
    assert [port["nodePort"] for port in made["ports"]] == [30001, 30002, 30000, 30000]
    assert made["externalTrafficPolicy"] == "Cluster"
    again = api.patch(ports=[{"name": "b", "port": 53}, {"name": "e", "port": 55}])
    assert [port["nodePort"] for port in again["ports"]] == [30002, 30003]


def test_changes_of_type(api: Api) -> None:
    api.create()
    assert api.patch(type="NodePort")["ports"][0]["nodePort"] == 30000
    local = api.patch(type="LoadBalancer", externalTrafficPolicy="Local")
    assert local["healthCheckNodePort"] == 30001
    assert local["ports"][0]["nodePort"] == 30000
    assert "healthCheckNodePort" not in api.patch(externalTrafficPolicy="Cluster")
    plain = api.patch(type="ClusterIP")
    assert "nodePort" not in plain["ports"][0]
    assert "externalTrafficPolicy" not in plain
    named = api.patch(type="ExternalName", externalName="example.org")
    assert not {"clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"} & named.keys()
    assert api.create("other", clusterIP="10.96.0.1")["clusterIP"] == "10.96.0.1"
    assert api.patch(type="ClusterIP")["clusterIP"] == "10.96.0.2"


def test_load_balancers_may_do_without_node_ports(api: Api) -> None:
    made = api.create(type="LoadBalancer", allocateLoadBalancerNodePorts=False)
    assert "nodePort" not in made["ports"][0]


def test_a_change_of_the_family_policy(api: Api) -> None:
    api.create()
    assert api.patch(ipFamilyPolicy="PreferDualStack")["clusterIPs"] == ["10.96.0.1", "fd96::1"]
    single = api.patch(ipFamilyPolicy="SingleStack")
    assert (single["clusterIPs"], single["ipFamilies"]) == (["10.96.0.1"], ["IPv4"])
    assert api.create("other", clusterIP="fd96::1")["clusterIP"] == "fd96::1"


def test_affinity(api: Api) -> None:
    made = api.create(sessionAffinity="ClientIP")
    assert made["sessionAffinityConfig"] == {"clientIP": {"timeoutSeconds": 10800}}
    assert "sessionAffinityConfig" not in api.patch(sessionAffinity="None")


@pytest.mark.parametrize(
    "spec",
    [
        {"type": "Other"},
        {"type": "ExternalName"},
        {"ports": []},
        {"ports": [{"port": 1}, {"port": 2}]},
        {"ports": [{"name": "a", "port": 1}, {"name": "a", "port": 2}]},
        {"ports": [{"name": "a", "port": 1}, {"name": "b", "port": 1}]},
        {"ports": [{"port": 1, "protocol": "ICMP"}]},
        {"ports": [{"port": 1, "nodePort": 30000}]},
        {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}},
        {"ipFamilies": ["IPv5"]},
        {"ipFamilies": ["IPv6"], "clusterIP": "10.96.0.1"},
        {"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "SingleStack"},
        {"clusterIP": "192.0.2.1"},
    ],
)
def test_what_breaks_a_rule_is_refused(api: Api, spec: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        api.create(**spec)
    assert caught.value.code == 422
    assert api.storage.list(api.resource) == []


def test_only_the_subresource_writes_a_status(api: Api) -> None:
    api.create(type="LoadBalancer")
    status = {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}}
    set_status = {"status": status}
    api.storage.update(api.resource, "d", "web", lambda old: strategic(old, set_status), subresource="status")
    api.storage.update(api.resource, "d", "web", lambda old: {**old, "status": {}})
    assert api.storage.get(api.resource, "d", "web")["status"] == status
