"""What the writer's thread sleeps on: its bell, the requests of runtimes, and what it overhears for others.

Owns an epoll instance and an eventfd. Wakes nobody but the thread that waits here: who is to learn that
something was overheard is told when that thread has time (`tell`), not while it works on a request.
"""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

OVERHEAR_SECONDS = 0.1
"""So often a thread that never sleeps looks at what it overhears: unread notifications get lost."""


class Bell:
    """Wakes one thread. All but `wait` and `tell` may be called by any thread, one at a time."""

    def __init__(self) -> None:
        self._rung = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.epoll()
        self._poll.register(self._rung, select.EPOLLIN)
        self._served: int | None = None
        self._overheard: dict[int, Callable[[], object]] = {}
        self._heard: list[Callable[[], object]] = []
        self._looked = 0.0

    def __del__(self) -> None:
        os.close(self._rung)

    def listen(self, descriptor: int | None) -> None:
        """Wake for this descriptor from now on instead of the one before, as long as it is readable."""
        if self._served is not None:
            self._poll.unregister(self._served)
        if descriptor is not None:
            self._poll.register(descriptor, select.EPOLLIN)
        self._served = descriptor

    def overhear(self, descriptor: int, heard: Callable[[], object]) -> None:
        """Have `tell` call `heard` once, as soon as the descriptor is readable."""
        known = descriptor in self._overheard
        self._overheard[descriptor] = heard
        change = self._poll.modify if known else self._poll.register
        change(descriptor, select.EPOLLIN | select.EPOLLONESHOT)

    def ignore(self, descriptor: int) -> None:
        """Forget a descriptor that was to be overheard; its `heard` may still be called once."""
        if self._overheard.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def ring(self) -> None:
        """Wake the thread."""
        os.eventfd_write(self._rung, 1)

    def wait(self, seconds: float | None) -> None:
        """Sleep, for so many seconds at most; None is for ever."""
        for descriptor, _ in self._poll.poll(seconds):
            if descriptor == self._rung:
                os.eventfd_read(self._rung)
            elif descriptor != self._served:
                heard = self._overheard.get(descriptor)
                if heard is not None:
                    self._heard.append(heard)
        self._looked = time.monotonic()

    def tell(self) -> None:
        """Call who is to learn of what was overheard."""
        if time.monotonic() - self._looked > OVERHEAR_SECONDS:
            self.wait(0)
        while self._heard:
            self._heard.pop()()
