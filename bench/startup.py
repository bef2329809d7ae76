"""How long the daemon takes from its start until it is ready, and how much of that is Python's and imports'.

Started anew in a node that has its pods, as after an upgrade. Needs root.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from bench.figures import Figure, table
from bench.lab_node import one_node

if TYPE_CHECKING:
    from bench.tables import Table
    from lab.node import Node

ROUNDS = 5
_READY = (
    "import http.client, sys, time\n"
    "while True:\n"
    "    try:\n"
    "        c = http.client.HTTPConnection('127.0.0.1', 10256, timeout=1)\n"
    "        c.request('GET', '/readyz')\n"
    "        if c.getresponse().status == 200: break\n"
    "    except OSError: pass\n"
    "    time.sleep(0.005)\n"
    "print(time.time())\n"
)
"""Run in the node: prints the time at which the daemon is ready, and is started before the daemon is."""


def run() -> list[Table]:
    """Measures in a lab of one node."""
    imports = [_imports() for _ in range(ROUNDS)]
    times = asyncio.run(_measure())
    figures = [
        Figure("start until ready", statistics.median(times), "s"),
        Figure("of that, Python and imports", statistics.median(imports), "s"),
    ]
    return [table(f"medians of {ROUNDS} starts", figures)]


def _imports() -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import uvloop, daemon.agent"], check=True)
    return time.perf_counter() - begin


async def _measure() -> list[float]:
    async with one_node() as (_, node):
        return [await _restart(node) for _ in range(ROUNDS)]


async def _restart(node: Node) -> float:
    await node.daemon.stop()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(node.run(sys.executable, "-c", _READY, limit=60))
        await asyncio.sleep(0.5)
        begin = time.time()
        await node.start_daemon()
    return float(waiting.result()) - begin
