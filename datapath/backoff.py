"""How long something that failed rests before it is tried again, and who is told. No clock, no sleep."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Backoff:
    """Pauses that double with each failure in a row, up to a limit."""

    def __init__(self, report: Callable[[str], None], first: float, limit: float) -> None:
        """Begin without a failure.

        Args:
            report: told of each failure in words, and "" when something succeeds after failures.
            first: the pause after the first failure, in seconds.
            limit: the longest pause.
        """
        self._report = report
        self._first = first
        self._limit = limit
        self._pause = first
        self._failing = False

    def failed(self, error: Exception) -> float:
        """Return how many seconds to wait now."""
        self._report(str(error))
        pause, self._pause = self._pause, min(2 * self._pause, self._limit)
        self._failing = True
        return pause

    def succeeded(self) -> None:
        """Begin anew with the next failure."""
        if self._failing:
            self._failing = False
            self._pause = self._first
            self._report("")
