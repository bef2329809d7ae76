"""Manifests: reading files of many documents, URLs of objects, the pods of the demo."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lab.errors import LabError

if TYPE_CHECKING:
    from lab.api.resources import Catalogue, Object, Resource


def read(file: str) -> list[Object]:
    """All objects of a file, "-" for standard input; a List stands for its items."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        documents = [document for document in yaml.safe_load_all(text) if document]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LabError(f"cannot read {file}: {error}") from error
    items: list[Object] = []
    for document in documents:
        if not isinstance(document, dict) or "kind" not in document or "apiVersion" not in document:
            raise LabError(f"{file}: each document needs apiVersion and kind")
        items += document["items"] if document["kind"] == "List" else [document]
    return items


def collection_url(resource: Resource, namespace: str) -> str:
    """The URL of all objects of a kind, in one namespace where one is given."""
    root = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
    scope = f"/namespaces/{namespace}" if resource.namespaced and namespace else ""
    return f"{root}{scope}/{resource.plural}"


def object_url(item: Object, namespace: str, catalogue: Catalogue) -> str:
    """The URL of an object; `namespace` is taken where the object names none."""
    resource = catalogue.of(item)
    metadata = item.get("metadata", {})
    return f"{collection_url(resource, metadata.get('namespace', namespace))}/{metadata.get('name', '')}"


def demo_pods(nodes: list[str], pods_per_node: int) -> list[dict[str, Any]]:
    """Pods named after their node: node-1 runs pod-1a, pod-1b, ..."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"pod-{number}{'abcdefghij'[index]}", "labels": {"app": "demo"}},
            "spec": {"nodeName": node, "containers": [{"name": "echo", "image": "echo"}]},
        }
        for number, node in enumerate(nodes, 1)
        for index in range(pods_per_node)
    ]
