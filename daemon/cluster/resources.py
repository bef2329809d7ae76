"""The kinds of objects that NetworkPolicy follows, as the API server is asked for them.

This node's pods are always followed: they are few. All others are a kind of their own, disjoint from them, so
that both can be kept side by side, and a node where no policy is in force need not know them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.cluster.decode_pods import namespace, pod
from daemon.cluster.decode_policies import network_policy
from daemon.cluster.reflector import Resource

if TYPE_CHECKING:
    from daemon.cluster.model import Namespace, NetworkPolicy, Pod

NAMESPACES: Resource[Namespace] = Resource("/api/v1/namespaces", namespace)
NETWORK_POLICIES: Resource[NetworkPolicy] = Resource(
    "/apis/networking.k8s.io/v1/networkpolicies", network_policy
)

_PODS = "/api/v1/pods"


def pods_on(node: str) -> Resource[Pod]:
    """Return the pods of one node."""
    return Resource(_PODS, pod, fields=f"spec.nodeName={node}")


def pods_beyond(node: str) -> Resource[Pod]:
    """Return the pods of all other nodes that run or will: one that ends is gone for who follows these."""
    return Resource(
        _PODS,
        pod,
        fields=f"spec.nodeName!={node},spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed",
    )
