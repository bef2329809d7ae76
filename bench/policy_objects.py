"""A large cluster's pods, namespaces and NetworkPolicies to measure with, as the API has them: numbered.

The first hundred pods are on the node that is measured, one in each namespace. All others are elsewhere, in
workloads of five replicas that share all labels. A policy isolates all pods of its namespace, and lets in one
workload by number and by name of a port.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Peer = Callable[[int], Any]

NODE = "here"
NAMESPACES = RESIDENTS = 100
REPLICAS = 5
NAME = "app.kubernetes.io/name"
"""The label by which policies know workloads."""
PORT = 8080


def space(number: int) -> str:
    """Return the name of the namespace that a policy or a pod of this node with a number is in."""
    return f"space-{number % NAMESPACES}"


def namespace(number: int) -> dict[str, Any]:
    """Return a Namespace; ten share a label."""
    return {"metadata": {"name": space(number), "labels": {"team": f"t{number % 10}"}}}


def pod(number: int, app: str = "") -> dict[str, Any]:
    """Return a pod; its workload is w0, w1 and so on of its namespace unless `app` says otherwise."""
    here = number < RESIDENTS
    workload = number if here else (number - RESIDENTS) // REPLICAS
    own = app or ("resident" if here else f"w{workload // NAMESPACES}")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": space(workload),
            "name": f"{'resident' if here else 'workload'}-{workload:08x}-{number * 7919 % 65536:05x}",
            "uid": f"3f2b8c1e-0000-4000-8000-{number:012x}",
            "labels": {
                NAME: own,
                "app.kubernetes.io/instance": own,
                "pod-template-hash": f"{workload * 7919 % (1 << 32):08x}",
            },
        },
        "spec": {
            "nodeName": NODE if here else f"node-{number % 99}",
            "containers": [{"ports": [{"name": "http", "containerPort": PORT}]}],
        },
        "status": {
            "phase": "Running",
            "podIPs": [
                {"ip": f"10.{number >> 14}.{number >> 7 & 127}.{number & 127}"},
                {"ip": f"fd00::{number >> 12:x}:{number & 4095:x}:1"},
            ],
        },
    }


def policy(number: int, peer: Peer, name: str = "policy") -> dict[str, Any]:
    """Return a policy of the namespace with its number."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": space(number), "name": f"{name}-{number:05}"},
        "spec": {
            "podSelector": {},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [peer(number)], "ports": [{"port": PORT}, {"port": "http"}]}],
        },
    }


def inside(number: int) -> Any:
    """Return a peer: one workload of the policy's namespace."""
    return {"podSelector": {"matchLabels": {NAME: f"w{number // NAMESPACES % 20}"}}}


def everywhere(number: int) -> Any:
    """Return a peer: one workload of all namespaces, so written that no two policies can share it."""
    either = [f"w{number % 20}", f"absent-{number}"]
    one_of = {"key": NAME, "operator": "In", "values": either}
    return {"namespaceSelector": {}, "podSelector": {"matchExpressions": [one_of]}}
