"""What the API server is asked for: each pod is asked for once, and what a value needs is decoded."""

from __future__ import annotations

import re

from daemon.cluster.decode_pods import namespace, pod
from daemon.cluster.decode_policies import network_policy
from daemon.cluster.resources import NAMESPACES, NETWORK_POLICIES, pods_beyond, pods_on

NODES = ("n1", "n2", "")


def asked_for(fields: str, node: str, phase: str) -> bool:
    """Whether the API server's field selector selects a pod."""
    have = {"spec.nodeName": node, "status.phase": phase}
    for term in fields.split(","):
        match = re.fullmatch(r"([\w.]+)(!?=)(.*)", term)
        assert match
        if (have[match[1]] == match[3]) is (match[2] == "!="):
            return False
    return True


def test_each_pod_that_runs_is_followed_once() -> None:
    here, beyond = pods_on("n1").fields, pods_beyond("n1").fields
    assert [asked_for(here, node, "Running") for node in NODES] == [True, False, False]
    assert [asked_for(beyond, node, "Running") for node in NODES] == [False, True, False]


def test_pods_of_other_nodes_go_when_they_end() -> None:
    beyond = pods_beyond("n1").fields
    phases = ("Pending", "Running", "Unknown", "Succeeded", "Failed")
    assert [asked_for(beyond, "n2", phase) for phase in phases] == [True, True, True, False, False]


def test_the_kinds() -> None:
    assert (NAMESPACES.path, NAMESPACES.decode) == ("/api/v1/namespaces", namespace)
    assert NETWORK_POLICIES.path == "/apis/networking.k8s.io/v1/networkpolicies"
    assert NETWORK_POLICIES.decode is network_policy
    assert {pods_on("n1").path, pods_beyond("n1").path} == {"/api/v1/pods"}
    assert pods_on("n1").decode is pod
