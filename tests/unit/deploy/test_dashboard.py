"""The dashboard asks for metrics and labels that there are."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from daemon.metrics import Metrics
from deploy.render import DEPLOY

DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "dashboards" / "weft.json").read_text())
SCRAPED = {"instance", "job"}
"""Labels that Prometheus adds."""


def series() -> dict[str, set[str]]:
    """Names as they are stored, each with its labels."""
    found: dict[str, set[str]] = {}
    registry = Metrics().registry
    collectors = registry._collector_to_names
    for collector, names in collectors.items():
        labels = set(getattr(collector, "_labelnames", ()))
        for name in names:
            found[name] = labels | ({"le"} if name.endswith("_bucket") else set())
    # Those of the process are named when they are read only.
    return found | {each.name: set() for each in registry.collect() if each.name.startswith("process_")}


SERIES = series()
EXPRESSIONS = [
    pytest.param(target["expr"], id=f"{panel['title']}-{target['refId']}")
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_expression_is_of_our_metrics(expression: str) -> None:
    names = re.findall(r"\b(?:weft|process)_\w+", expression)
    assert names
    for name in names:
        assert name in SERIES, f"no metric is named {name}"
    known = SCRAPED.union(*(SERIES[name] for name in names))
    used = {
        label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")
    }
    used |= set(re.findall(r"(\w+)(?:=~|!~|!=|=)\"", expression))
    assert used <= known, f"no such label: {used - known}"
    assert expression.count("(") == expression.count(")")


def test_panels_do_not_overlap_and_are_named() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        own = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not own & cells, panel["title"]
        assert max(x for x, _ in own) < 24
        cells |= own
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert len(set(titles)) == len(titles)
