"""The table of Service scenarios is what it claims to be: complete, unique ids, right where it is easy."""

import itertools
from collections import Counter

import pytest

from tests.scenarios.matrix import matrix
from tests.scenarios.model import (
    DROPPED,
    REFUSED,
    Client,
    Fate,
    Outcome,
    Source,
    Target,
    answered,
    rows,
)
from tests.scenarios.oracle import Policies, fate
from tests.scenarios.policies import policy_stories
from tests.scenarios.stories import stories
from tests.scenarios.topology import FAMILIES, PROTOCOLS

TABLE = list(rows([matrix(), *stories(), *policy_stories()]))
CLUSTER, NODE_PORT, BALANCER = Target("cluster"), Target("nodeport"), Target("balancer")


def test_ids_are_unique() -> None:
    assert [name for name, count in Counter(row.id for row in TABLE).items() if count > 1] == []
    told = [scenario.name for scenario in (*stories(), *policy_stories())]
    assert len(set(told)) == len(told)


def test_the_matrix_is_complete() -> None:
    asked = Counter(
        (row.probe.client, row.probe.target.kind, row.probe.protocol, row.probe.family)
        for row in TABLE
        if row.scenario.name == "matrix"
    )
    clients = [Client(kind, node) for kind in ("pod", "node", "outside") for node in (1, 3)]
    kinds = ("cluster", "nodeport", "balancer", "external")
    assert all(asked[key] >= 6 for key in itertools.product(clients, kinds, PROTOCOLS, FAMILIES))


@pytest.mark.parametrize(
    ("client", "target", "policies", "expected"),
    [
        (Client("pod", 1), CLUSTER, Policies("near"), answered(Source.CLIENT, "server-1")),
        (Client("node", 1), CLUSTER, Policies("near"), answered(Source.NODE, "server-1")),
        (Client("outside", 1), CLUSTER, Policies("far"), answered(Source.TUNNEL, "server-2")),
        (Client("pod", 1), NODE_PORT, Policies("far"), answered(Source.TUNNEL, "server-2")),
        (Client("pod", 1), BALANCER, Policies("far", True), answered(Source.CLIENT, "server-2")),
        (Client("node", 1), BALANCER, Policies("far", True), answered(Source.TUNNEL, "server-2")),
        (Client("outside", 1), BALANCER, Policies("far", True), DROPPED),
        (Client("outside", 2), BALANCER, Policies("far", True), answered(Source.CLIENT, "server-2")),
        (Client("outside", 1), BALANCER, Policies("none", True), REFUSED),
        (Client("pod", 1), CLUSTER, Policies("far", False, True), DROPPED),
        (Client("pod", 1), CLUSTER, Policies("mixed"), answered(Source.CLIENT, "server-2")),
        (Client("outside", 1), NODE_PORT, Policies("mixed", True), answered(Source.CLIENT, "old-1")),
        (Client("pod", 3), CLUSTER, Policies("old"), answered(Source.CLIENT, "old-1", "old-2")),
        (Client("pod", 3), CLUSTER, Policies("unready"), REFUSED),
        (
            Client("pod", 3),
            Target("nodeport", node=1),
            Policies("near", True),
            answered(Source.CLIENT_NODE, "server-1"),
        ),
    ],
)
def test_the_rules(client: Client, target: Target, policies: Policies, expected: Fate) -> None:
    assert fate(client, target, policies) == expected


def test_only_answers_name_servers() -> None:
    for row in TABLE:
        assert bool(row.probe.fate.answers) is (row.probe.fate.outcome is Outcome.ANSWERED), row.id
