"""A packet's way to a pod that policies isolate: round trips of a flow, and first packets of connections.

Nodes that differ in the number of policies alone, each with a client and a server as pods of its own behind
it. The daemon's compiler and writer make the tables. The server is isolated from what comes in and the client
from what goes out, each by its share of the policies (one in a hundred), of which the last lets them talk. On
one more node all policies isolate these two pods.

Target: a round trip with 1,000 policies within 10 % of none, by the median of the rounds' ratios. What a
connection's first packet costs grows with the policies that isolate its two ends, and is told only.
"""

from __future__ import annotations

import os
import socket
import statistics
import struct
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import uvloop

from bench import policy_objects as objects
from bench.policy_node import Cluster
from bench.spaces import bare_space, node_space
from bench.spaces import run as command
from bench.tables import Table, comparison, in_turn, median_interval
from bench.wiring import request
from daemon import logs
from daemon.cluster.decode_policies import network_policy
from datapath.netns import entered
from datapath.text import parse_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from datapath.attachment import AttachRequest

COUNTS = (0, 100, 1000)
ROUNDS, PACKETS, CONNECTIONS = 60, 400, 100
BOUND = 1.10
BASE = "no policies"
CROWDED = "1000 of these pods"
NODE_ADDRESS = "172.16.0.1"
ADDRESSES = "10.0.0.1", "10.0.0.2"
_AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER: close by a reset, so that no port is kept."""


def run() -> Iterator[Table]:
    """Measure all nodes in turn."""
    logs.configure("error", "json")
    with ExitStack() as stack:
        nodes = {_named(count): _Pods(stack, count) for count in COUNTS}
        nodes[CROWDED] = _Pods(stack, COUNTS[-1], crowded=True)
        for what, title in (("packets", f"round trip, mean of {PACKETS}"), ("connect", "connect(), median")):
            measured = in_turn({name: _variant(node, what) for name, node in nodes.items()}, ROUNDS)
            yield comparison(title, measured, BASE, unit=1e-6, unit_name="us")
            yield against_none(title, measured, bounded=what == "packets")


def _named(count: int) -> str:
    return f"{count} policies" if count else BASE


def _variant(node: _Pods, what: str) -> Callable[[int], float]:
    measure: Callable[[], float] = getattr(node, what)
    measure()
    return lambda _: measure()


class _Pods:
    """A node with a client and a server behind it, and with policies."""

    def __init__(self, stack: ExitStack, count: int, *, crowded: bool = False) -> None:
        name = f"weft-bench-{count}{'c' * crowded}-{os.getpid()}"
        spaces = [f"{name}-{suffix}" for suffix in ("node", "client", "server")]
        self._node = stack.enter_context(node_space(spaces[0], f"{NODE_ADDRESS}/12"))
        self._client, self._server = (stack.enter_context(bare_space(each)) for each in spaces[1:])
        with entered(self._node):
            command("sysctl", "-qw", "net.ipv4.ip_forward=1")
        cluster = Cluster(self._node)
        cluster.put_residents([_pod(number) for number in range(objects.RESIDENTS)])
        requests = [
            replace(
                request(f"/run/netns/{space}", number),
                addresses=each.addresses,
                host_link=each.host_link,
                sources=(parse_address(NODE_ADDRESS),),
            )
            for number, (space, each) in enumerate(zip(spaces[1:], cluster.records, strict=False))
        ]
        uvloop.run(_load(cluster, requests, policies(count, crowded=crowded)))
        self._udp = stack.enter_context(self._echo(socket.SOCK_DGRAM))
        with entered(self._client):
            self._caller = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._caller.connect((ADDRESSES[1], objects.PORT))
        self._caller.settimeout(5)
        self._listener = stack.enter_context(self._echo(socket.SOCK_STREAM))
        self._listener.listen(2 * CONNECTIONS)

    def _echo(self, kind: socket.SocketKind) -> socket.socket:
        with entered(self._server):
            found = socket.socket(socket.AF_INET, kind)
        found.bind(("", objects.PORT))
        found.settimeout(5)
        return found

    def packets(self) -> float:
        """Return the mean seconds of a packet to the server and back, in a flow that is known."""
        began = time.perf_counter()
        for _ in range(PACKETS):
            self._caller.send(b"?")
            _, source = self._udp.recvfrom(16)
            self._udp.sendto(b"!", source)
            self._caller.recv(16)
        return (time.perf_counter() - began) / PACKETS

    def connect(self) -> float:
        """Return the median seconds of a new connection."""
        seconds, clients = [], []
        with entered(self._client):
            for _ in range(CONNECTIONS):
                clients.append(socket.socket())
                clients[-1].settimeout(5)
                began = time.perf_counter()
                clients[-1].connect((ADDRESSES[1], objects.PORT))
                seconds.append(time.perf_counter() - began)
        for client in clients:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            client.close()
            self._listener.accept()[0].close()
        return statistics.median(seconds)


def _pod(number: int) -> dict[str, Any]:
    """Return a pod of the node: two of one namespace, the others in one each."""
    found = objects.pod(number, ("client", "server")[number] if number < len(ADDRESSES) else "")
    if number < len(ADDRESSES):
        found["metadata"]["namespace"] = objects.space(0)
        found["status"]["podIPs"] = [{"ip": ADDRESSES[number]}]
    return found


def policies(count: int, *, crowded: bool = False) -> list[dict[str, Any]]:
    """Return so many policies of both directions, the one that lets the client reach the server last.

    They are asked in the order of their names. With `crowded` all are in the namespace of these two pods.
    """
    found = []
    for number in range(count - 1):
        raw = objects.policy(0 if crowded else number, objects.inside)
        raw["metadata"]["name"] = f"policy-{number:05}"
        ports = [{"port": 1000 + number % 1000}]
        raw["spec"]["policyTypes"] = ["Ingress", "Egress"]
        raw["spec"]["egress"] = [{"to": raw["spec"]["ingress"][0]["from"], "ports": ports}]
        found.append(raw)
    if count:
        last = objects.policy(0, lambda _: {"podSelector": {}}, "zzz")
        both = [{"protocol": each, "port": objects.PORT} for each in ("TCP", "UDP")]
        peers = [{"podSelector": {"matchLabels": {objects.NAME: name}}} for name in ("client", "server")]
        last["spec"] = {
            "podSelector": {},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": peers, "ports": both}],
            "egress": [{"to": peers, "ports": both}],
        }
        found.append(last)
    return found


async def _load(
    cluster: Cluster, requests: Sequence[AttachRequest], wanted: Sequence[dict[str, Any]]
) -> None:
    for raw in wanted:
        value = network_policy(raw)
        cluster.store.network_policies.put(value.key, value)
    async with cluster.running():
        for each in requests:
            await cluster.writer.attachment(lambda kernel, each=each: kernel.attach(each))  # type: ignore[misc]
        await cluster.settled()


def against_none(title: str, measured: Mapping[str, Sequence[float]], *, bounded: bool) -> Table:
    """Return how each number of policies compares with none, round by round, with the interval."""
    rows = []
    for name, values in measured.items():
        if name == BASE:
            continue
        ratios = [one / none for one, none in zip(values, measured[BASE], strict=True)]
        middle, (low, high) = statistics.median(ratios), median_interval(ratios)
        kept = "kept" if middle <= BOUND else "BROKEN"
        bound = (f"<= {BOUND:g}", kept) if bounded and name != CROWDED else ("", "")
        rows.append((name, f"{middle:.3f}", f"{low:.3f} to {high:.3f}", *bound))
    return Table(
        f"{title}, to {BASE}: median of {len(measured[BASE])} pairs",
        ("", "ratio", "95 % interval", "bound", ""),
        tuple(rows),
    )
