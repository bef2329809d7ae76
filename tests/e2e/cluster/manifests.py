"""Applies manifests as `kubectl apply --server-side` does; takes any kind that the server knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from tests.e2e.cluster.processes import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.e2e.cluster.api import Api, Object


def load(path: Path) -> list[Object]:
    """The objects of a file of YAML documents."""
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def apply(api: Api, objects: Iterable[Object]) -> None:
    """Creates or changes objects, in their order."""
    for each in objects:
        path = f"{path_of(api, each)}?fieldManager=tests&force=true"
        api.request("PATCH", path, each, kind="application/apply-patch+yaml")


def delete(api: Api, objects: Iterable[Object]) -> None:
    """Deletes objects with what they own; those that are not there are no error."""
    for each in objects:
        api.delete(path_of(api, each), propagationPolicy="Background")


def merge(api: Api, path: str, change: Object) -> None:
    """Changes some fields of an object; null removes one."""
    api.request("PATCH", path, change, kind="application/merge-patch+json")


def path_of(api: Api, each: Object) -> str:
    """An object's path, by what the API server says of its kind.

    Raises:
        ClusterError: it serves no such kind.
    """
    version = each["apiVersion"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    for resource in api.get(root)["resources"]:
        if resource["kind"] == each["kind"] and "/" not in resource["name"]:
            namespace = each["metadata"].get("namespace", "default")
            scope = f"/namespaces/{namespace}" if resource["namespaced"] else ""
            return f"{root}{scope}/{resource['name']}/{each['metadata']['name']}"
    raise ClusterError(f"the API server knows no {each['kind']} of {version}")
