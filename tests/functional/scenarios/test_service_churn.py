"""Services while their backends come and go and while the daemon is killed: clients notice nothing."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tests.functional.lab_cluster import NAMESPACE
from tests.functional.service_load import Client, Connections, Datagrams

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

    from lab.api.resources import Object
    from tests.functional.lab_cluster import LabCluster

pytestmark = pytest.mark.root

CLIENTS = ("pod-1a", "pod-3a", "node-3")
"""Beside a backend, on a node without one, and the node itself."""
NAME = "churn"
BACKENDS = 4
PORT = 80
SOON = 1.5
"""Within so many seconds a UDP client that keeps its port is with a living backend."""
SETTLED = 1.0


class Stoppable(Protocol):
    def run(self) -> Coroutine[Any, Any, None]: ...

    def stop(self) -> None: ...


@contextlib.contextmanager
def going(lab: LabCluster, *loads: Stoppable) -> Iterator[None]:
    """Let these run all the while."""
    futures = [lab.start(load.run()) for load in loads]
    try:
        yield
    finally:
        for load in loads:
            lab.call(load.stop)
        for future in futures:
            future.result(30)


@pytest.fixture
def service(lab: LabCluster) -> Iterator[list[str]]:
    """The ClusterIPs of a Service for TCP and UDP; it and its pods are deleted in the end."""
    ports = [
        {"name": name.lower(), "protocol": name, "port": PORT, "targetPort": 8080} for name in ("TCP", "UDP")
    ]
    spec = {"selector": {"app": NAME}, "ipFamilyPolicy": "RequireDualStack", "ports": ports}
    storage = lab.cluster.storage
    services, pods = (storage.catalogue.named(plural) for plural in ("services", "pods"))
    item = {"metadata": {"name": NAME}, "spec": spec}
    yield lab.call(lambda: storage.create(services, NAMESPACE, item))["spec"]["clusterIPs"]

    def delete() -> None:
        storage.delete(services, NAMESPACE, NAME)
        for pod in storage.list(pods, NAMESPACE, ours):
            storage.delete(pods, NAMESPACE, pod["metadata"]["name"], grace=0)

    lab.call(delete)


def ours(pod: Object) -> bool:
    return (pod["metadata"].get("labels") or {}).get("app") == NAME


def add(lab: LabCluster, name: str, node: str, drain: float = 0) -> None:
    """Create a backend that serves on for `drain` seconds once it is deleted, and wait until it is ready."""
    container = {
        "name": "echo",
        "image": "echo",
        "lifecycle": {"preStop": {"sleep": {"seconds": drain}}},
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": NAME}},
        "spec": {"nodeName": node, "containers": [container]},
    }
    lab.call(lambda: lab.cluster.apply(pod))
    lab.wait(lambda: serves(lab, name), f"{name} serves")


def serves(lab: LabCluster, name: str) -> bool:
    """Whether the pod is Ready; one that is being deleted may be."""
    conditions = lab.pods().get(name, {}).get("status", {}).get("conditions", [])
    return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions)


def clients(lab: LabCluster, addresses: Sequence[str], names: Sequence[str] = CLIENTS) -> list[Client]:
    return [
        Client(name, lab.call(lambda name=name: lab.cluster.network_of(name)), version, address, PORT)  # type: ignore[misc]
        for name in names
        for address in addresses
        for version in (ip_address(address).version,)
    ]


@pytest.mark.parametrize(
    ("rate", "seconds", "drain"),
    [(50, 10, 2), pytest.param(200, 60, 5, marks=[pytest.mark.soak, pytest.mark.timeout(300)])],
)
def test_all_backends_are_replaced_under_load(
    lab: LabCluster, service: list[str], rate: float, seconds: float, drain: float
) -> None:
    """One after the other, and again until the time is over; each serves on after leaving the slice."""
    nodes = [f"node-{1 + number % 2}" for number in range(BACKENDS)]
    now = [f"{NAME}-0-{number}" for number in range(BACKENDS)]
    for name, node in zip(now, nodes, strict=True):
        add(lab, name, node, drain)
    every = {*now}
    load = Connections(clients(lab, service), rate)
    time.sleep(SETTLED)
    begin = time.monotonic()
    generation = 0
    with going(lab, load):
        while generation == 0 or time.monotonic() - begin < seconds:
            generation += 1
            for number, node in enumerate(nodes):
                old, now[number] = now[number], f"{NAME}-{generation}-{number}"
                add(lab, now[number], node, drain)
                lab.delete_pods(old, wait=False)
            every |= {*now}
        left = time.monotonic()
        lab.wait(
            lambda: {name for name, pod in lab.pods().items() if ours(pod)} == {*now}, "the old ones gone"
        )
        time.sleep(SETTLED)
    lasted = time.monotonic() - begin
    assert load.failed == []
    assert load.repeated == []
    assert len(load.served) > 0.8 * rate * lasted, "the load was smaller than it should be"
    assert {answer.by for answer in load.served} <= every
    late = Counter(answer.by for answer in load.served if answer.at > left + SETTLED)
    assert {*late} == {*now}


def test_a_datagram_client_that_keeps_its_port_follows_the_backends(
    lab: LabCluster, service: list[str]
) -> None:
    add(lab, "churn-1", "node-1", drain=2)
    asking = [Datagrams(client) for client in clients(lab, service)]

    def answered_by(name: str) -> None:
        deadline = time.monotonic() + SOON
        while found := {
            (one.client.name, one.client.version, one.last()) for one in asking if one.last() != name
        }:
            assert time.monotonic() < deadline, f"not yet answered by {name}: {found}"
            time.sleep(0.02)

    with going(lab, *asking):
        answered_by("churn-1")
        add(lab, "churn-2", "node-2")
        lab.delete_pods("churn-1", wait=False)
        time.sleep(SETTLED)
        assert {one.last() for one in asking} == {"churn-1"}, "flows stay with a backend that still serves"
        lab.wait(lambda: not serves(lab, "churn-1"), "the first one serves no more")
        answered_by("churn-2")
        moved = time.monotonic()
        lab.delete_pods("churn-2")
        time.sleep(SETTLED)
        none = time.monotonic()
        add(lab, "churn-3", "node-1")
        there = time.monotonic()
        answered_by("churn-3")
        time.sleep(SETTLED)
    for one in asking:
        assert {answer.by for answer in one.served if answer.at > moved} == {"churn-2", "churn-3"}
        assert not [answer for answer in one.served if none < answer.at < there - SETTLED], one.client.name
        assert {answer.by for answer in one.served if answer.at > there} == {"churn-3"}
        assert [at for at in one.refused if none < at < there], one.client.name
