"""Services and EndpointSlices to measure with, as the API has them: numbered, each with its own endpoints."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

ENDPOINTS = 5
PORT, TARGET_PORT = 80, 8080
NAMESPACE = "default"
SERVICE_CIDR = "10.96.0.0/14"
"""Room for 30,000 Services and more."""
_CLUSTER_IPS = int(IPv4Address("10.96.1.0"))
_ENDPOINTS = int(IPv4Address("10.128.0.1"))
"""The endpoints' addresses count from here, below 10.192.0.0/10."""
_NODES = 50


def name_of(number: int) -> str:
    """Return the name of the Service with a number."""
    return f"service-{number}"


def cluster_ip(number: int) -> str:
    """Return the ClusterIP of the Service with a number; the higher the number, the higher the address."""
    return str(IPv4Address(_CLUSTER_IPS + number))


def endpoint(number: int) -> str:
    """Return an endpoint's address; those of Service N begin with number N * ENDPOINTS."""
    return str(IPv4Address(_ENDPOINTS + number))


def endpoints_of(number: int, count: int = ENDPOINTS, replaced: int = 0) -> list[str]:
    """Return the addresses of a Service's endpoints.

    Args:
        number: of the Service.
        count: how many there are.
        replaced: how often one of the pods was replaced: its address is another each time.
    """
    addresses = [endpoint(number * ENDPOINTS + place) for place in range(count)]
    if replaced:
        addresses[replaced % count] = str(IPv4Address(int(IPv4Address("10.192.0.0")) + replaced))
    return addresses


def service(number: int) -> dict[str, Any]:
    """Return a Service of type ClusterIP without selector, so that its slices are ours to write."""
    port = {"name": "http", "port": PORT, "protocol": "TCP", "targetPort": TARGET_PORT}
    address = cluster_ip(number)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name_of(number),
            "namespace": NAMESPACE,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ports": [port]},
    }


def endpoint_slice(number: int, addresses: Iterable[str]) -> dict[str, Any]:
    """Return the one EndpointSlice of a Service; its pods are ready and on other nodes."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name_of(number)}-0",
            "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": name_of(number)},
        },
        "addressType": "IPv4",
        "endpoints": [
            {
                "addresses": [address],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": f"elsewhere-{place % _NODES}",
            }
            for place, address in enumerate(addresses, number)
        ],
        "ports": [{"name": "http", "port": TARGET_PORT, "protocol": "TCP"}],
    }
