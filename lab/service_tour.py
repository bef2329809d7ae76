"""A short tour of Services for the demonstration: who asks what, who answers, and the source that is seen.

Makes two Services for the demo's pods and asks them from a pod, a node and the host outside. They stay.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.api.resources import Object
    from lab.client import Client

ASKS = 12
"""How often each question is asked: of two pods one is missed once in 2,000 times."""
_ARRIVAL_SECONDS = 5.0
"""Within this time a new Service has to be served by every node."""
_SERVICES = "/api/v1/namespaces/default/services"


@dataclass(frozen=True, slots=True)
class Question:
    """What one client asks; `one` says that always the same pod must answer, else several must."""

    client: str
    what: str
    address: str
    port: int
    one: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a question that was asked `ASKS` times; `fault` is empty when all is as it must be."""

    question: Question
    pods: dict[str, int]
    sources: tuple[str, ...]
    fault: str


def manifests() -> list[Object]:
    """The Services: one that spreads its connections, also by a node port, and one that keeps its clients."""
    ports = [{"port": 80, "targetPort": 8080}]
    common = {"selector": {"app": "demo"}, "ipFamilyPolicy": "PreferDualStack", "ports": ports}
    return [
        {"metadata": {"name": "web"}, "spec": {**common, "type": "NodePort"}},
        {"metadata": {"name": "sticky"}, "spec": {**common, "sessionAffinity": "ClientIP"}},
    ]


def questions(web: Object, sticky: Object, node: Object, pod: str) -> Iterator[Question]:
    """What is asked.

    Args:
        web: the first Service, as the API has it.
        sticky: the second one.
        node: the lab's first node, as the lab shows it.
        pod: the pod that asks.
    """
    port = web["spec"]["ports"][0]
    versions = {ip_address(address).version for address in web["spec"]["clusterIPs"]}
    for address in web["spec"]["clusterIPs"]:
        for client in (pod, node["name"]):
            yield Question(client, "web, ClusterIP", address, port["port"])
    for address in node["addresses"]:
        if ip_address(address).version in versions:
            yield Question("outside", f"web, NodePort of {node['name']}", address, port["nodePort"])
    for address in sticky["spec"]["clusterIPs"]:
        yield Question(pod, "sticky, affinity", address, 80, one=True)


def judge(question: Question, answers: list[dict[str, str]]) -> Reply:
    """What the answers say about the question: one pod each time, or several."""
    pods = Counter(answer["name"] for answer in answers if not answer["fault"])
    sources = tuple(sorted({answer["source"] for answer in answers if not answer["fault"]}))
    fault = next((answer["fault"] for answer in answers if answer["fault"]), "")
    if not fault and question.one and len(pods) > 1:
        fault = "answered by several pods, must be one"
    elif not fault and not question.one and len(pods) == 1:
        fault = "answered by one pod only, must be several"
    return Reply(question, dict(sorted(pods.items())), sources, fault)


def tour(client: Client, node: Object, pods: list[str]) -> list[Reply]:
    """Take the tour with a running lab: its first node, and its demo pods, of which the first one asks."""
    web, sticky = (client.api("POST", _SERVICES, json=item) for item in manifests())
    asked = [each for each in questions(web, sticky, node, pods[0]) if _is_reachable(each, node)]
    for question in asked:
        _await(client, question)
    alone = len(pods) == 1
    return [judge(replace(each, one=each.one or alone), _ask(client, each, ASKS)) for each in asked]


def _is_reachable(question: Question, node: Object) -> bool:
    """Whether the asking node has an address of the family at all; pods and the outside host have."""
    versions = {ip_address(address).version for address in node["addresses"]}
    return question.client != node["name"] or ip_address(question.address).version in versions


def _await(client: Client, question: Question) -> None:
    deadline = time.monotonic() + _ARRIVAL_SECONDS
    while (fault := _ask(client, question, 1)[0]["fault"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    if fault:
        raise LabError(f"{question.client} asks {question.what} at {question.address}: {fault}")


def _ask(client: Client, question: Question, times: int) -> list[dict[str, Any]]:
    query = {
        "client": question.client,
        "address": question.address,
        "port": question.port,
        "times": times,
    }
    answers: list[dict[str, Any]] = client.order("POST", f"/ask?{urlencode(query)}")
    return answers
