"""Whatever JSON the API server sends, Services and slices become well-formed values or a DecodeError."""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from daemon.cluster import decode_services
from daemon.cluster.decode import DecodeError
from daemon.compile.endpoints import Site
from daemon.compile.services import compile_service

SITE = Site("node-1", "a", (bytes((192, 168, 7, 1)),))
SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-1, 70000), st.floats(), st.text(max_size=6)
)
JSON: st.SearchStrategy[Any] = st.one_of(
    SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.text(max_size=4), SCALARS, max_size=3)
)
NUMBERS = st.one_of(st.integers(-1, 66000), SCALARS)
ADDRESSES = st.one_of(
    st.ip_addresses().map(str),
    st.sampled_from(["", "None", "010.0.0.1", "::ffff:10.0.0.1", "127.0.0.1"]),
    JSON,
)
RANGES = st.one_of(st.tuples(st.ip_addresses(), st.integers(0, 130)).map(lambda p: f" {p[0]}/{p[1]}"), JSON)
PROTOCOLS = st.one_of(st.sampled_from(["TCP", "UDP", "SCTP", "QUIC", ""]), JSON)


def listed(part: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.lists(part, max_size=3), JSON)


def shaped(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.fixed_dictionaries({}, optional=fields), JSON)


NAMES = st.one_of(st.sampled_from(["a", "http"]), JSON)
METADATA = shaped(
    namespace=NAMES,
    name=NAMES,
    uid=JSON,
    creationTimestamp=JSON,
    labels=shaped(**{"kubernetes.io/service-name": NAMES}),
    annotations=shaped(**{decode_services.TRIGGER_ANNOTATION: st.one_of(JSON, st.datetimes().map(str))}),
)
SERVICES = st.fixed_dictionaries(
    {
        "metadata": st.one_of(st.just({"namespace": "shop", "name": "web"}), METADATA),
        "spec": shaped(
            type=st.one_of(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]), JSON),
            clusterIP=ADDRESSES,
            clusterIPs=listed(ADDRESSES),
            externalIPs=listed(ADDRESSES),
            ports=listed(shaped(name=NAMES, protocol=PROTOCOLS, port=NUMBERS, nodePort=NUMBERS)),
            externalTrafficPolicy=st.one_of(st.just("Local"), JSON),
            internalTrafficPolicy=st.one_of(st.just("Local"), JSON),
            sessionAffinity=st.one_of(st.just("ClientIP"), JSON),
            sessionAffinityConfig=shaped(clientIP=shaped(timeoutSeconds=NUMBERS)),
            loadBalancerSourceRanges=listed(RANGES),
            healthCheckNodePort=NUMBERS,
        ),
        "status": shaped(loadBalancer=shaped(ingress=listed(shaped(ip=ADDRESSES, ipMode=JSON)))),
    }
)
SLICES = st.fixed_dictionaries(
    {
        "metadata": st.one_of(
            st.just({"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}}),
            METADATA,
        ),
        "addressType": st.one_of(st.sampled_from(["IPv4", "IPv6", "FQDN"]), JSON),
        "endpoints": listed(
            shaped(
                addresses=listed(ADDRESSES),
                conditions=shaped(ready=JSON, serving=JSON, terminating=JSON),
                nodeName=JSON,
                hints=shaped(forZones=listed(shaped(name=NAMES)), forNodes=listed(shaped(name=NAMES))),
            )
        ),
        "ports": listed(shaped(name=NAMES, protocol=PROTOCOLS, port=NUMBERS)),
    }
)


def assert_reachable(address: bytes) -> None:
    assert len(address) in {4, 16}
    assert any(address)
    assert len(address) == 16 or (address[0] != 127 and address[0] < 224)


@given(SERVICES, st.lists(SLICES, max_size=2))
def test_services_and_slices_decode_to_values_that_compile_or_to_an_error(raw: Any, raws: list[Any]) -> None:
    try:
        service = decode_services.service(raw)
    except DecodeError:
        return
    assert hash(service) == hash(decode_services.service(raw))
    assert len({len(each) for each in service.cluster_ips}) == len(service.cluster_ips)
    for address in (*service.cluster_ips, *service.external_ips, *service.load_balancer_ips):
        assert_reachable(address)
    for port in service.ports:
        assert 0 < port.port < 1 << 16
        assert 0 <= port.node_port < 1 << 16
        assert port.protocol in {6, 17, 132}
    assert 0 <= service.affinity_seconds <= decode_services.MAX_AFFINITY_SECONDS
    slices = []
    for each in raws:
        with contextlib.suppress(DecodeError):
            slices.append(decode_services.endpoint_slice(each))
    compiled = compile_service(service, slices, SITE)
    assert bool(compiled.balances) == bool(service.ports)


@given(SLICES)
def test_endpoints_are_of_the_family_of_their_slice(raw: Any) -> None:
    try:
        found = decode_services.endpoint_slice(raw)
    except DecodeError:
        return
    assert found == decode_services.endpoint_slice(raw)
    assert hash(found) == hash(decode_services.endpoint_slice(raw))
    for endpoint in found.endpoints:
        assert_reachable(endpoint.address)
        assert len(endpoint.address) == {4: 4, 6: 16}[found.family]
    for port in found.ports:
        assert 0 < port.port < 1 << 16
