"""When addresses are cleaned, what is asked of the kernel for it, and who waits for whom."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

import pytest

from datapath import handover
from datapath.errors import DatapathError
from datapath.handover import Handover
from datapath.nft.elements import Range

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterable

    from datapath.netlink.transport import Socket

ONE, TWO = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
POOL = Range(ONE, bytes((10, 0, 0, 9)))


class Kernel:
    """Stands for the socket and for `forget`."""

    def __init__(self) -> None:
        self.sweeps: list[tuple[set[bytes], list[Range], set[bytes]]] = []
        self.failures: list[DatapathError] = []
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Event()
        self.closed = 0

    def open(self, protocol: int, *, namespace: int | None = None) -> Kernel:  # noqa: ARG002
        return self

    def close(self) -> None:
        self.closed += 1

    def forget(
        self,
        netfilter: Socket,  # noqa: ARG002
        addresses: Collection[bytes],
        pools: Iterable[Range] = (),
        held: Collection[bytes] = (),
    ) -> int:
        self.begun.set()
        self.go.wait(5)
        if self.failures:
            raise self.failures.pop(0)
        self.sweeps.append((set(addresses), list(pools), set(held)))
        return 0


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(handover, "Socket", made.open)
    monkeypatch.setattr(handover, "forget", made.forget)
    monkeypatch.setattr(handover, "GATHER_SECONDS", 0.02)
    monkeypatch.setattr(handover, "RETRY_SECONDS", 0.01)
    return made


@contextlib.asynccontextmanager
async def running(made: Handover) -> AsyncIterator[None]:
    task = asyncio.ensure_future(made.run())
    async with asyncio.timeout(5):
        yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def settled(made: Handover) -> None:
    for _ in range(1000):
        if not made.waiting:
            return
        await asyncio.sleep(0.005)


async def test_what_was_given_back_is_cleaned_together_before_anybody_asks(kernel: Kernel) -> None:
    made = Handover(asyncio.get_running_loop())
    async with running(made):
        for each in (ONE, TWO):
            await asyncio.to_thread(made.give_back, (each,))
        await settled(made)
        made.require_clean((ONE, TWO))
    assert kernel.sweeps == [({ONE, TWO}, [], set())]
    assert kernel.closed == 1


async def test_what_is_taken_early_is_cleaned_first(kernel: Kernel) -> None:
    made = Handover(asyncio.get_running_loop())
    made.give_back((ONE, TWO))
    made.require_clean((TWO,))
    made.require_clean((ONE,))
    assert kernel.sweeps == [({ONE, TWO}, [], set())]


async def test_a_pool_is_cleaned_once(kernel: Kernel) -> None:
    made = Handover(asyncio.get_running_loop())
    for _ in range(2):
        made.require_clean((ONE,), {POOL}, lambda: (ONE, TWO))
    assert kernel.sweeps == [(set(), [POOL], {TWO})]


async def test_who_takes_an_address_that_is_being_cleaned_waits_for_that(kernel: Kernel) -> None:
    made = Handover(asyncio.get_running_loop())
    kernel.go.clear()
    async with running(made):
        made.give_back((ONE,))
        assert await asyncio.to_thread(kernel.begun.wait, 5)
        taking = asyncio.ensure_future(asyncio.to_thread(made.require_clean, (ONE,)))
        made.give_back((TWO,))
        await asyncio.sleep(0.05)
        assert not taking.done()
        kernel.go.set()
        await taking
        assert kernel.sweeps[0] == ({ONE}, [], set())
        await settled(made)
    assert kernel.sweeps == [({ONE}, [], set()), ({TWO}, [], set())]


async def test_what_cannot_be_cleaned_is_not_handed_out_and_tried_again(kernel: Kernel) -> None:
    reports: list[str] = []
    made = Handover(asyncio.get_running_loop(), report=reports.append)
    kernel.failures = [DatapathError("no"), DatapathError("not yet")]
    made.give_back((ONE,))
    with pytest.raises(DatapathError, match="no"):
        made.require_clean((ONE,))
    assert made.waiting == 1
    async with running(made):
        await settled(made)
        await asyncio.sleep(0.02)
    assert reports == ["no", "not yet", ""]
