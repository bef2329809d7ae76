"""A new connection to a ClusterIP: how long its first packets take, and how many there can be in a second.

Three nodes that differ in the number of Services alone, each with a namespace of its own behind it that
answers for all endpoints. Connections go to Services chosen at random, so the elements that they meet are not
in any cache because of the bench. A fourth node has no Services and connects to endpoints.

Target: with 30,000 Services within 10 % of what it is with 10, by the median of the rounds' ratios.
"""

from __future__ import annotations

import os
import random
import socket
import statistics
import struct
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from bench import service_objects as objects
from bench.spaces import joined_spaces
from bench.tables import Table, comparison, in_turn, median_interval
from datapath.netns import entered
from datapath.nft.connection import Nft
from datapath.nft.frontends import Backend, Balance, Frontend, Snat, service_elements
from datapath.nft.plan import plan
from datapath.nft.rules import Family, Protocol, Ruleset
from datapath.nft.tables import TableOptions, node_tables
from datapath.text import parse_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

COUNTS = (10, 10_000, 30_000)
ROUNDS, CONNECTIONS = 60, 200
BOUND = 1.10
DIRECT = "no Services"
_AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER: close by a reset, so that no port is kept."""


def run() -> Iterator[Table]:
    """Measure all nodes in turn."""
    rates: dict[str, list[float]] = {}
    with ExitStack() as stack:
        nodes = {_named(count): _Clients(stack, count) for count in (0, *COUNTS)}

        def variant(name: str) -> Callable[[int], float]:
            def measure(number: int) -> float:
                latency, seconds = nodes[name].connect(number)
                rates.setdefault(name, []).append(seconds)
                return latency

            return measure

        for node in nodes.values():
            node.connect(0)
        latencies = in_turn({name: variant(name) for name in nodes}, ROUNDS)
    base = _named(COUNTS[0])
    yield comparison(
        f"connect() to a random Service, median of {CONNECTIONS}", latencies, base, unit=1e-6, unit_name="us"
    )
    yield connections_per_second(rates)
    for title, measured in (("latency", latencies), ("time for a new connection", rates)):
        yield against_few(title, measured)


def _named(count: int) -> str:
    return f"{count} Services" if count else DIRECT


class _Clients:
    """One node's side of the connections, and the namespace that accepts them."""

    def __init__(self, stack: ExitStack, count: int) -> None:
        name = f"weft-bench-{count}-{os.getpid()}"
        node, behind = stack.enter_context(joined_spaces(name, "10.128.0.0/9"))
        self._node = node
        self._count = count
        with entered(behind):
            self._listener = stack.enter_context(socket.socket())
        self._listener.bind(("", objects.TARGET_PORT))
        self._listener.listen(2 * CONNECTIONS)
        if count:
            _load(node, count)

    def connect(self, seed: int) -> tuple[float, float]:
        """Open CONNECTIONS of them; returns the seconds of a connect (median) and of all of one (mean)."""
        choice = random.Random(seed)
        targets = [self._target(choice) for _ in range(CONNECTIONS)]
        latencies, clients = [], []
        with entered(self._node):
            began = time.perf_counter()
            for target in targets:
                client = socket.socket()
                clients.append(client)
                started = time.perf_counter()
                client.connect(target)
                latencies.append(time.perf_counter() - started)
            seconds = time.perf_counter() - began
        for client in clients:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            client.close()
            self._listener.accept()[0].close()
        return statistics.median(latencies), seconds / CONNECTIONS

    def _target(self, choice: random.Random) -> tuple[str, int]:
        if not self._count:
            return objects.endpoint(choice.randrange(COUNTS[0])), objects.TARGET_PORT
        return objects.cluster_ip(choice.randrange(self._count)), objects.PORT


def _load(node: int, count: int) -> None:
    """Give a namespace the tables with a number of Services."""
    balances = {}
    addresses = []
    for number in range(count):
        addresses.append(parse_address(objects.cluster_ip(number)))
        backends = [
            Backend(parse_address(each), objects.TARGET_PORT) for each in objects.endpoints_of(number)
        ]
        frontend = Frontend(Family.IPV4, addresses[-1], Protocol.TCP, objects.PORT)
        balances[frontend] = Balance(tuple(backends), Snat.FOREIGN)
    elements = service_elements(balances, cluster_ips=addresses)
    ruleset = Ruleset(node_tables(TableOptions()), {each.key: each.elements for each in elements})
    with Nft(namespace=node) as nft:
        nft.apply(plan(ruleset, nft.read()))


def connections_per_second(seconds: Mapping[str, Sequence[float]]) -> Table:
    """Return how many connections one process makes in a second, from the mean time of each."""
    rows = [(name, f"{1 / statistics.median(values):,.0f}") for name, values in seconds.items()]
    return Table("new connections per second, one after the other", ("", "median"), tuple(rows))


def against_few(title: str, measured: Mapping[str, Sequence[float]]) -> Table:
    """Return how each number of Services compares with the smallest, round by round, with the interval."""
    base = _named(COUNTS[0])
    rows = []
    for count in COUNTS[1:]:
        ratios = [one / few for one, few in zip(measured[_named(count)], measured[base], strict=True)]
        middle, (low, high) = statistics.median(ratios), median_interval(ratios)
        kept = "kept" if middle <= BOUND else "BROKEN"
        rows.append((_named(count), f"{middle:.3f}", f"{low:.3f} to {high:.3f}", f"<= {BOUND:g}", kept))
    return Table(
        f"{title}, to {base}: median of {len(measured[base])} pairs",
        ("", "ratio", "95 % interval", "bound", ""),
        tuple(rows),
    )
