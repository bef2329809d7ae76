"""A policy of which any part can't be understood never allows what the whole policy does not."""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.cluster.decode import DecodeError
from daemon.cluster.decode_pods import pod
from daemon.cluster.decode_policies import network_policy
from daemon.compile.policy_verdict import Flow
from tests.property.policy import clusters
from tests.unit.daemon.compile.town import Town, packed

if TYPE_CHECKING:
    from collections.abc import Iterator

JUNK = 3.5
"""Nothing in a policy is a fraction."""

PORTS = ((6, 80), (6, 443), (17, 53), (132, 81), (1, None))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document, as the way to it."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*path, key))


def spoilt(raw: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    result = copy.deepcopy(raw)
    place = result
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = JUNK
    return result


@st.composite
def spoilt_clusters(draw: st.DrawFn) -> tuple[dict[str, Any], int, dict[str, Any]]:
    """A cluster, and one of its policies with junk somewhere in its spec."""
    cluster = draw(clusters.clusters())
    candidates = [number for number, each in enumerate(cluster["policies"]) if each["spec"]]
    if not candidates:
        cluster["policies"][0]["spec"]["ingress"] = [{}]
        candidates = [0]
    number = draw(st.sampled_from(candidates))
    raw = cluster["policies"][number]
    path = draw(st.sampled_from(list(places(raw["spec"]))))
    return cluster, number, {**raw, "spec": spoilt(raw["spec"], path)}


def allowed(cluster: dict[str, Any]) -> set[Flow]:
    town = Town(*cluster["nodes"])
    for kind in ("policies", "pods", "namespaces"):
        town.put(*cluster[kind])
    addresses = [packed(each) for each in clusters.addresses(cluster)]
    return {
        flow
        for source, destination in itertools.product(addresses, repeat=2)
        if len(source) == len(destination)
        for protocol, port in PORTS
        if town.allows(flow := Flow(source, destination, protocol, port))
    }


@pytest.mark.timeout(600)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(spoilt_clusters())
def test_junk_in_a_policy_never_allows_more(case: tuple[dict[str, Any], int, dict[str, Any]]) -> None:
    cluster, number, spoilt_policy = case
    try:
        network_policy(spoilt_policy)
    except DecodeError as error:
        assert "spec.podSelector" in str(error)  # noqa: PT017 - which policies are refused is the point
        return
    policies = [*cluster["policies"]]
    policies[number] = spoilt_policy
    assert allowed({**cluster, "policies": policies}) <= allowed(cluster)


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_junk_in_a_pod_gives_a_pod_or_an_error(data: st.DataObject) -> None:
    raw = data.draw(clusters.pods(0))
    try:
        value = pod(spoilt(raw, data.draw(st.sampled_from(list(places(raw))))))
    except DecodeError:
        return
    assert {len(each) for each in value.ips} <= {4, 16}
    assert all(each.name and 0 < each.number < 65536 for each in value.ports)
