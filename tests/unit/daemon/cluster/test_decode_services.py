"""Services and EndpointSlices into values: what serves is kept, what can't be understood is named."""

from __future__ import annotations

import datetime as dt
import ipaddress
from typing import Any

import pytest

from daemon.cluster import decode, decode_services
from daemon.cluster.decode import DecodeError
from daemon.cluster.decode_services import endpoint_slice, service
from daemon.cluster.model import Endpoint, EndpointPort, EndpointSlice, Prefix, Service, ServicePort

TCP, UDP, SCTP = 6, 17, 132


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def raw_service(status: Any = None, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "shop",
            "name": "web",
            "uid": "u1",
            "creationTimestamp": "2026-01-02T03:04:05Z",
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "10.96.0.7",
            "clusterIPs": ["10.96.0.7", "fd00:96::7"],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
            **spec,
        },
        "status": status,
    }


def raw_slice(*endpoints: Any, **fields: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "shop",
            "name": "web-abc",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "endpoints": list(endpoints),
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        **fields,
    }


def balanced(*ingress: Any, **spec: Any) -> Service:
    return service(
        raw_service({"loadBalancer": {"ingress": list(ingress)}}, **{"type": "LoadBalancer", **spec})
    )


def the_endpoint(**fields: Any) -> Endpoint:
    (endpoint,) = endpoint_slice(raw_slice({"addresses": ["10.244.1.2"], **fields})).endpoints
    return endpoint


def test_a_plain_service() -> None:
    assert service(raw_service()) == Service(
        namespace="shop",
        name="web",
        uid="u1",
        created="2026-01-02T03:04:05Z",
        cluster_ips=(packed("10.96.0.7"), packed("fd00:96::7")),
        ports=(ServicePort("http", TCP, 80),),
    )
    assert service(raw_service()).key == "shop/web"


def test_the_single_cluster_ip_stands_in_for_the_list() -> None:
    assert service(raw_service(clusterIPs=None)).cluster_ips == (packed("10.96.0.7"),)


def test_one_cluster_ip_per_family_the_first() -> None:
    texts = ["fd00:96::7", "10.96.0.7", "10.96.0.8"]
    assert service(raw_service(clusterIPs=texts)).cluster_ips == (packed("fd00:96::7"), packed("10.96.0.7"))


@pytest.mark.parametrize(
    "spec",
    [
        {"clusterIP": "None", "clusterIPs": ["None"]},
        {"clusterIP": "None", "clusterIPs": None},
        {"clusterIP": "", "clusterIPs": []},
        {"clusterIP": None, "clusterIPs": None},
        {"type": "ExternalName", "externalName": "example.org"},
    ],
)
def test_a_headless_or_external_name_service_has_nothing_to_connect_to(spec: dict[str, Any]) -> None:
    found = service(raw_service(externalIPs=["203.0.113.1"], **spec))
    assert (found.cluster_ips, found.external_ips, found.ports, found.faults) == ((), (), (), ())
    assert found.key == "shop/web"


def test_ports_of_all_protocols() -> None:
    ports = [
        {"port": 53, "nodePort": 30053},
        {"name": "dns", "protocol": "UDP", "port": 53, "nodePort": 30053},
        {"name": "m3ua", "protocol": "SCTP", "port": 53},
    ]
    assert service(raw_service(type="NodePort", ports=ports)).ports == (
        ServicePort("", TCP, 53, 30053),
        ServicePort("dns", UDP, 53, 30053),
        ServicePort("m3ua", SCTP, 53),
    )


def test_node_ports_that_stayed_behind_when_the_type_changed_are_none() -> None:
    ports = [{"port": 80, "nodePort": 30080}]
    assert service(raw_service(ports=ports)).ports == (ServicePort("", TCP, 80),)
    assert service(raw_service(ports=ports, type="NodePort")).ports == (ServicePort("", TCP, 80, 30080),)
    assert balanced(ports=ports).ports == (ServicePort("", TCP, 80, 30080),)


def test_external_ips_without_repetition() -> None:
    texts = ["203.0.113.9", "203.0.113.009", "2001:db8::9"]
    assert service(raw_service(externalIPs=texts)).external_ips == (
        packed("203.0.113.9"),
        packed("2001:db8::9"),
    )


def test_ips_of_a_load_balancer_that_delivers_to_them() -> None:
    found = balanced(
        {"ip": "203.0.113.1"},
        {"ip": "203.0.113.2", "ipMode": "VIP"},
        {"ip": "203.0.113.3", "ipMode": "Proxy"},
        {"hostname": "lb.example.org"},
        "nonsense",
    )
    assert found.load_balancer_ips == (packed("203.0.113.1"), packed("203.0.113.2"))
    assert found.faults == ()


