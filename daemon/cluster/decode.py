"""API objects as JSON into values of `model`. Pure; raises DecodeError for what can't be understood.

Lenient where Kubernetes is: it stored addresses for years without validating them strictly, so leading zeros,
IPv4-mapped addresses and prefixes with host bits occur (validation.k8s.io: "sloppy" IP and CIDR parsing).
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Mapping

from daemon.cluster.model import Node, Prefix, ServiceCIDR

UNDERLAY_ANNOTATION = "weft.dev/underlay-address"
ZONE_LABEL = "topology.kubernetes.io/zone"
LEAVING_TAINT = "ToBeDeletedByClusterAutoscaler"

MAX_FAULTS = 4
"""So many faults of one object are told."""

_PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
_MAPPED = bytes(10) + b"\xff\xff"


class DecodeError(Exception):
    """An API object can't be understood; the message names field and value."""


def address(text: object) -> bytes:
    """An IP address as 4 or 16 packed bytes; an IPv4-mapped one as IPv4.

    Raises:
        DecodeError: it is none.
    """
    if not isinstance(text, str):
        raise DecodeError(f"{shown(text)} is not an IP address")
    if ":" not in text:
        # Nearly all are written as they should be, and there are hundreds of thousands of them.
        with contextlib.suppress(OSError, ValueError):
            return socket.inet_pton(socket.AF_INET, text)
    plain = text.strip()
    try:
        if ":" in plain:
            packed = socket.inet_pton(socket.AF_INET6, plain)
            return packed[12:] if packed.startswith(_MAPPED) else packed
        # Kubernetes reads 010.1.2.3 as decimal, where C libraries read octal and inet_pton refuses.
        parts = plain.split(".")
        if all(part.isascii() and part.isdigit() for part in parts):
            plain = ".".join([part.lstrip("0") or "0" for part in parts])
        return socket.inet_pton(socket.AF_INET, plain)
    except (OSError, ValueError) as error:
        raise DecodeError(f"{shown(text)} is not an IP address") from error


def unicast(text: object) -> bytes:
    """An IP address as `address` gives it, of something that packets can be sent to.

    Raises:
        DecodeError: it is none, or 0.0.0.0, ::, a loopback or a multicast address.
    """
    packed = address(text)
    any_or_loopback = not any(packed) or packed[0] == 127 if len(packed) == 4 else int.from_bytes(packed) <= 1
    multicast = packed[0] >= 224 if len(packed) == 4 else packed[0] == 255
    if any_or_loopback or multicast:
        raise DecodeError(f"{shown(text)} is not an address that anything can be reached at")
    return packed


def prefix(text: object, *, shortest: int = 1) -> Prefix:
    """A CIDR as a Prefix, host bits cleared.

    Raises:
        DecodeError: it is none, or shorter than `shortest`.
    """
    if not isinstance(text, str):
        raise DecodeError(f"{shown(text)} is not a CIDR")
    start, slash, digits = text.strip().partition("/")
    if not slash or not digits.isascii() or not digits.isdigit():
        raise DecodeError(f"{shown(text)} is not a CIDR")
    try:
        packed = address(start)
    except DecodeError as error:
        raise DecodeError(f"{shown(text)} is not a CIDR") from error
    length = int(digits[:4])
    if ":" in start and len(packed) == 4:
        length -= 96
    bits = 8 * len(packed)
    if not shortest <= length <= bits:
        raise DecodeError(f"{shown(text)} is not a usable CIDR: its length must be {shortest} to {bits}")
    value = int.from_bytes(packed, "big") >> (bits - length) << (bits - length)
    return Prefix(value.to_bytes(len(packed), "big"), length)


