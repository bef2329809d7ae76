"""Manifests of the Services that the scenarios use, short to write."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tests.scenarios.topology import PORT, PROTOCOLS

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.api.resources import Object


def external(number: int) -> list[str]:
    """One externalIP of each family; two Services with the same number share them."""
    return [f"203.0.113.{number}", f"2001:db8:e::{number:x}"]


def port(protocol: str, number: int = 80, target: int | str = PORT, **more: Any) -> Object:
    """A port of a Service, named for what it is."""
    name = f"{protocol}-{number}"
    return {"name": name, "protocol": protocol.upper(), "port": number, "targetPort": target, **more}


def service(name: str, pods: str = "both", **spec: Any) -> Object:
    """A dual-stack Service for the pods of a set, with port 80 of all protocols unless `spec` has others."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "ipFamilyPolicy": "RequireDualStack",
            "selector": {pods: "yes"},
            "ports": [port(protocol) for protocol in PROTOCOLS],
            **spec,
        },
    }


def affinity(seconds: int) -> dict[str, Any]:
    """Parts of a spec that make clients stay with their backend."""
    return {
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}},
    }


_PLACE = re.compile(r"@([a-z]+(?:-[0-9]+)?)/([46])")


def placed(value: Any, address: Callable[[str, int], str]) -> Any:
    """Return a manifest, or a part of one, with the addresses that it names.

    Args:
        value: any text in it may name addresses as "@NAME/FAMILY": of a pod, of a node, of the one outside.
        address: the address of such a name in a family, as text.
    """
    if isinstance(value, dict):
        return {key: placed(each, address) for key, each in value.items()}
    if isinstance(value, list):
        return [placed(each, address) for each in value]
    if isinstance(value, str):
        return _PLACE.sub(lambda found: address(found[1], int(found[2])), value)
    return value
