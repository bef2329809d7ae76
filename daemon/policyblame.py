"""Finds the policies that the kernel refuses among those that it refused together, and asks again later.

Owns the search, by halves, and its pauses; how the kernel is asked is given from outside.
"""

from __future__ import annotations

import asyncio
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

from datapath.backoff import Backoff
from datapath.errors import DatapathError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from daemon.compile.policy import Policies
    from daemon.compile.policy_tables import PolicyTables
    from datapath.nft.plan import Transaction
    from datapath.policy import PolicyPart, Rules

TOGETHER = 100
"""Policies that are tried in one transaction at most: each holds the kernel's lock of nftables."""
RETRY_SECONDS = 15.0
"""Until the kernel is asked again for what it refused, the first time; the time doubles."""
RETRY_LIMIT_SECONDS = 300.0
_NONE: Mapping[PolicyPart, Rules] = MappingProxyType({})


class Blame:
    """Keeps what the model holds for refused true.

    Args:
        model: told what the kernel refuses, and what it takes again.
        tables: what the kernel was given.
        attempt: returns what the kernel has against a transaction, None where nothing.
    """

    def __init__(
        self,
        model: Policies,
        tables: PolicyTables,
        attempt: Callable[[Transaction], Awaitable[DatapathError | None]],
    ) -> None:
        self._model = model
        self._tables = tables
        self._attempt = attempt
        self._backoff = Backoff(lambda _: None, RETRY_SECONDS, RETRY_LIMIT_SECONDS)
        self._at = 0.0

    @property
    def pause(self) -> float | None:
        """Seconds until the kernel is asked again; None while it refuses nothing."""
        return max(0.0, self._at - asyncio.get_running_loop().time()) if self._model.refused else None

    async def find(self) -> bool:
        """Find what the kernel refuses of what it was given; return whether that is anything."""
        found = await find(self._tables.divisible, partial(self._refusal, _NONE))
        if found:
            self._model.refuse(found)
            self._rest()
        return bool(found)

    async def ask_again(self) -> bool:
        """Ask for what was refused, if that is due; return whether the kernel would take some of it now."""
        if self.pause != 0.0:
            return False
        withheld = self._model.withheld
        refusal = partial(self._refusal, withheld)
        # While it refuses even none of them it says nothing about them.
        refused = withheld if await refusal(()) else await find(list(withheld), refusal)
        taken = withheld.keys() - refused.keys()
        self._model.admit(taken)
        if self._model.refused:
            self._rest()
        else:
            self._backoff.succeeded()
        return bool(taken)

    async def _refusal(self, withheld: Mapping[PolicyPart, Rules], parts: Sequence[PolicyPart]) -> str:
        error = await self._attempt(self._tables.trial(parts, withheld))
        return str(error) if error is not None else ""

    def _rest(self) -> None:
        pause = self._backoff.failed(DatapathError("the kernel refuses policies"))
        self._at = asyncio.get_running_loop().time() + pause


async def find(
    parts: Sequence[PolicyPart], refusal: Callable[[Sequence[PolicyPart]], Awaitable[str]]
) -> dict[PolicyPart, str]:
    """Return those that are refused by themselves, each with the kernel's words.

    Args:
        parts: the suspects.
        refusal: what the kernel has against these, "" where nothing.

    Returns nothing where the kernel refuses even none of them: then the fault is elsewhere.
    """
    if await refusal(()):
        return {}
    found: dict[PolicyPart, str] = {}
    waiting = [list(parts[start : start + TOGETHER]) for start in range(0, len(parts), TOGETHER)]
    while waiting:
        some = waiting.pop()
        error = await refusal(some)
        if not error:
            continue
        if len(some) == 1:
            found[some[0]] = error
        else:
            half = len(some) // 2
            waiting += (some[:half], some[half:])
    return found
