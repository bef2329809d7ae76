"""Which address of a pool is next: one never used, or one that was released. Pure: knows no database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipam.pool import QUEUE_LIMIT, RESERVED_LOW

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ipam.pool import Pool, Released


class Queue:
    """The addresses of one pool that nobody holds.

    Attributes:
        pool: whose they are.
    """

    __slots__ = ("_cursor", "_end", "_first", "_size", "_waiting", "pool")

    def __init__(self, pool: Pool, used: int, waiting: Iterable[Released]) -> None:
        """Make it.

        Args:
            pool: whose addresses these are.
            used: offset from where on nothing was ever used.
            waiting: what was used and is not held, released first comes first.
        """
        network = int.from_bytes(pool.network, "big")
        self.pool = pool
        self._size = len(pool.network)
        # Addresses as numbers: where the pool begins and ends, and what was never used.
        self._first, self._end = network + RESERVED_LOW, network + pool.end
        self._cursor = network + used
        self._waiting = dict(waiting)

    def choose(self, rested: int) -> bytes | None:
        """Return the address to hand out next, or None when there is none.

        That is the one that has been free for longest: one never used, else the one released first. A rest is
        cut short only when nothing else is left.

        Args:
            rested: what was released later than then should rest (nanoseconds of CLOCK_BOOTTIME).
        """
        fresh = self._cursor < self._end
        waiting = self._waiting
        if not fresh or len(waiting) >= QUEUE_LIMIT:
            for oldest in waiting:
                if not fresh or waiting[oldest] <= rested:
                    return oldest
                break
        return self._cursor.to_bytes(self._size, "big") if fresh else None

    def take(self, address: bytes) -> None:
        """Hand out an address of this pool's family; the pool may have it or not, as pools may overlap."""
        if address in self._waiting:
            del self._waiting[address]
            return
        number = int.from_bytes(address, "big")
        if self._cursor <= number < self._end:
            self._cursor = number + 1

    def give_back(self, address: bytes, at: int) -> None:
        """Let an address wait, of whatever family, if it is the pool's."""
        if len(address) == self._size and self._first <= int.from_bytes(address, "big") < self._end:
            self._waiting[address] = at
