"""Which EndpointSlices a Service has: its selector, the pods and the nodes' zones, put together. Pure.

As the EndpointSlice controller of Kubernetes 1.34 does it, topology hints (KEP-4444, KEP-3015) included.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import defaultdict
from ipaddress import ip_address
from typing import TYPE_CHECKING

from lab.api.services import NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from lab.api.resources import Object

ZONE = "topology.kubernetes.io/zone"
SERVICE_NAME = "kubernetes.io/service-name"
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
CONTROLLER = "endpointslice-controller.k8s.io"
HEADLESS = "service.kubernetes.io/headless"
MAX_ENDPOINTS = 100
_SAME_ZONE = frozenset({"PreferClose", "PreferSameZone"})
_SAME_NODE = "PreferSameNode"


def selects(service: Object, pod: Object) -> bool:
    """Whether the Service's selector selects the pod; a Service without one selects nothing."""
    selector = service["spec"].get("selector") or {}
    labels = pod["metadata"].get("labels") or {}
    here = service["metadata"]["namespace"] == pod["metadata"]["namespace"]
    return here and bool(selector) and all(labels.get(key) == value for key, value in selector.items())


def has_slices(service: Object) -> bool:
    """Whether the controller makes the Service's slices, rather than whoever made the Service."""
    return bool(service["spec"].get("selector")) and service["spec"].get("type") != "ExternalName"


def slices_of(service: Object, pods: Iterable[Object], zones: Mapping[str, str]) -> list[Object]:
    """The EndpointSlices of a Service, sorted by name.

    Args:
        service: a Service as the API server stores it.
        pods: candidates; those that the selector selects and that have an address count.
        zones: node → zone, for nodes that have one.
    """
    if not has_slices(service):
        return []
    chosen = [pod for pod in pods if selects(service, pod)]
    made = [
        item
        for family in service["spec"]["ipFamilies"]
        for item in _slices_of_family(service, chosen, zones, family)
    ]
    return sorted(made, key=lambda item: str(item["metadata"]["name"]))


def _slices_of_family(
    service: Object, pods: list[Object], zones: Mapping[str, str], family: str
) -> Iterator[Object]:
    """Pods that have the same numbers behind the Service's ports share slices."""
    groups: dict[str, list[Object]] = defaultdict(list)
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["name"])):
        if (address := _address(pod, family)) is not None:
            ports = json.dumps(_ports(service, pod))
            groups[ports].append(_endpoint(service, pod, address, zones))
    for ports, endpoints in sorted(groups.items()) or [("[]", [])]:
        for number, part in enumerate(_parts(endpoints)):
            yield _slice(service, family, json.loads(ports), part, f"{ports} {number}")


def _parts(endpoints: list[Object]) -> Iterator[list[Object]]:
    rest = iter(endpoints)
    yield list(itertools.islice(rest, MAX_ENDPOINTS))
    while part := list(itertools.islice(rest, MAX_ENDPOINTS)):
        yield part


def _slice(service: Object, family: str, ports: list[Object], endpoints: list[Object], part: str) -> Object:
    metadata = service["metadata"]
    distinct = hashlib.sha256(f"{metadata['uid']} {family} {part}".encode()).hexdigest()[:5]
    labels = {**(metadata.get("labels") or {}), SERVICE_NAME: metadata["name"], MANAGED_BY: CONTROLLER}
    if service["spec"].get("clusterIP") == "None":
        labels[HEADLESS] = ""
    owner = {"apiVersion": "v1", "kind": "Service", "name": metadata["name"], "uid": metadata["uid"]}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{metadata['name']}-{distinct}",
            "namespace": metadata["namespace"],
            "labels": labels,
            "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
        },
        "addressType": family,
        "endpoints": endpoints,
        "ports": ports,
    }


def _address(pod: Object, family: str) -> str | None:
    status = pod.get("status", {})
    if status.get("phase") in ("Succeeded", "Failed"):
        return None
    addresses = [str(entry["ip"]) for entry in status.get("podIPs", [])]
    return next((text for text in addresses if NAMES[ip_address(text).version] == family), None)


def _ports(service: Object, pod: Object) -> list[Object]:
    """The Service's ports with the numbers that this pod has behind them; ports it lacks are left out."""
    found = []
    for port in service["spec"].get("ports", []):
        number = port["targetPort"]
        if isinstance(number, str) and not number.isdigit():
            number = _named_port(pod, number, port["protocol"])
        if number is not None:
            entry = {"name": port.get("name", ""), "protocol": port["protocol"], "port": int(number)}
            found.append(entry | ({"appProtocol": port["appProtocol"]} if "appProtocol" in port else {}))
    return found


def _named_port(pod: Object, name: str, protocol: str) -> int | None:
    for container in pod["spec"].get("containers", []):
        for port in container.get("ports", []):
            if port.get("name") == name and port.get("protocol", "TCP") == protocol:
                return int(port["containerPort"])
    return None


def _endpoint(service: Object, pod: Object, address: str, zones: Mapping[str, str]) -> Object:
    metadata, node = pod["metadata"], pod["spec"].get("nodeName", "")
    spec = service["spec"]
    conditions = {entry["type"]: entry["status"] for entry in pod.get("status", {}).get("conditions", [])}
    serving = conditions.get("Ready") == "True" or bool(spec.get("publishNotReadyAddresses"))
    terminating = "deletionTimestamp" in metadata
    ready = (serving and not terminating) or bool(spec.get("publishNotReadyAddresses"))
    endpoint: Object = {
        "addresses": [address],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "targetRef": {
            "kind": "Pod",
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
    }
    if node:
        endpoint["nodeName"] = node
    if zone := zones.get(node):
        endpoint["zone"] = zone
    if hints := _hints(spec.get("trafficDistribution", ""), node, zone or "", ready=ready):
        endpoint["hints"] = hints
    return endpoint


def _hints(distribution: str, node: str, zone: str, *, ready: bool) -> Object:
    """For whom the endpoint is meant: whoever shares its zone, and with PreferSameNode first its node."""
    hints: Object = {}
    if ready and zone and (distribution in _SAME_ZONE or distribution == _SAME_NODE):
        hints["forZones"] = [{"name": zone}]
    if ready and node and distribution == _SAME_NODE:
        hints["forNodes"] = [{"name": node}]
    return hints
