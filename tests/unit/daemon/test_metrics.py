"""The metrics' names are an interface: well-formed, of our own, and independent between instances."""

from __future__ import annotations

import re

from prometheus_client.exposition import generate_latest

from daemon.metrics import Metrics


def test_names_follow_the_conventions() -> None:
    metrics = Metrics()
    for family in metrics.registry.collect():
        if family.name.startswith(("process_", "python_")):
            continue
        assert re.fullmatch(r"(weft|kubeproxy)_[a-z0-9_]+", family.name), family.name
        assert family.documentation.endswith("."), family.name
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


def test_instances_share_nothing() -> None:
    first, second = Metrics(), Metrics()
    first.attachments.set(7)
    assert second.registry.get_sample_value("weft_attachments") == 0
    assert b"weft_attachments 7.0" in generate_latest(first.registry)
