"""A load of new connections: `load.py ADDRESS PORT RATE` makes RATE requests a second, until SIGINT.

Run as a program of its own, in the network of a pod or a node. Each request is a connection of its own, begun
in time whatever becomes of the others. At the end it prints how many there were, what failed, and how many
seconds the longest one took.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections import Counter

SECONDS = 10.0
"""For which a request may take, lost packets and all."""
REQUEST = b"GET /index.html HTTP/1.0\r\n\r\n"


class Load:
    """The requests made so far."""

    def __init__(self, address: str, port: int) -> None:
        self.failures: Counter[str] = Counter()
        self.count = 0
        self.longest = 0.0
        self._place = address, port

    async def run(self, rate: float, end: asyncio.Event) -> None:
        """Makes requests until the end, and waits for the last ones."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while not end.is_set():
                group.create_task(self._request())
                self.count += 1
                await asyncio.sleep(max(0.0, began + self.count / rate - time.monotonic()))

    async def _request(self) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(SECONDS):
                await self._ask()
        except OSError as error:  # of which TimeoutError is one
            self.failures[f"{type(error).__name__}: {error}"] += 1
        self.longest = max(self.longest, time.monotonic() - began)

    async def _ask(self) -> None:
        reader, writer = await asyncio.open_connection(*self._place)
        try:
            writer.write(REQUEST)
            answer = await reader.read()
        finally:
            writer.close()
        if not answer.startswith(b"HTTP/1.") or b" 200 " not in answer or not answer.endswith(b"ready\n"):
            raise ConnectionError(f"an answer of {answer[:60]!r}")


async def main(address: str, port: int, rate: float) -> None:
    load, end = Load(address, port), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, end.set)
    print("loading", flush=True)
    await load.run(rate, end)
    figures = {"requests": load.count, "failures": load.failures, "longest": round(load.longest, 3)}
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
