"""Services and EndpointSlices as JSON into values of `model`. Pure; raises DecodeError like `decode`.

What can't be understood of an object is left out and named in the value's `faults` as long as the rest
serves: a bad externalIP must not take a service's ClusterIP away. What restricts access is the exception:
without one of its loadBalancerSourceRanges a service might admit everybody, so it is not used at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

from daemon.cluster.decode import (
    MAX_FAULTS,
    DecodeError,
    interned,
    mapping,
    names,
    prefix,
    protocol,
    sequence,
    shown,
    unicast,
)
from daemon.cluster.model import Endpoint, EndpointPort, EndpointSlice, Service, ServicePort

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from daemon.cluster.model import Prefix

SERVICE_LABEL = "kubernetes.io/service-name"
TRIGGER_ANNOTATION = "endpoints.kubernetes.io/last-change-trigger-time"

SELECTOR = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name"
"""Label selector of the objects that are for the cluster's usual proxy."""
SLICE_SELECTOR = f"{SERVICE_LABEL},{SELECTOR}"

DEFAULT_AFFINITY_SECONDS = 10800
MAX_AFFINITY_SECONDS = 86400

_FAMILIES = {"IPv4": 4, "IPv6": 6}
_WIDTHS = {4: 4, 6: 16, 0: 0}

Part = TypeVar("Part")


def service(raw: Mapping[str, object]) -> Service:
    """A v1 Service.

    Raises:
        DecodeError: no ClusterIP or not all loadBalancerSourceRanges can be understood.
    """
    namespace, own = names(raw)
    metadata, spec = mapping(raw, "metadata"), mapping(raw, "spec")
    uid, created = str(metadata.get("uid") or ""), interned(metadata.get("creationTimestamp"))
    kind = interned(spec.get("type")) or "ClusterIP"
    texts = sequence(spec, "clusterIPs") or [spec.get("clusterIP")]
    if kind == "ExternalName" or texts[0] in (None, "", "None"):
        return Service(namespace, own, uid, created, kind)
    faults: list[str] = []
    cluster_ips = _each("spec.clusterIPs", texts, unicast, faults)
    if not cluster_ips:
        raise DecodeError(faults[0])
    balanced, ported = kind == "LoadBalancer", kind in {"LoadBalancer", "NodePort"}
    status = mapping(mapping(raw, "status"), "loadBalancer") if balanced else {}
    ingress = [
        entry["ip"]
        for entry in sequence(status, "ingress")
        if isinstance(entry, Mapping) and entry.get("ip") and entry.get("ipMode") != "Proxy"
    ]
    return Service(
        namespace=namespace,
        name=own,
        uid=uid,
        created=created,
        type=kind,
        cluster_ips=_first_of_each_family(cluster_ips),
        external_ips=_each("spec.externalIPs", sequence(spec, "externalIPs"), unicast, faults),
        load_balancer_ips=_each("status.loadBalancer.ingress", ingress, unicast, faults),
        ports=_each("spec.ports", sequence(spec, "ports"), _PORTS[ported], faults),
        external_local=spec.get("externalTrafficPolicy") == "Local",
        internal_local=spec.get("internalTrafficPolicy") == "Local",
        affinity_seconds=_affinity(spec),
        source_ranges=_ranges(sequence(spec, "loadBalancerSourceRanges")) if balanced else (),
        health_check_node_port=_number(spec.get("healthCheckNodePort")) if balanced else 0,
        faults=tuple(faults[:MAX_FAULTS]),
    )


def endpoint_slice(raw: Mapping[str, object]) -> EndpointSlice:
    """A discovery.k8s.io/v1 EndpointSlice of a Service.

    Raises:
        DecodeError: it names no Service, or its addressType is none that Kubernetes knows.
    """
    namespace, own = names(raw)
    metadata = mapping(raw, "metadata")
    owner = mapping(metadata, "labels").get(SERVICE_LABEL)
    if not isinstance(owner, str) or not owner:
        raise DecodeError(f"label {SERVICE_LABEL} is missing")
    kind = raw.get("addressType")
    family = _FAMILIES.get(kind, 0) if isinstance(kind, str) else 0
    if not family and kind != "FQDN":
        raise DecodeError(f"addressType {shown(kind)} is none of IPv4, IPv6 and FQDN")
    width = _WIDTHS[family]
    faults: list[str] = []
    endpoints: list[Endpoint] = []
    for entry in sequence(raw, "endpoints") if width else ():
        if not isinstance(entry, Mapping) or not (addresses := sequence(entry, "addresses")):
            continue
        try:
            # More than one address of one endpoint never had a meaning (EndpointSlice.endpoints.addresses).
            packed = unicast(addresses[0])
        except DecodeError as error:
            faults.append(f"endpoints: {error}")
            continue
        if len(packed) != width:
            faults.append(f"endpoints: {shown(addresses[0])} is not {kind}")
            continue
        endpoints.append(_endpoint(packed, entry))
    ports = [_endpoint_port(entry, faults) for entry in sequence(raw, "ports")]
    return EndpointSlice(
        namespace=namespace,
        name=own,
        service=owner,
        family=family,
        endpoints=tuple(endpoints),
        ports=tuple([port for port in ports if port is not None]),
        faults=tuple(faults[:MAX_FAULTS]),
        triggered=_time(mapping(metadata, "annotations").get(TRIGGER_ANNOTATION)),
    )


