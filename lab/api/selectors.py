"""Label and field selectors as the API's query parameters write them. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from lab.errors import ApiError

if TYPE_CHECKING:
    from lab.api.resources import Object

Matcher = Callable[["Object"], bool]

_SET = re.compile(r"^(?P<key>[^\s!=,()]+)\s+(?P<operator>in|notin)\s+\((?P<values>[^)]*)\)$")
_EQUAL = re.compile(r"^(?P<key>[^\s!=,()]+)\s*(?P<operator>==|=|!=)\s*(?P<value>[^\s=,()]*)$")
_EXISTS = re.compile(r"^(?P<absent>!?)\s*(?P<key>[^\s!=,()]+)$")


def matcher(label_selector: str, field_selector: str) -> Matcher:
    """A function that tells whether an object is selected by both; an empty selector selects everything."""
    label_tests = [_label_test(term) for term in _terms(label_selector)]
    field_tests = [_field_test(term) for term in _terms(field_selector)]

    def matches(item: Object) -> bool:
        labels = item.get("metadata", {}).get("labels") or {}
        return all(test(labels) for test in label_tests) and all(test(item) for test in field_tests)

    return matches


def _terms(selector: str) -> list[str]:
    return [term.strip() for term in re.split(r",(?![^(]*\))", selector) if term.strip()]


def _label_test(term: str) -> Callable[[dict[str, str]], bool]:
    if found := _SET.match(term):
        key, values = found["key"], {value.strip() for value in found["values"].split(",")}
        if found["operator"] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if found := _EQUAL.match(term):
        key, value = found["key"], found["value"]
        if found["operator"] == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if found := _EXISTS.match(term):
        key, absent = found["key"], bool(found["absent"])
        return lambda labels: (key in labels) is not absent
    raise ApiError.invalid(f"unable to parse requirement {term!r}")


def _field_test(term: str) -> Matcher:
    found = _EQUAL.match(term)
    if found is None:
        raise ApiError.invalid(f"invalid field selector {term!r}")
    path, value, negated = found["key"].split("."), found["value"], found["operator"] == "!="

    def test(item: Object) -> bool:
        here: object = item
        for step in path:
            here = here.get(step) if isinstance(here, dict) else None
        return (str(here or "") == value) is not negated

    return test
