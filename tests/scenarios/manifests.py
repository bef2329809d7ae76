"""Manifests of the Services that the scenarios use, short to write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.scenarios.topology import PORT, PROTOCOLS

if TYPE_CHECKING:
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