def _each(
    field: str, values: Iterable[object], decode: Callable[[object], Part], faults: list[str]
) -> tuple[Part, ...]:
    """What can be understood of a list, without repetition; the rest becomes faults."""
    result: dict[Part, None] = {}
    for value in values:
        try:
            result[decode(value)] = None
        except DecodeError as error:
            faults.append(f"{field}: {error}")
    return tuple(result)


def _first_of_each_family(addresses: tuple[bytes, ...]) -> tuple[bytes, ...]:
    first: dict[int, bytes] = {}
    for each in addresses:
        first.setdefault(len(each), each)
    return tuple(first.values())


def _port(value: object) -> ServicePort:
    entry = value if isinstance(value, Mapping) else {}
    number = _number(entry.get("port"))
    if not number:
        raise DecodeError(f"port {shown(entry.get('port'))} is not a number from 1 to 65535")
    return ServicePort(
        interned(entry.get("name")), protocol(entry.get("protocol")), number, _number(entry.get("nodePort"))
    )


def _port_without_node(value: object) -> ServicePort:
    """A port of a type without node ports: a number may have stayed behind when the type changed."""
    return _port(value)._replace(node_port=0)


_PORTS = {True: _port, False: _port_without_node}


def _endpoint(address: bytes, entry: Mapping[object, object]) -> Endpoint:
    """Absent conditions mean: ready, serving, not terminating (EndpointConditions)."""
    ready, serving, terminating = True, True, False
    conditions = entry.get("conditions")
    if isinstance(conditions, Mapping):
        ready, serving = conditions.get("ready") is not False, conditions.get("serving") is not False
        terminating = conditions.get("terminating") is True
    zones = nodes = ()  # type: tuple[str, ...]
    hints = entry.get("hints")
    if isinstance(hints, Mapping):
        zones, nodes = _hints(hints.get("forZones")), _hints(hints.get("forNodes"))
    return Endpoint(address, ready, serving, terminating, interned(entry.get("nodeName")), zones, nodes)


def _hints(entries: object) -> tuple[str, ...]:
    if not isinstance(entries, list):
        return ()
    names = [interned(entry.get("name")) for entry in entries if isinstance(entry, Mapping)]
    return tuple([each for each in names if each])


def _endpoint_port(value: object, faults: list[str]) -> EndpointPort | None:
    """A port of a slice; None for one without a number (any port, which a proxy can't use)."""
    entry = value if isinstance(value, Mapping) else {}
    number = _number(entry.get("port"))
    if not number:
        return None
    try:
        return EndpointPort(interned(entry.get("name")), protocol(entry.get("protocol")), number)
    except DecodeError as error:
        faults.append(f"ports: {error}")
        return None


def _number(value: object) -> int:
    """A port number; 0 for what is none."""
    return value if type(value) is int and 0 < value < 1 << 16 else 0


def _affinity(spec: Mapping[str, object]) -> int:
    if spec.get("sessionAffinity") != "ClientIP":
        return 0
    seconds = mapping(mapping(spec, "sessionAffinityConfig"), "clientIP").get("timeoutSeconds")
    if type(seconds) is int and 0 < seconds <= MAX_AFFINITY_SECONDS:
        return seconds
    return DEFAULT_AFFINITY_SECONDS


def _ranges(texts: list[object]) -> tuple[Prefix, ...]:
    try:
        return tuple(dict.fromkeys(prefix(text, shortest=0) for text in texts))
    except DecodeError as error:
        raise DecodeError(f"spec.loadBalancerSourceRanges: {error}") from error


def _time(text: object) -> float:
    if isinstance(text, str):
        with contextlib.suppress(ValueError, OverflowError):
            moment = datetime.fromisoformat(text)
            if moment.tzinfo is not None:
                return moment.timestamp()
    return 0.0
