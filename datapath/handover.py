"""Sees to it that an address carries nothing of its former owner: tracked flows go before it is given out.

Who isolates pods accepts what is established, and NAT is asked for the first packet only. So a flow that
outlived its pod would lead to the next pod of that address, whatever policies say. Every flow that has such
an address at any of its four ends is deleted, of every protocol.

Normally that is over long before: an address that is given back rests, and a sweep soon afterwards cleans
all that were given back together, in one listing of the flows. An address that is taken earlier is cleaned
first. Nothing is written down: what a new daemon does not know to be clean, it cleans once, by whole pools.
Packets to an address that nobody holds meet an unreachable route, so no flow comes to be while it rests.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

from datapath.conntrack import SHARE, delete_listed
from datapath.errors import DatapathError
from datapath.netlink.ctnetlink import flow_addresses, get_flows
from datapath.netlink.transport import NETLINK_NETFILTER, Socket

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from datapath.desired import Address
    from datapath.nft.elements import Range

GATHER_SECONDS = 2.0
"""How long addresses gather that were given back, so that one listing does for all of them."""
RETRY_SECONDS = 5.0


def forget(
    netfilter: Socket,
    addresses: Collection[Address],
    pools: Iterable[Range] = (),
    held: Collection[Address] = (),
) -> int:
    """Delete every flow that has one of the addresses at any end, or one of a pool; return how many.

    Args:
        netfilter: of protocol NETLINK_NETFILTER, in the namespace of the flows.
        addresses: of both families.
        pools: likewise.
        held: those of the pools that are left alone.

    Raises:
        DatapathError: the kernel can't list or delete flows; some may be deleted already.
    """
    spans = tuple((len(first), first, last) for first, last in pools)

    def concerned(payload: bytes) -> bool:
        for each in flow_addresses(payload):
            if each in addresses:
                return True
            for width, first, last in spans:
                if first <= each <= last and len(each) == width and each not in held:
                    return True
        return False

    return delete_listed(netfilter, get_flows(), concerned)


class Handover:
    """Knows which addresses are clean.

    `give_back` and `require_clean` are for the thread that gives addresses out, `run` is a task of the loop
    that `loop` names; sweeps of both exclude each other.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        namespace: int | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Nothing runs yet.

        Args:
            loop: runs the task.
            namespace: descriptor of the flows' network namespace; None is the daemon's.
            report: told, on the loop, why sweeps fail, and "" when one succeeded again.
        """
        self._loop = loop
        self._namespace = namespace
        self._report = report
        self._lock = threading.Lock()
        self._unclean: set[Address] = set()
        self._known: set[Range] = set()
        self._wake = asyncio.Event()
        self._sweeping = threading.Lock()
        self._socket: Socket | None = None
        self._failure = ""

    @property
    def waiting(self) -> int:
        """How many addresses are not known to be clean, besides those of pools never seen."""
        return len(self._unclean)

    def give_back(self, addresses: Iterable[Address]) -> None:
        """Take addresses whose owner is cut off; they are cleaned soon."""
        with self._lock:
            self._unclean.update(addresses)
        self._loop.call_soon_threadsafe(self._wake.set)

    def require_clean(
        self,
        addresses: Collection[Address],
        pools: Collection[Range] = (),
        held: Callable[[], Iterable[Address]] = tuple,
    ) -> None:
        """Return as soon as these addresses are clean, which they mostly are.

        Args:
            addresses: that are about to be given out.
            pools: what is given out is from one of these. A pool that was never seen is cleaned as a whole.
            held: names addresses of the pools that have an owner, whose flows are left alone.

        Raises:
            DatapathError: they can't be cleaned.
        """
        if self._unclean.isdisjoint(addresses) and self._known.issuperset(pools):
            return
        with self._sweeping:
            new = [each for each in pools if each not in self._known]
            # Somebody else's sweep may just have ended that did it.
            if new or not self._unclean.isdisjoint(addresses):
                self._sweep(new, frozenset(held()).difference(addresses) if new else frozenset())

    async def run(self) -> None:
        """Clean what was given back; never ends."""
        try:
            while True:
                await self._wake.wait()
                await asyncio.sleep(GATHER_SECONDS)
                self._wake.clear()
                began = time.monotonic()
                try:
                    await asyncio.to_thread(self._clean)
                except DatapathError:
                    self._wake.set()
                    await asyncio.sleep(RETRY_SECONDS)
                await asyncio.sleep(SHARE * (time.monotonic() - began))
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the socket; another sweep opens one again."""
        with self._sweeping:
            self._close()

    def _clean(self) -> None:
        with self._sweeping:
            if self._unclean:
                self._sweep((), frozenset())

    def _sweep(self, pools: Collection[Range], held: frozenset[Address]) -> None:
        """Clean what is not clean; the caller holds the lock of sweeps."""
        with self._lock:
            unclean = frozenset(self._unclean)
        try:
            if self._socket is None:
                self._socket = Socket(NETLINK_NETFILTER, namespace=self._namespace)
            forget(self._socket, unclean, pools, held)
        except DatapathError as error:
            self._close()
            self._failure = str(error)
            self._loop.call_soon_threadsafe(self._report, self._failure)
            raise
        with self._lock:
            # None of them was given out meanwhile: who wanted to waits for this sweep.
            self._unclean -= unclean
            self._known.update(pools)
        if self._failure:
            self._failure = ""
            self._loop.call_soon_threadsafe(self._report, "")

    def _close(self) -> None:
        opened, self._socket = self._socket, None
        if opened is not None:
            opened.close()