def test_what_only_load_balancers_have_is_theirs_only() -> None:
    spec = {"loadBalancerSourceRanges": ["192.0.2.0/24"], "healthCheckNodePort": 31000}
    status = {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}
    assert balanced({"ip": "203.0.113.1"}, **spec).health_check_node_port == 31000
    plain = service(raw_service(status, type="NodePort", **spec))
    assert (plain.load_balancer_ips, plain.source_ranges, plain.health_check_node_port) == ((), (), 0)


def test_source_ranges_with_spaces_host_bits_and_leading_zeros() -> None:
    texts = [" 192.0.2.7/24", "010.001.0.0/16 ", "0.0.0.0/0", "2001:db8::/32", "192.0.2.0/24"]
    assert balanced(loadBalancerSourceRanges=texts).source_ranges == (
        Prefix(packed("192.0.2.0"), 24),
        Prefix(packed("10.1.0.0"), 16),
        Prefix(packed("0.0.0.0"), 0),
        Prefix(packed("2001:db8::"), 32),
    )


def test_a_bad_source_range_must_not_admit_everybody() -> None:
    with pytest.raises(DecodeError, match=r"loadBalancerSourceRanges: '10\.0\.0\.0/99'"):
        balanced(loadBalancerSourceRanges=["10.0.0.0/99"])


def test_traffic_policies() -> None:
    found = service(raw_service(externalTrafficPolicy="Local", internalTrafficPolicy="Cluster"))
    assert (found.external_local, found.internal_local) == (True, False)
    found = service(raw_service(externalTrafficPolicy="Cluster", internalTrafficPolicy="Local"))
    assert (found.external_local, found.internal_local) == (False, True)


@pytest.mark.parametrize(
    ("spec", "seconds"),
    [
        ({}, 0),
        ({"sessionAffinity": "None"}, 0),
        ({"sessionAffinity": "ClientIP"}, 10800),
        (
            {
                "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 30}},
            },
            30,
        ),
        (
            {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}},
            10800,
        ),
        ({"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 30}}}, 0),
    ],
)
def test_affinity(spec: dict[str, Any], seconds: int) -> None:
    assert service(raw_service(**spec)).affinity_seconds == seconds


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ({"externalIPs": ["nowhere", "203.0.113.1"]}, "spec.externalIPs: 'nowhere' is not an IP address"),
        ({"externalIPs": ["127.0.0.1", "203.0.113.1"]}, "anything can be reached at"),
        ({"clusterIPs": ["10.96.0.7", "fd00:::7"], "externalIPs": ["203.0.113.1"]}, "spec.clusterIPs"),
        (
            {"ports": [{"name": "x", "port": 0}, {"port": 80}], "externalIPs": ["203.0.113.1"]},
            "spec.ports: port 0 is not a number from 1 to 65535",
        ),
        (
            {"ports": [{"port": 9, "protocol": "QUIC"}, {"port": 80}], "externalIPs": ["203.0.113.1"]},
            "protocol 'QUIC'",
        ),
        ({"ports": ["x", {"port": 80}], "externalIPs": ["203.0.113.1"]}, "port None"),
    ],
)
def test_a_bad_part_of_a_service_is_left_out_and_named(spec: dict[str, Any], fault: str) -> None:
    found = service(raw_service(**spec))
    assert len(found.faults) == 1
    assert fault in found.faults[0]
    assert found.cluster_ips[0] == packed("10.96.0.7")
    assert found.external_ips == (packed("203.0.113.1"),)
    assert [port.port for port in found.ports] == [80]


def test_few_faults_are_told() -> None:
    found = service(raw_service(externalIPs=[f"x{number}" for number in range(100)]))
    assert len(found.faults) == decode.MAX_FAULTS


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (raw_service(clusterIPs=["10.96.0"], clusterIP="10.96.0"), "spec.clusterIPs: '10.96.0'"),
        ({"metadata": {"name": "web"}, "spec": {}}, "metadata.namespace is missing"),
        ({"metadata": {"namespace": "shop"}}, "metadata.name is missing"),
    ],
)
def test_a_service_that_can_not_be_understood(raw: dict[str, Any], words: str) -> None:
    with pytest.raises(DecodeError) as caught:
        service(raw)
    assert words in str(caught.value)


