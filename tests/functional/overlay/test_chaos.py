"""Many disturbances in quick succession, in any order: the end is always the same."""

from __future__ import annotations

import asyncio
import random
import shlex
from typing import TYPE_CHECKING, Any

import pytest

from tests.functional.overlay.segment import until
from tests.functional.overlay.test_changes import STALE
from tests.functional.overlay.test_repairs import ACTS

if TYPE_CHECKING:
    from collections.abc import Callable

COMMANDS = [[shlex.split(command) for command in act] for act in ACTS.values()] + [
    [["ip", *shlex.split(command)]] for command in STALE
]


@pytest.mark.parametrize(("seed", "overlay"), [(1, "vxlan"), (2, "auto"), (3, "vxlan"), (4, "auto")])
async def test_any_sequence_of_disturbances_is_repaired(
    pair: Callable[..., Any], seed: int, overlay: str
) -> None:
    made = await pair(overlay)
    await until(made.connected, within=3)
    chance = random.Random(seed)
    for _ in range(40):
        for command in chance.choice(COMMANDS):
            # Some fail because an earlier one took away what they want to change.
            made.a.space.run(*command, check=False)
        if chance.random() < 0.3:
            nodes = [made.node("a", 1), made.node("b", 2)]
            made.segment.publish(*nodes[: chance.choice([1, 2, 2])])
        await asyncio.sleep(chance.choice([0, 0, 0.001, 0.01, 0.05]))
    made.segment.publish(made.node("a", 1), made.node("b", 2))
    # What nobody desires is in nobody's way, so it goes with the next reading, at the latest by the timer.
    made.a.reconciler.request("timer")

    async def in_line() -> bool:
        return not await made.a.differences() and not await made.b.differences()

    await until(in_line, within=5)
    await until(made.connected, within=5)
    await until(in_line, within=2)
