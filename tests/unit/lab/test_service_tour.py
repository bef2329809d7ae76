from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from lab.service_tour import Question, judge, manifests, questions
from lab.tables import tour

ONE = Question("pod-1a", "sticky, affinity", "fd96::2", 80, one=True)
MANY = Question("pod-1a", "web, ClusterIP", "10.96.0.1", 80)


def answers(*names: str) -> list[dict[str, str]]:
    return [{"name": name, "source": "10.244.0.2", "fault": "" if name else "no answer"} for name in names]


@pytest.mark.parametrize(
    ("question", "names", "fault"),
    [
        (ONE, ("a", "a"), ""),
        (ONE, ("a", "b"), "answered by several pods, must be one"),
        (MANY, ("a", "b", "a"), ""),
        (MANY, ("a", "a"), "answered by one pod only, must be several"),
        (MANY, ("a", "", "b"), "no answer"),
    ],
)
def test_answers_are_judged(question: Question, names: tuple[str, ...], fault: str) -> None:
    reply = judge(question, answers(*names))
    assert reply.fault == fault
    assert set(reply.pods) == set(names) - {""}


def test_everybody_asks_both_families() -> None:
    def service(*ips: str, **port: Any) -> dict[str, Any]:
        return {"spec": {"clusterIPs": list(ips), "ports": [{"port": 80, **port}]}}

    node = {"name": "node-1", "addresses": ["172.31.1.10", "fd31:1::a"]}
    web = service("10.96.0.1", "fd96::1", nodePort=30000)
    asked = list(questions(web, service("10.96.0.2", "fd96::2"), node, "pod-1a"))
    assert {(each.client, each.address) for each in asked if each.port == 80 and not each.one} == {
        (client, address) for client in ("pod-1a", "node-1") for address in ("10.96.0.1", "fd96::1")
    }
    assert [each.address for each in asked if each.client == "outside"] == node["addresses"]
    assert [each.address for each in asked if each.one] == ["10.96.0.2", "fd96::2"]
    only_ipv4 = list(questions(service("10.96.0.1", nodePort=30000), service("10.96.0.2"), node, "pod-1a"))
    assert [each.address for each in only_ipv4 if each.client == "outside"] == ["172.31.1.10"]


def test_the_services_are_dual_stack_where_the_cluster_is() -> None:
    assert {item["spec"]["ipFamilyPolicy"] for item in manifests()} == {"PreferDualStack"}


def test_the_table_shows_what_came_of_it() -> None:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(
            tour([judge(ONE, answers("a", "a")), judge(MANY, answers("a", "b")), judge(ONE, answers(""))])
        )
    text = capture.get()
    for words in (
        "✓ a, 2 times",
        "✓ 2 pods: a, b",
        "✗ no answer",
        "[fd96::2]:80",
        "10.96.0.1:80",
        "10.244.0.2",
    ):
        assert words in text
