"""Findings hold until cleared; listeners hear of changes alone."""

from __future__ import annotations

import time

import structlog

from daemon.findings import Finding, Findings


def heard(findings: Findings) -> list[tuple[str, str, bool]]:
    changes: list[tuple[str, str, bool]] = []
    findings.listen(lambda finding, holds: changes.append((finding.name, finding.key, holds)))
    return changes


def test_a_finding_is_told_once_and_once_more_when_it_changes() -> None:
    findings = Findings()
    changes = heard(findings)
    for _ in range(3):
        findings.report("Name", "warning", "text")
    findings.report("Name", "error", "text")
    findings.report("Name", "error", "other text")
    findings.clear("Name")
    findings.clear("Name")
    assert changes == [("Name", "", True)] * 3 + [("Name", "", False)]
    assert findings.rows() == ()


def test_a_late_listener_hears_what_holds() -> None:
    findings = Findings()
    findings.report("Name", "warning", "text", key="a")
    assert heard(findings) == [("Name", "a", True)]


def test_rows_come_errors_first_then_by_name_and_key() -> None:
    findings = Findings()
    findings.report("B", "warning", "text", key="2")
    findings.report("B", "warning", "text", key="1")
    findings.report("C", "ok", "text")
    findings.report("A", "warning", "text")
    findings.report("Z", "error", "text")
    assert [(row.name, row.key) for row in findings.rows()] == [
        ("Z", ""),
        ("A", ""),
        ("B", "1"),
        ("B", "2"),
        ("C", ""),
    ]


def test_replacing_clears_what_no_longer_holds_under_these_names_only() -> None:
    findings = Findings()
    findings.report("A", "warning", "text", key="old")
    findings.report("A", "warning", "text", key="kept")
    findings.report("B", "warning", "text")
    findings.report("Other", "warning", "text")
    changes = heard(findings)
    changes.clear()
    findings.replace(
        {"A", "B"}, [Finding("A", "warning", "text", "kept"), Finding("A", "error", "new", "new")]
    )
    assert sorted(changes) == [("A", "new", True), ("A", "old", False), ("B", "", False)]
    assert [(row.name, row.key) for row in findings.rows()] == [("A", "new"), ("A", "kept"), ("Other", "")]


def test_counts_follow_every_change() -> None:
    findings = Findings()
    findings.report("A", "warning", "text", key="1")
    findings.report("A", "warning", "text", key="2")
    findings.report("A", "warning", "other text", key="2")
    assert (findings.count("A", "warning"), findings.count("A", "error")) == (2, 0)
    findings.report("A", "error", "text", key="2")
    assert (findings.count("A", "warning"), findings.count("A", "error")) == (1, 1)
    findings.clear("A", key="1")
    findings.clear("A", key="1")
    assert (findings.count("A", "warning"), findings.count("B", "ok")) == (0, 0)


def test_thousands_of_findings_cost_no_more_than_their_number() -> None:
    findings = Findings()
    counted: list[int] = []
    findings.listen(lambda finding, _: counted.append(findings.count(finding.name, "error")))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    start = time.perf_counter()
    findings.replace({"A"}, [Finding("A", "error", "text", str(number)) for number in range(5000)])
    findings.replace({"A"}, [])
    structlog.reset_defaults()
    assert counted == [*range(1, 5001), *range(4999, -1, -1)]
    assert time.perf_counter() - start < 2
