"""What the kinds of PATCH do to an object: JSON merge (RFC 7386), JSON patch (RFC 6902), strategic merge.

Pure: the given object is not changed. Strategic merge knows the merge keys of the lists that nodes' and
pods' statuses and specs are made of, not those of the whole API.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from lab.errors import ApiError

if TYPE_CHECKING:
    from lab.api.resources import Object

_MERGE_KEYS = {
    "addresses": "type",
    "conditions": "type",
    "containers": "name",
    "containerStatuses": "name",
    "env": "name",
    "ownerReferences": "uid",
    "podIPs": "ip",
    "taints": "key",
    "volumes": "name",
}
_MERGED_VALUES = frozenset({"finalizers", "podCIDRs"})


def merge(target: Any, patch: Any) -> Any:
    """JSON merge patch: null deletes, mappings merge, everything else replaces."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def strategic(target: Any, patch: Any, field: str = "") -> Any:
    """Strategic merge patch: as `merge`, but lists with a merge key are merged by it."""
    if isinstance(patch, dict):
        if patch.get("$patch") == "replace":
            return {key: copy.deepcopy(value) for key, value in patch.items() if key != "$patch"}
        merged = dict(target) if isinstance(target, dict) else {}
        for key, value in patch.items():
            if value is None:
                merged.pop(key, None)
            elif not key.startswith("$"):
                merged[key] = strategic(merged.get(key), value, key)
        return merged
    if isinstance(patch, list) and isinstance(target, list):
        if field in _MERGE_KEYS:
            return _merge_lists(target, patch, _MERGE_KEYS[field])
        if field in _MERGED_VALUES:
            return [*target, *(value for value in patch if value not in target)]
    return copy.deepcopy(patch)


def _merge_lists(target: list[Object], patch: list[Object], key: str) -> list[Object]:
    if any(entry.get("$patch") == "replace" for entry in patch):
        return [copy.deepcopy(entry) for entry in patch if "$patch" not in entry]
    merged = {entry.get(key): entry for entry in target}
    for entry in patch:
        if entry.get("$patch") == "delete":
            merged.pop(entry.get(key), None)
        else:
            merged[entry.get(key)] = strategic(merged.get(entry.get(key)), entry)
    return list(merged.values())


def json_patch(target: Object, operations: list[Object]) -> Object:
    """JSON patch: add, remove, replace, test, applied in order or not at all."""
    document: Any = copy.deepcopy(target)
    for operation in operations:
        steps = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
        if not steps:
            document = copy.deepcopy(operation["value"])
            continue
        try:
            parent = document
            for step in steps[:-1]:
                parent = parent[int(step)] if isinstance(parent, list) else parent[step]
            _operate(parent, steps[-1], operation)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            path = operation.get("path")
            raise ApiError(422, "Invalid", f"JSON patch cannot be applied at {path!r}: {error!r}") from error
    if not isinstance(document, dict):
        raise ApiError(422, "Invalid", "JSON patch leaves no object")
    return document


def _operate(parent: Any, step: str, operation: Object) -> None:
    verb, value = operation["op"], copy.deepcopy(operation.get("value"))
    position: Any = step
    if isinstance(parent, list):
        position = len(parent) if step == "-" else int(step)
    if verb == "add" and isinstance(parent, list):
        parent.insert(position, value)
    elif verb == "add":
        parent[position] = value
    elif verb == "replace":
        parent[position] = (parent[position], value)[1]
    elif verb == "remove":
        del parent[position]
    elif verb != "test":
        raise ValueError(f"operation {verb!r} is not supported")
    elif parent[position] != value:
        raise ValueError("test failed")
