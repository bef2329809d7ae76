"""What a node spends on NetworkPolicy while none concerns it: no watch of other nodes' pods, no rules."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from tests.functional.lab_cluster import LabCluster
from tests.functional.policed_pods import delete_policies, named, pod, policy

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

METRICS = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9465/metrics').read().decode())"
WATCHES = 'weft_api_watches_total{kind="%s"}'
BELONGS = {"near": "node-1", "far": "node-2"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabCluster]:
    with LabCluster(tmp_path_factory.mktemp("none") / "state", nodes=2) as lab:
        lab.call(lambda: [lab.cluster.apply(pod(name, node)) for name, node in BELONGS.items()])
        lab.run(lab.cluster.wait_ready(30))
        yield lab


def watches(lab: LabCluster, node: str, kind: str) -> float:
    """How many watches of a kind a daemon has opened."""
    rows = lab.sh(node, f'{sys.executable} -c "{METRICS}"').splitlines()
    return sum(float(row.rpartition(" ")[2]) for row in rows if row.startswith(WATCHES % kind))


def base_chains(lab: LabCluster, node: str) -> set[tuple[str, str]]:
    """The tables that have a chain at one of the kernel's hooks, with the hook."""
    listed = json.loads(lab.sh(node, "nft -j list chains"))["nftables"]
    chains = [each["chain"] for each in listed if "chain" in each]
    return {(each["table"], each["hook"]) for each in chains if "hook" in each}


def spends_nothing(lab: LabCluster, node: str) -> bool:
    assert watches(lab, node, "pod"), "its own pods are always known"
    assert ("weft", "forward") in base_chains(lab, node)
    of_policies = {table for table, _ in base_chains(lab, node) if "policy" in table}
    return not of_policies and not watches(lab, node, "remotepod")


def test_without_a_policy_that_concerns_it_a_node_spends_nothing(lab: LabCluster) -> None:
    """Nor does one whose pods no policy selects while policies that need all pods are in force elsewhere."""
    assert spends_nothing(lab, "node-1")
    rules = [{"from": [{"podSelector": named("far")}]}]
    policy(lab, "nobody", podSelector=named("absent"), ingress=rules)
    policy(lab, "far", podSelector=named("far"), ingress=rules)
    lab.wait(lambda: not spends_nothing(lab, "node-2"), "node-2 enforces the one that selects its pod", 10)
    lab.wait(lambda: watches(lab, "node-2", "remotepod") == 1, "and follows all pods for it", 10)
    assert spends_nothing(lab, "node-1")


def test_a_policy_that_needs_no_peers_needs_no_pods_of_other_nodes(lab: LabCluster) -> None:
    policy(lab, "near", podSelector=named("near"), policyTypes=["Ingress", "Egress"])
    found = lambda: ("weft-policy", "forward") in base_chains(lab, "node-1")  # noqa: E731
    lab.wait(found, "it is enforced", 10)
    assert not watches(lab, "node-1", "remotepod")
    delete_policies(lab, "near")
    lab.wait(lambda: spends_nothing(lab, "node-1"), "and nothing of it stays", 10)
