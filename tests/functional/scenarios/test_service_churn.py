"""Services while their backends come and go and while the daemon is killed: clients notice nothing."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.functional.service_load import (
    Connections,
    Datagrams,
    add_backend,
    clients,
    going,
    offered,
    serves,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.functional.lab_cluster import LabCluster

pytestmark = pytest.mark.root

CLIENTS = ("pod-1a", "pod-3a", "node-3")
"""Beside a backend, on a node without one, and the node itself."""
NAME = "churn"
BACKENDS = 4
SOON = 1.5
"""Within so many seconds a UDP client that keeps its port is with a living backend."""
SETTLED = 1.0


@pytest.fixture
def service(lab: LabCluster) -> Iterator[list[str]]:
    """The ClusterIPs of a Service without pods yet."""
    with offered(lab, NAME) as addresses:
        yield addresses


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
        add_backend(lab, NAME, name, node, drain)
    every = {*now}
    load = Connections(clients(lab, CLIENTS, service), rate)
    time.sleep(SETTLED)
    begin = time.monotonic()
    generation = 0
    with going(lab, load):
        while generation == 0 or time.monotonic() - begin < seconds:
            generation += 1
            for number, node in enumerate(nodes):
                old, now[number] = now[number], f"{NAME}-{generation}-{number}"
                add_backend(lab, NAME, now[number], node, drain)
                lab.delete_pods(old, wait=False)
            every |= {*now}
        left = time.monotonic()
        lab.wait(
            lambda: {name for name, pod in lab.pods().items() if name.startswith(NAME)} == {*now},
            "the old ones gone",
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
    add_backend(lab, NAME, "churn-1", "node-1", drain=2)
    asking = [Datagrams(client) for client in clients(lab, CLIENTS, service)]

    def answered_by(name: str) -> None:
        deadline = time.monotonic() + SOON
        while found := {
            (one.client.name, one.client.version, one.last()) for one in asking if one.last() != name
        }:
            assert time.monotonic() < deadline, f"not yet answered by {name}: {found}"
            time.sleep(0.02)

    with going(lab, *asking):
        answered_by("churn-1")
        add_backend(lab, NAME, "churn-2", "node-2")
        lab.delete_pods("churn-1", wait=False)
        time.sleep(SETTLED)
        assert {one.last() for one in asking} == {"churn-1"}, "flows stay with a backend that still serves"
        lab.wait(lambda: not serves(lab, "churn-1"), "the first one serves no more")
        answered_by("churn-2")
        moved = time.monotonic()
        lab.delete_pods("churn-2")
        time.sleep(SETTLED)
        none = time.monotonic()
        adding = time.monotonic()
        add_backend(lab, NAME, "churn-3", "node-1")
        there = time.monotonic()
        answered_by("churn-3")
        time.sleep(SETTLED)
    for one in asking:
        assert {answer.by for answer in one.served if answer.at > moved} <= {"churn-2", "churn-3"}
        assert not [answer for answer in one.served if none < answer.at < adding], one.client.name
        assert {answer.by for answer in one.served if answer.at > there} == {"churn-3"}
        assert [at for at in one.refused if moved < at < adding], one.client.name
