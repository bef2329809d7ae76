"""Policies of a large cluster in the model: memory, first compile, one changed pod, one changed policy.

What is measured is memory and computing, from values of the store to values for the datapath, no kernel.
Each of 1,000 policies isolates a pod of this node, as a node with many small pods may meet it. The policies
with peers everywhere look for them in all namespaces and can share nothing: the dearest that there are.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from typing import TYPE_CHECKING

from bench import policy_objects as objects
from bench.figures import Figure, table
from bench.policy_objects import NAMESPACES, NODE
from daemon.cluster.decode_pods import namespace, pod
from daemon.cluster.decode_policies import network_policy
from daemon.compile.policy import Policies
from daemon.compile.policy_subjects import Attached
from daemon.compile.policy_verdict import Flow, verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.policy_objects import Peer
    from bench.tables import Table
    from daemon.cluster.model import Pod

PODS = 10_000
POLICIES = 1_000
CHANGES = 200


def run() -> Iterator[Table]:
    """Measure memory, then both kinds of policies."""
    yield _memory()
    for title, peer in (
        ("peers in their own namespace", objects.inside),
        ("peers everywhere", objects.everywhere),
    ):
        yield _times(title, peer)


def _memory() -> Table:
    pods: dict[str, Pod] = {}
    tracemalloc.start()
    try:
        for number in range(PODS):
            value = pod(objects.pod(number))
            pods[value.key] = value
        gc.collect()
        store, _ = tracemalloc.get_traced_memory()
        model = _model(pods)
        gc.collect()
        index, _ = tracemalloc.get_traced_memory()
        _put_policies(model, objects.inside)
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


def _times(title: str, peer: Peer) -> Table:
    raw = [objects.pod(number) for number in range(PODS)]
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
    return table(
        f"{POLICIES} policies in force, {PODS} pods, {title}: CPU time",
        [
            Figure("decode all pods, given parsed JSON", decoding * 1e3, "ms"),
            Figure("index all pods", index * 1e3, "ms"),
            Figure("first compile of all policies", first * 1e3, "ms", at_most=3000),
            Figure("labels of a remote pod change", _labels(model, PODS - 1) * 1e3, "ms", at_most=5),
            Figure("labels of a pod of this node change", _labels(model, 0) * 1e3, "ms", at_most=5),
            Figure("labels of a namespace change", _namespace(model) * 1e3, "ms"),
            Figure("a policy changes", _policy_change(model, peer) * 1e3, "ms"),
            Figure("a verdict", _verdict(model) * 1e6, "us"),
        ],
    )


def _model(pods: dict[str, Pod]) -> Policies:
    model = Policies(NODE)
    for number in range(NAMESPACES):
        value = namespace(objects.namespace(number))
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


def _put_policies(model: Policies, peer: Peer) -> None:
    for number in range(POLICIES):
        value = network_policy(objects.policy(number, peer))
        model.put_policy(value.key, value)
    model.compile()


def _labels(model: Policies, number: int) -> float:
    """Return the mean CPU time of one change."""
    versions = [pod(objects.pod(number, app=f"w{turn}")) for turn in range(CHANGES)]
    put = model.put_pod if versions[0].node == NODE else model.put_remote_pod
    began = time.process_time()
    for each in versions:
        put(each.key, each)
        model.compile()
        model.changes()
    spent = (time.process_time() - began) / CHANGES
    original = pod(objects.pod(number))
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


def _policy_change(model: Policies, peer: Peer) -> float:
    versions = [
        network_policy(objects.policy(turn % 7, lambda number: peer(number + POLICIES)))
        for turn in range(CHANGES)
    ]
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
