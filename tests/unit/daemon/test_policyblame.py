"""The search for who is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from daemon.policyblame import TOGETHER, find
from datapath.policy import Direction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapath.policy import PolicyPart

PARTS: list[PolicyPart] = [(f"shop/p{number}", Direction.INGRESS) for number in range(250)]


class Kernel:
    """Refuses some."""

    def __init__(self, *bad: int, always: bool = False) -> None:
        self.bad = {PARTS[each] for each in bad}
        self.always = always
        self.asked: list[int] = []

    async def refusal(self, parts: Sequence[PolicyPart]) -> str:
        self.asked.append(len(parts))
        return "no" if self.always or self.bad.intersection(parts) else ""


@pytest.mark.parametrize("bad", [(0,), (249,), (7, 8), (0, 99, 100, 249)])
async def test_those_at_fault_are_found_and_no_others(bad: tuple[int, ...]) -> None:
    kernel = Kernel(*bad)
    assert await find(PARTS, kernel.refusal) == {PARTS[each]: "no" for each in bad}
    assert max(kernel.asked) == TOGETHER
    assert len(kernel.asked) < 4 + len(bad) * 2 * 8, "by halves"


async def test_nobody_is_blamed_for_what_is_refused_together_only() -> None:
    assert await find(PARTS, Kernel().refusal) == {}


async def test_nobody_is_blamed_where_the_kernel_refuses_everything() -> None:
    kernel = Kernel(always=True)
    assert await find(PARTS, kernel.refusal) == {}
    assert kernel.asked == [0]
