"""Policies of a large cluster in the model: memory, first compile, one changed pod, one changed policy.

What is measured is memory and computing, from values of the store to values for the datapath, no kernel.
Each of 1,000 policies isolates a pod of this node, as a node with many small pods may meet it. The policies
with peers everywhere look for them in all namespaces and can share nothing: the dearest that there are.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

from bench.figures import Figure, table
from daemon.cluster.decode_pods import namespace, pod
from daemon.cluster.decode_policies import network_policy
from daemon.compile.policy import Policies
from daemon.compile.policy_subjects import Attached
from daemon.compile.policy_verdict import Flow, verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.tables import Table
    from daemon.cluster.model import NetworkPolicy, Pod

PODS = 10_000
POLICIES = 1_000
NAMESPACES = 100
REPLICAS = 5
LOCAL = 100
CHANGES = 200
NODE = "here"


def run() -> Iterator[Table]:
    """Measure memory, then both kinds of policies."""
    yield _memory()
    for title, peer in (("peers in their own namespace", _inside), ("peers everywhere", _everywhere)):
        yield _times(title, peer)


def _memory() -> Table:
    pods: dict[str, Pod] = {}
    tracemalloc.start()
    try:
        for number in range(PODS):
            value = pod(_pod(number))
            pods[value.key] = value
        gc.collect()
        store, _ = tracemalloc.get_traced_memory()
        model = _model(pods)
        gc.collect()
        index, _ = tracemalloc.get_traced_memory()
        _put_policies(model, _inside)
        model.changes()
        gc.collect()
        policies, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    mebi = 1 << 20
    return table(
        f"memory of {PODS} pods with {model.groups} namespaces and label sets",
        [
            Figure("the store", store / mebi, "MiB"),
            Figure("the model's index of them", (index - store) / mebi, "MiB"),
            Figure(f"{POLICIES} policies in force", (policies - index) / mebi, "MiB"),
        ],
    )


def _times(title: str, peer: Callable[[int], Any]) -> Table:
    raw = [_pod(number) for number in range(PODS)]
    began = time.process_time()
    pods = {value.key: value for value in map(pod, raw)}
    decoding = time.process_time() - began
    began = time.process_time()
    model = _model(pods)
    index = time.process_time() - began
    began = time.process_time()
    _put_policies(model, peer)
    first = time.process_time() - began
    model.changes()
    assert len(model.rules) == POLICIES
    remote = next(number for number in range(PODS) if _node(number) != NODE)
    near = next(number for number in range(PODS) if _node(number) == NODE)
    return table(
        f"{POLICIES} policies in force, {PODS} pods, {title}: CPU time",
        [
            Figure("decode all pods, given parsed JSON", decoding * 1e3, "ms"),
            Figure("index all pods", index * 1e3, "ms"),
            Figure("first compile of all policies", first * 1e3, "ms", at_most=3000),
            Figure("labels of a remote pod change", _labels(model, remote) * 1e3, "ms", at_most=5),
            Figure("labels of a pod of this node change", _labels(model, near) * 1e3, "ms", at_most=5),
            Figure("labels of a namespace change", _namespace(model) * 1e3, "ms"),
            Figure("a policy changes", _policy_change(model, peer) * 1e3, "ms"),
            Figure("a verdict", _verdict(model) * 1e6, "us"),
        ],
    )


def _model(pods: dict[str, Pod]) -> Policies:
    model = Policies(NODE)
    for number in range(NAMESPACES):
        value = namespace({"metadata": {"name": f"space-{number}", "labels": {"team": f"t{number % 10}"}}})
        model.put_namespace(value.name, value)
    for key, each in pods.items():
        if each.node == NODE:
            link = f"weft{len(model.subjects)}"
            model.put_attached(key, Attached(link, each.namespace, each.name, each.uid, each.ips))
            model.put_pod(key, each)
        else:
            model.put_remote_pod(key, each)
    model.compile()
    return model


def _put_policies(model: Policies, peer: Callable[[int], Any]) -> None:
    for number in range(POLICIES):
        value = _policy(number, peer)
        model.put_policy(value.key, value)
    model.compile()


def _labels(model: Policies, number: int) -> float:
    """Return the mean CPU time of one change."""
    versions = [pod(_pod(number, app=f"w{turn}")) for turn in range(CHANGES)]
    put = model.put_pod if versions[0].node == NODE else model.put_remote_pod
    began = time.process_time()
    for each in versions:
        put(each.key, each)
        model.compile()
        model.changes()
    spent = (time.process_time() - began) / CHANGES
    original = pod(_pod(number))
    put(original.key, original)
    model.compile()
    return spent


def _namespace(model: Policies) -> float:
    versions = [
        namespace({"metadata": {"name": "space-1", "labels": {"team": f"t{turn % 10}"}}})
        for turn in range(CHANGES)
    ]
    began = time.process_time()
    for each in versions:
        model.put_namespace(each.name, each)
        model.compile()
        model.changes()
    return (time.process_time() - began) / CHANGES


def _policy_change(model: Policies, peer: Callable[[int], Any]) -> float:
    versions = [_policy(turn % 7, lambda number: peer(number + POLICIES)) for turn in range(CHANGES)]
    began = time.process_time()
    for each in versions:
        model.put_policy(each.key, each)
        model.compile()
        model.changes()
    return (time.process_time() - began) / CHANGES


def _verdict(model: Policies) -> float:
    """Return the mean CPU time of a verdict about a flow between pods of which one is of this node."""
    own = [each.addresses[0] for each in model.subjects.values()]
    flows = [Flow(bytes((10, 0, turn, 1)), own[turn % len(own)], 6, 8080) for turn in range(CHANGES)]
    began = time.process_time()
    for flow in flows:
        verdict(model, flow)
    return (time.process_time() - began) / CHANGES


def _node(number: int) -> str:
    """One pod in a hundred is here, one of each namespace."""
    return (
        NODE if number % (PODS // LOCAL) == number // (PODS // LOCAL) % NAMESPACES else f"node-{number % 99}"
    )


def _pod(number: int, app: str = "") -> dict[str, Any]:
    """Replicas of a workload share all labels."""
    workload = number // REPLICAS
    space = workload % NAMESPACES
    own = app or f"w{workload // NAMESPACES}"
    return {
        "metadata": {
            "namespace": f"space-{space}",
            "name": f"workload-{workload:08x}-{number * 7919 % 65536:05x}",
            "uid": f"3f2b8c1e-0000-4000-8000-{number:012x}",
            "labels": {
                "app.kubernetes.io/name": own,
                "app.kubernetes.io/instance": own,
                "pod-template-hash": f"{workload * 7919 % (1 << 32):08x}",
            },
        },
        "spec": {
            "nodeName": _node(number),
            "containers": [{"ports": [{"name": "http", "containerPort": 8080}]}],
        },
        "status": {
            "phase": "Running",
            "podIPs": [
                {"ip": f"10.{number >> 14}.{number >> 7 & 127}.{number & 127}"},
                {"ip": f"fd00::{number >> 12:x}:{number & 4095:x}:1"},
            ],
        },
    }


def _policy(number: int, peer: Callable[[int], Any]) -> NetworkPolicy:
    return network_policy(
        {
            "metadata": {"namespace": f"space-{number % NAMESPACES}", "name": f"policy-{number}"},
            "spec": {"ingress": [{"from": [peer(number)], "ports": [{"port": 8080}, {"port": "http"}]}]},
        }
    )


def _selector(number: int) -> dict[str, Any]:
    return {"matchLabels": {"app.kubernetes.io/name": f"w{number % 20}"}}


def _inside(number: int) -> Any:
    """Return a peer: one workload of the policy's namespace."""
    return {"podSelector": _selector(number // NAMESPACES)}


def _everywhere(number: int) -> Any:
    """Return a peer: one workload of all namespaces, so written that no two policies can share it."""
    either = [f"w{number % 20}", f"absent-{number}"]
    one_of = {"key": "app.kubernetes.io/name", "operator": "In", "values": either}
    return {"namespaceSelector": {}, "podSelector": {"matchExpressions": [one_of]}}
