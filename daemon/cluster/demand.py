"""A list-watch that runs only while somebody needs it, and whose table is empty while nobody does.

Starting is put off by a random moment, since what makes one node need it may concern all nodes at once.
Stopping is put off too: who needs it again soon, as when a policy is replaced, finds it still running.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.cluster.reflector import Reflector
    from daemon.cluster.store import Table

log = structlog.get_logger()

SPREAD_SECONDS = 1.0
LINGER_SECONDS = 300.0


class Demand:
    """Starts and stops the follower of one table; `run` is a task that never ends."""

    def __init__(
        self,
        follow: Callable[[], Reflector[Any]],
        table: Table[Any],
        *,
        spread: float = SPREAD_SECONDS,
        linger: float = LINGER_SECONDS,
    ) -> None:
        """Connect the parts.

        Args:
            follow: makes a follower of the table; a new one for each start, which has to list anew.
            table: what it fills.
            spread: seconds; a start is put off by up to this.
            linger: seconds that the follower goes on after the last need.
        """
        self._follow = follow
        self._table = table
        self._spread = spread
        self._linger = linger
        self._wanted = asyncio.Event()
        self._unwanted = asyncio.Event()
        self._unwanted.set()

    @property
    def wanted(self) -> bool:
        """Whether somebody needs the table."""
        return self._wanted.is_set()

    def want(self, wanted: bool) -> None:
        """Say whether the table is needed from now on; saying it again changes nothing."""
        on, off = (self._wanted, self._unwanted) if wanted else (self._unwanted, self._wanted)
        on.set()
        off.clear()

    async def run(self) -> None:
        """Follow whenever it is wanted, until cancelled. A follower that fails ends this too."""
        while True:
            await self._wanted.wait()
            await asyncio.sleep(self._spread * random.random())  # noqa: S311 - spreads load
            log.info("following", kind=self._table.kind)
            follower = self._follow()
            async with asyncio.TaskGroup() as group:
                task = group.create_task(follower.run(), name=f"list-watch of {self._table.kind}s")
                await self._enough()
                task.cancel()
            self._table.abandon()
            follower.retire()
            log.info("following no longer", kind=self._table.kind)

    async def _enough(self) -> None:
        """Return once nobody has wanted it for the whole time that it lingers."""
        while True:
            await self._unwanted.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._linger):
                    await self._wanted.wait()
            if not self.wanted:
                return
