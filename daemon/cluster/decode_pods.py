"""Pods and Namespaces as JSON into values of `model`. Pure; raises DecodeError like `decode`.

Nothing is kept that NetworkPolicy does not need: a node may have to hold every pod of a large cluster. What
many pods share (labels, ports, the names of nodes and namespaces) is held once.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from daemon.cluster.decode import DecodeError, interned, mapping, name, names, protocol, sequence, unicast
from daemon.cluster.model import ContainerPort, Namespace, Pod
from daemon.cluster.selectors import labels

if TYPE_CHECKING:
    from daemon.cluster.selectors import LabelSet

MIRROR_ANNOTATION = "kubernetes.io/config.mirror"
"""On the API object of a static pod: the UID that kubelet gives the pod itself."""

_FINISHED = frozenset({"Succeeded", "Failed"})


def pod(raw: Mapping[str, object]) -> Pod:
    """A v1 Pod.

    Raises:
        DecodeError: it has no namespace, or an address of it can't be understood.
    """
    namespace, own = names(raw)
    metadata, spec, status = (mapping(raw, field) for field in ("metadata", "spec", "status"))
    mirrored = mapping(metadata, "annotations").get(MIRROR_ANNOTATION)
    return Pod(
        namespace=namespace,
        name=own,
        uid=str(mirrored or metadata.get("uid") or ""),
        node=interned(spec.get("nodeName")),
        labels=_labels(metadata),
        ips=_addresses(status),
        ports=_shared(tuple(_ports(spec))),
        host_network=spec.get("hostNetwork") is True,
        finished=status.get("phase") in _FINISHED,
    )


def namespace(raw: Mapping[str, object]) -> Namespace:
    """A v1 Namespace.

    Raises:
        DecodeError: it has no name.
    """
    return Namespace(name(raw), _labels(mapping(raw, "metadata")))


def _labels(metadata: Mapping[str, object]) -> LabelSet:
    pairs = mapping(metadata, "labels")
    return labels({key: value for key, value in pairs.items() if isinstance(value, str)})


def _addresses(status: Mapping[str, object]) -> tuple[bytes, ...]:
    """The first of each family; podIP stands in for podIPs where a server or a fake lacks these."""
    texts = [
        entry.get("ip") for entry in sequence(status, "podIPs") if isinstance(entry, Mapping) and entry
    ] or [status["podIP"] if status.get("podIP") else None]
    found: dict[int, bytes] = {}
    for text in texts:
        if text:
            try:
                address = unicast(text)
            except DecodeError as error:
                raise DecodeError(f"status.podIPs: {error}") from error
            found.setdefault(len(address), address)
    return tuple(found.values())


def _ports(spec: Mapping[str, object]) -> list[ContainerPort]:
    """Ports with names of what serves as long as the pod runs: containers, then sidecars (KEP-753)."""
    containers = [each for each in sequence(spec, "containers") if isinstance(each, Mapping)]
    containers += [
        each
        for each in sequence(spec, "initContainers")
        if isinstance(each, Mapping) and each.get("restartPolicy") == "Always"
    ]
    found: dict[tuple[str, int], ContainerPort] = {}
    for container in containers:
        for entry in sequence(container, "ports"):
            if not isinstance(entry, Mapping) or not (title := interned(entry.get("name"))):
                continue
            number = entry.get("containerPort")
            try:
                kind = protocol(entry.get("protocol"))
            except DecodeError:
                continue
            if type(number) is int and 0 < number < 1 << 16:
                found.setdefault((title, kind), ContainerPort(title, kind, number))
    return list(found.values())


@lru_cache(maxsize=4096)
def _shared(ports: tuple[ContainerPort, ...]) -> tuple[ContainerPort, ...]:
    """The first tuple of all equal ones: pods of one workload have the same ports."""
    return ports