def node(raw: Mapping[str, object]) -> Node:
    """A v1 Node.

    A node without podCIDRs or addresses is valid: it has not been given them yet.

    Raises:
        DecodeError: a field that the network depends on can't be understood.
    """
    metadata, spec, status = (mapping(raw, field) for field in ("metadata", "spec", "status"))
    cidrs = sequence(spec, "podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
    return Node(
        name=name(raw),
        uid=str(metadata.get("uid") or ""),
        internal_ips=_internal_ips(status),
        pod_cidrs=_each("spec.podCIDRs", cidrs),
        underlay=_underlay(metadata),
        max_pods=_count(mapping(status, "capacity").get("pods")),
        network_unavailable=any(
            isinstance(condition, Mapping)
            and condition.get("type") == "NetworkUnavailable"
            and condition.get("status") == "True"
            for condition in sequence(status, "conditions")
        ),
        zone=interned(mapping(metadata, "labels").get(ZONE_LABEL)),
        leaving=bool(metadata.get("deletionTimestamp"))
        or any(
            isinstance(taint, Mapping) and taint.get("key") == LEAVING_TAINT
            for taint in sequence(spec, "taints")
        ),
    )


def service_cidr(raw: Mapping[str, object]) -> ServiceCIDR:
    """A networking.k8s.io ServiceCIDR.

    Raises:
        DecodeError: a CIDR of it can't be understood.
    """
    return ServiceCIDR(name(raw), _each("spec.cidrs", sequence(mapping(raw, "spec"), "cidrs")))


def name(raw: Mapping[str, object]) -> str:
    """The object's name, as NAMESPACE/NAME where it has a namespace.

    Raises:
        DecodeError: it has no name.
    """
    metadata = mapping(raw, "metadata")
    own = metadata.get("name")
    if not isinstance(own, str) or not own:
        raise DecodeError("metadata.name is missing")
    namespace = metadata.get("namespace")
    return f"{namespace}/{own}" if namespace and isinstance(namespace, str) else own


def names(raw: Mapping[str, object]) -> tuple[str, str]:
    """The namespace of an object that has to have one, and its name in there.

    Raises:
        DecodeError: one of them is missing.
    """
    namespace, slash, own = name(raw).partition("/")
    if not slash or not own:
        raise DecodeError("metadata.namespace is missing")
    return sys.intern(namespace), own


def protocol(value: object) -> int:
    """The number of a transport protocol's name; TCP where there is none.

    Raises:
        DecodeError: it is none that Kubernetes knows.
    """
    if value is None or value == "":
        return _PROTOCOLS["TCP"]
    number = _PROTOCOLS.get(value) if isinstance(value, str) else None
    if number is None:
        raise DecodeError(f"protocol {shown(value)} is none of TCP, UDP and SCTP")
    return number


def _internal_ips(status: Mapping[str, object]) -> tuple[bytes, ...]:
    result: list[bytes] = []
    for entry in sequence(status, "addresses"):
        if not isinstance(entry, Mapping) or entry.get("type") != "InternalIP":
            continue
        try:
            packed = unicast(entry.get("address"))
        except DecodeError as error:
            raise DecodeError(f"status.addresses: InternalIP {error}") from error
        if all(len(packed) != len(known) for known in result):
            result.append(packed)
    return tuple(result)


def _underlay(metadata: Mapping[str, object]) -> tuple[bytes, ...]:
    text = mapping(metadata, "annotations").get(UNDERLAY_ANNOTATION)
    if not isinstance(text, str) or not text.strip():
        return ()
    try:
        addresses = tuple(unicast(part) for part in text.split(","))
    except DecodeError as error:
        raise DecodeError(f"annotation {UNDERLAY_ANNOTATION}: {error}") from error
    if len({len(packed) for packed in addresses}) != len(addresses):
        raise DecodeError(f"annotation {UNDERLAY_ANNOTATION}: {shown(text)} has two addresses of one family")
    return addresses


def _each(field: str, values: list[object]) -> tuple[Prefix, ...]:
    try:
        return tuple(dict.fromkeys(prefix(value) for value in values))
    except DecodeError as error:
        raise DecodeError(f"{field}: {error}") from error


def _count(quantity: object) -> int:
    text = str(quantity)
    return int(text[:9]) if text.isascii() and text.isdigit() else 0


def mapping(raw: Mapping[str, object], field: str) -> Mapping[str, object]:
    """The object in a field; an empty one where there is none."""
    value = raw.get(field)
    return value if isinstance(value, Mapping) else {}


def sequence(raw: Mapping[str, object], field: str) -> list[object]:
    """The list in a field; an empty one where there is none."""
    value = raw.get(field)
    return value if isinstance(value, list) else []


def interned(value: object) -> str:
    """A text that many objects share, held once; "" where it is none."""
    return sys.intern(value) if type(value) is str else ""


def shown(value: object) -> str:
    """A value as messages quote it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
