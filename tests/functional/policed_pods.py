"""NetworkPolicies of a lab and the pods that they select, as objects of its API server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.functional.lab_cluster import NAMESPACE

if TYPE_CHECKING:
    from tests.functional.lab_cluster import LabCluster


def named(name: str) -> dict[str, Any]:
    """The selector of the pod of that name."""
    return {"matchLabels": {"name": name}}


def pod(name: str, node: str, **labels: str) -> dict[str, Any]:
    """A pod of a node, whose label `name` is its name."""
    metadata = {"name": name, "labels": {"name": name, **labels}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"nodeName": node}}


def policy(lab: LabCluster, name: str, **spec: Any) -> None:
    """Apply a policy that selects the pod "server" unless told otherwise."""
    item = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": {"podSelector": named("server"), **spec},
    }
    lab.call(lambda: lab.cluster.apply(item))


def delete_policies(lab: LabCluster, *names: str) -> None:
    """Delete these policies, all that there are if none is named."""
    storage = lab.cluster.storage
    resource = storage.catalogue.named("networkpolicies")

    def delete() -> None:
        for name in names or [each["metadata"]["name"] for each in storage.list(resource)]:
            storage.delete(resource, NAMESPACE, name)

    lab.call(delete)
