"""Cuts connections that policies forbid by now, and lets those go on again that they allow.

Rules accept what has begun earlier, so a stricter policy would leave alone whoever is connected. A bit of the
tracked flow's mark says that it may not go on, and the first rules drop what bears it. Which flows these are
follows from the model alone: after changes that may matter, after rules were repaired, and at the start,
flows of isolated pods are read, each kind is judged once, and what differs is marked or unmarked.

Owns when that happens. Decides nothing about a connection (daemon.compile.policy_flows), and knows no rules.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

import structlog

from daemon.compile.policy_flows import Effect, isolated, judge
from datapath import marking
from datapath.backoff import Backoff
from datapath.conntrack import local_addresses
from datapath.errors import DatapathError
from datapath.netlink.transport import NETLINK_NETFILTER, Socket
from datapath.nft.policy import CUT_MARK

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from daemon.compile.policy import Policies
    from datapath.desired import Address
    from datapath.marking import Ends, Found

log = structlog.get_logger()

SLICE = 200
"""Kinds of connections that are judged in one go: some 2 ms, in which the loop serves nobody else."""
SHARE, REST_LIMIT_SECONDS = 2.0, 0.4
"""The rest after a round, in which changes gather: as a multiple of what it took, and at most."""
RETRY_SECONDS, RETRY_LIMIT_SECONDS = 0.5, 30.0


class Policed(Protocol):
    """What is read of the policies (daemon.policing.Policing)."""

    @property
    def model(self) -> Policies:
        """The policies as they concern this node."""

    @property
    def complete(self) -> bool:
        """Whether the model knows everybody whom policies may let in or out."""

    async def settled(self) -> None:
        """Return when nothing is pending in the model."""


class _Sockets(NamedTuple):
    """For listing flows, for marking them meanwhile, and for the addresses of this node."""

    listing: Socket
    writing: Socket
    route: Socket

    def close(self) -> None:
        for each in self:
            each.close()


class Cutting:
    """The loop. `look` is for the event loop's thread; `run` is a task that never ends."""

    def __init__(
        self,
        policed: Policed,
        *,
        namespace: int | None = None,
        cut: Callable[[int], object] = lambda _: None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Nothing runs yet.

        Args:
            policed: the policies.
            namespace: descriptor of the flows' network namespace; None is the daemon's.
            cut: told of each round how many flows it cut.
            report: told why rounds fail, and "" when one succeeded again.
        """
        self._policed = policed
        self._namespace = namespace
        self._cut = cut
        self._report = report
        # What an earlier daemon saw and did, nobody knows.
        self._effect = Effect.STRICTER
        self._marked = True
        """Whether there may be flows that bear the bit."""
        self._wake = asyncio.Event()
        self._wake.set()
        self._sockets: _Sockets | None = None

    def look(self, effect: Effect) -> None:
        """Have connections judged again; call it when the kernel has the rules that are meant."""
        if effect is not Effect.NONE:
            self._effect = max(self._effect, effect)
            self._wake.set()

    async def run(self) -> None:
        """Judge whenever there is a reason."""
        retries = Backoff(self._report, RETRY_SECONDS, RETRY_LIMIT_SECONDS)
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                effect, self._effect = self._effect, Effect.NONE
                began = time.monotonic()
                try:
                    await self._round(effect)
                except DatapathError as error:
                    self._close()
                    self.look(effect)
                    await asyncio.sleep(retries.failed(error))
                    continue
                retries.succeeded()
                await asyncio.sleep(min(SHARE * (time.monotonic() - began), REST_LIMIT_SECONDS))
        finally:
            self._close()

    async def _round(self, effect: Effect) -> None:
        await self._policed.settled()
        addresses = isolated(self._policed.model) if effect is Effect.STRICTER else frozenset()
        if not addresses and not self._marked:
            return
        found, local = await asyncio.to_thread(self._read, addresses)
        judged = await self._judge(found, local)
        wanted = {ends: must for ends, must in judged.items() if _differs(found[ends], must)}
        if wanted:
            cut, cleared = await asyncio.to_thread(self._write, addresses, wanted)
            self._cut(cut)
            log.info("policies changed what is connected", cut=cut, allowed_again=cleared)
        self._marked = any(judged.get(ends, kind.marked) for ends, kind in found.items())

    async def _judge(self, found: Mapping[Ends, Found], local: frozenset[Address]) -> dict[Ends, bool]:
        judged: dict[Ends, bool] = {}
        every = iter(found)
        while batch := list(itertools.islice(every, SLICE)):
            await self._policed.settled()
            model, complete = self._policed.model, self._policed.complete
            judged |= judge(model, batch, local, complete=complete)
            await asyncio.sleep(0)
        return judged

    # On a thread.

    def _read(self, addresses: frozenset[Address]) -> tuple[dict[Ends, Found], frozenset[Address]]:
        sockets = self._open()
        found = marking.read(sockets.listing, addresses, CUT_MARK) if addresses else {}
        if self._marked:
            # Also those of pods that nobody isolates any more.
            for ends, each in marking.read(sockets.listing, None, CUT_MARK).items():
                found.setdefault(ends, each)
        return found, local_addresses(sockets.route)

    def _write(self, addresses: frozenset[Address], wanted: Mapping[Ends, bool]) -> tuple[int, int]:
        sockets = self._open()
        selections = [each for each, needed in ((addresses, bool(addresses)), (None, self._marked)) if needed]
        counts = [
            marking.write(sockets.listing, sockets.writing, each, CUT_MARK, wanted) for each in selections
        ]
        return sum(cut for cut, _ in counts), sum(cleared for _, cleared in counts)

    def _open(self) -> _Sockets:
        if self._sockets is None:
            self._sockets = _Sockets(
                Socket(NETLINK_NETFILTER, namespace=self._namespace),
                Socket(NETLINK_NETFILTER, namespace=self._namespace),
                Socket(namespace=self._namespace),
            )
        return self._sockets

    def _close(self) -> None:
        opened, self._sockets = self._sockets, None
        if opened is not None:
            opened.close()


def _differs(kind: Found, must: bool) -> bool:
    return kind.unmarked if must else kind.marked
