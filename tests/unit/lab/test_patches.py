from typing import Any

import pytest

from lab.api import patches
from lab.errors import ApiError

NODE: dict[str, Any] = {
    "spec": {"podCIDRs": ["10.244.0.0/24"], "unschedulable": True},
    "status": {
        "conditions": [{"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "False"}]
    },
}


def test_merge_patch_deletes_by_null_and_replaces_lists() -> None:
    merged = patches.merge(NODE, {"spec": {"unschedulable": None, "podCIDRs": []}})
    assert merged["spec"] == {"podCIDRs": []}
    assert NODE["spec"]["unschedulable"] is True


def test_strategic_merge_patch_merges_conditions_by_type() -> None:
    condition = {"type": "NetworkUnavailable", "status": "False"}
    merged = patches.strategic(
        NODE, {"status": {"conditions": [condition, {"type": "Ready", "status": "False"}]}}
    )
    conditions = {entry["type"]: entry["status"] for entry in merged["status"]["conditions"]}
    assert conditions == {"Ready": "False", "DiskPressure": "False", "NetworkUnavailable": "False"}


def test_strategic_merge_patch_deletes_a_list_entry() -> None:
    merged = patches.strategic(NODE, {"status": {"conditions": [{"type": "Ready", "$patch": "delete"}]}})
    assert [entry["type"] for entry in merged["status"]["conditions"]] == ["DiskPressure"]


def test_strategic_merge_patch_replaces_lists_without_merge_key() -> None:
    assert patches.strategic({"args": [1, 2]}, {"args": [3]}) == {"args": [3]}


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ({"op": "add", "path": "/a/1", "value": 9}, {"a": [1, 9, 2], "b/c": 1}),
        ({"op": "add", "path": "/a/-", "value": 9}, {"a": [1, 2, 9], "b/c": 1}),
        ({"op": "remove", "path": "/a/0"}, {"a": [2], "b/c": 1}),
        ({"op": "replace", "path": "/b~1c", "value": 2}, {"a": [1, 2], "b/c": 2}),
        ({"op": "test", "path": "/b~1c", "value": 1}, {"a": [1, 2], "b/c": 1}),
    ],
)
def test_json_patch(operation: dict[str, object], expected: dict[str, object]) -> None:
    assert patches.json_patch({"a": [1, 2], "b/c": 1}, [operation]) == expected


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/a", "value": 2},
        {"op": "remove", "path": "/missing"},
        {"op": "replace", "path": "/missing", "value": 1},
        {"op": "add", "path": "/a/b/c", "value": 1},
        {"op": "copy", "path": "/a"},
    ],
)
def test_json_patch_that_cannot_be_applied(operation: dict[str, object]) -> None:
    with pytest.raises(ApiError) as caught:
        patches.json_patch({"a": 1}, [operation])
    assert caught.value.code == 422
