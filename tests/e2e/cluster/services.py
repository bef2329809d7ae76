"""Services of the tests: their objects, and when nodes serve them."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from tests.e2e.cluster.processes import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.e2e.cluster.api import Object
    from tests.e2e.cluster.cluster import Cluster
    from tests.e2e.cluster.node import Node

SERVICES = "/api/v1/namespaces/default/services"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
PORT = 80
"""Of Services; pods serve at 8080."""


def service(name: str, app: str = "", **spec: Any) -> Object:
    """A Service of both families.

    Args:
        name: of the object.
        app: label of the pods behind it; without it somebody else writes its EndpointSlices.
        **spec: further fields, or other ones.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "ipFamilyPolicy": "PreferDualStack",
            "ports": [{"port": PORT, "targetPort": 8080}],
            **({"selector": {"app": app}} if app else {}),
            **spec,
        },
    }


def endpoint_slice(name: str, owner: str, endpoints: Iterable[str], port: int) -> Object:
    """An IPv4 EndpointSlice by hand, of a Service without selector."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": owner}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}} for address in endpoints],
        "ports": [{"port": port, "protocol": "TCP"}],
    }


def create_service(cluster: Cluster, name: str, app: str, *, endpoints: int, **spec: Any) -> Object:
    """Creates a Service, waits until every node serves it with so many endpoints, and returns it."""
    made = cluster.api.create(SERVICES, service(name, app, **spec))
    await_served(cluster, name, endpoints)
    return made


def await_served(cluster: Cluster, name: str, endpoints: int) -> None:
    for node in cluster.nodes.values():
        wait_for(
            f"{node.name} to serve {name} with {endpoints} endpoints",
            lambda node=node: counts(node, name) == {endpoints},  # type: ignore[misc]
            timeout=30,
            state=partial(frontends, node, name),
        )


def frontends(node: Node, name: str) -> list[Object]:
    """What a node says of a Service in the namespace `default`."""
    answer = json.loads(node.weftctl("services", f"default/{name}", "-o", "json", check=False))
    return [frontend for each in answer.get("services", []) for frontend in each.get("frontends", [])]


def counts(node: Node, name: str) -> set[int]:
    """The numbers of endpoints that a Service's frontends have."""
    return {len(each.get("endpoints", [])) for each in frontends(node, name)}


def delete_services(cluster: Cluster) -> None:
    """Deletes all Services of the namespace but that of the API server, and all slices made by hand."""
    for each in cluster.api.items(SERVICES):
        if (name := each["metadata"]["name"]) != "kubernetes":
            cluster.api.delete(f"{SERVICES}/{name}")
    for each in cluster.api.items(SLICES):
        if (name := each["metadata"]["name"]) != "kubernetes":
            cluster.api.delete(f"{SLICES}/{name}")