def test_a_slice() -> None:
    raw = raw_slice(
        {
            "addresses": ["10.244.1.2"],
            "conditions": {"ready": False, "serving": True, "terminating": True},
            "nodeName": "node-1",
            "zone": "a",
            "hints": {"forZones": [{"name": "a"}, {"name": "b"}], "forNodes": [{"name": "node-1"}]},
        }
    )
    endpoint = Endpoint(
        packed("10.244.1.2"), False, True, True, node="node-1", zones=("a", "b"), nodes=("node-1",)
    )
    assert endpoint_slice(raw) == EndpointSlice(
        "shop", "web-abc", "web", 4, (endpoint,), (EndpointPort("http", TCP, 8080),)
    )
    assert endpoint_slice(raw).service_key == "shop/web"


@pytest.mark.parametrize("conditions", [None, {}, {"ready": None, "serving": None, "terminating": None}])
def test_absent_conditions_mean_ready_serving_and_not_terminating(conditions: Any) -> None:
    found = the_endpoint(conditions=conditions)
    assert (found.ready, found.serving, found.terminating) == (True, True, False)


def test_conditions_one_by_one() -> None:
    assert not the_endpoint(conditions={"ready": False}).ready
    assert the_endpoint(conditions={"ready": False}).serving
    assert not the_endpoint(conditions={"serving": False}).serving
    assert the_endpoint(conditions={"terminating": True}).terminating


@pytest.mark.parametrize("hints", [None, {}, {"forZones": None}, {"forZones": ["a", {"name": 1}, {}]}, "x"])
def test_hints_that_say_nothing(hints: Any) -> None:
    assert the_endpoint(hints=hints).zones == ()


def test_only_the_first_address_of_an_endpoint_counts() -> None:
    assert the_endpoint(addresses=["10.244.1.9", "10.244.1.10"]).address == packed("10.244.1.9")


def test_names_of_nodes_and_zones_are_held_once() -> None:
    one, other = (the_endpoint(nodeName=b"node-1".decode()) for _ in range(2))
    assert one.node is other.node


def test_ports_without_a_number_are_skipped() -> None:
    ports = [{"name": "a"}, {"name": "b", "port": 0}, {"name": None, "port": 80}, {"port": 81, "name": "c"}]
    found = endpoint_slice(raw_slice(ports=ports))
    assert found.ports == (EndpointPort("", TCP, 80), EndpointPort("c", TCP, 81))
    assert found.faults == ()


def test_a_slice_of_names_has_no_endpoints() -> None:
    found = endpoint_slice(raw_slice({"addresses": ["web.example.org"]}, addressType="FQDN"))
    assert (found.family, found.endpoints, found.faults) == (0, (), ())


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ("fd00::1", "'fd00::1' is not IPv4"),
        ("nowhere", "'nowhere' is not an IP address"),
        ("127.0.0.1", "anything can be reached at"),
        ("224.0.0.1", "anything can be reached at"),
        (None, "None is not an IP address"),
    ],
)
def test_a_bad_endpoint_is_left_out_and_named(address: Any, fault: str) -> None:
    found = endpoint_slice(raw_slice({"addresses": [address]}, {"addresses": ["10.244.001.3"]}))
    assert [each.address for each in found.endpoints] == [packed("10.244.1.3")]
    assert len(found.faults) == 1
    assert fault in found.faults[0]


def test_an_endpoint_without_an_address_is_none() -> None:
    assert endpoint_slice(raw_slice({"addresses": []}, {}, "x")).endpoints == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"addressType": "IPX"}, "addressType 'IPX' is none of IPv4, IPv6 and FQDN"),
        ({"addressType": None}, "addressType None"),
        ({"metadata": {"namespace": "shop", "name": "x"}}, "label kubernetes.io/service-name is missing"),
        ({"metadata": {"name": "x", "labels": {"kubernetes.io/service-name": "web"}}}, "namespace"),
    ],
)
def test_a_slice_that_can_not_be_understood(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DecodeError) as caught:
        endpoint_slice(raw_slice(**changes))
    assert words in str(caught.value)


def test_when_a_slice_was_triggered_is_known_but_no_difference() -> None:
    raw = raw_slice()
    raw["metadata"]["annotations"] = {decode_services.TRIGGER_ANNOTATION: "2026-01-02T03:04:05.123456789Z"}
    found = endpoint_slice(raw)
    moment = dt.datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=dt.UTC)
    assert found.triggered == pytest.approx(moment.timestamp())
    assert found == endpoint_slice(raw_slice())
    for vague in ("yesterday", "2026-01-02T03:04:05", 7):
        raw["metadata"]["annotations"] = {decode_services.TRIGGER_ANNOTATION: vague}
        assert endpoint_slice(raw).triggered == 0
