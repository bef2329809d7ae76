"""Finds the policies that the kernel refuses among those that it refused together, by halves.

Owns the search; what is asked of the kernel, and how, is given from outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from datapath.policy import PolicyPart

TOGETHER = 100
"""Policies that are tried in one transaction at most: each holds the kernel's lock of nftables."""


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
