"""ADD and DEL as a runtime sees them, against ptp and bridge with host-local; many at once against ip.

Targets: ADD at least 4 times and DEL at least 5 times as fast as bridge with host-local; fifty ADDs at once
from one gRPC client at least 3 times the rate of four parallel `ip -batch` processes. Medians of one run, the
variants in turn. Needs root and Debian's containernetworking-plugins.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.figures import Figure, table
from bench.lab_node import one_node

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.tables import Table

ROUNDS = {"ipv4": 60, "dual": 20}
"""Fewer for dual-stack: ptp waits a second and a half for duplicate address detection."""
PODS, BURSTS = 50, 7
PROGRAM = Path(__file__).with_name("cni_node.py")


def run() -> Iterator[Table]:
    """Measures in a lab of one node, for pods with IPv4 and for pods with both families."""
    for family, title in (("ipv4", "IPv4 pods"), ("dual", "dual-stack pods")):
        result = asyncio.run(_measure(family))
        remark = f"start of /bin/true: {statistics.median(result['true']):.2f} ms"
        yield table(
            f"{title}: medians of {ROUNDS[family]} rounds and {BURSTS} bursts", figures(result), remark
        )


async def _measure(family: str) -> dict[str, Any]:
    async with one_node(family=family) as (_, node):
        arguments = (str(number) for number in (ROUNDS[family], PODS, BURSTS))
        output = await node.run(sys.executable, str(PROGRAM), family, *arguments, limit=600)
    result: dict[str, Any] = json.loads(output)
    return result


def figures(result: dict[str, Any]) -> list[Figure]:
    """Makes figures of what `bench.cni_node` measured."""
    found = []
    for command, bound in (("ADD", 4.0), ("DEL", 5.0)):
        times: dict[str, Sequence[float]] = {name: each[command] for name, each in result["one"].items()}
        ours = statistics.median(times.pop("weft"))
        for name, values in times.items():
            theirs = statistics.median(values)
            found.append(
                Figure(
                    f"{command} as the runtime sees it",
                    ours,
                    "ms",
                    against=f"{name}+host-local",
                    theirs=theirs,
                    at_least=bound if name == "bridge" else None,
                )
            )
    adds, deletions = zip(*result["burst"], strict=True)
    ours, theirs = statistics.median(adds), statistics.median(result["batches"])
    found.append(
        Figure(
            f"{PODS} ADDs at once, one gRPC client",
            ours * 1000,
            "ms",
            against="four parallel ip -batch",
            theirs=theirs * 1000,
            at_least=3.0,
        )
    )
    found.append(Figure(f"{PODS} DELs at once, one gRPC client", statistics.median(deletions) * 1000, "ms"))
    return found
