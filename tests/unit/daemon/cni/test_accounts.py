"""When the books are kept: after a burst, at once for a refusal, and never later than patience allows."""

from __future__ import annotations

import asyncio
import time

import pytest

from daemon.cni import accounts
from daemon.cni.accounts import Accounts, Trace
from daemon.cni.errors import CniError, Code
from daemon.metrics import Metrics


class Books:
    def __init__(self) -> None:
        self.busy = False
        self.metrics = Metrics()
        self.accounts = Accounts(self.metrics, busy=lambda: self.busy, attachments=lambda: 7)

    def note(self, failure: CniError | None = None) -> None:
        self.accounts.note(Trace("ADD", time.perf_counter(), failure=failure))

    def counted(self, code: str = "0") -> float | None:
        labels = {"command": "ADD", "code": code}
        return self.metrics.registry.get_sample_value("weft_cni_requests_total", labels)


@pytest.fixture
def books(monkeypatch: pytest.MonkeyPatch) -> Books:
    monkeypatch.setattr(accounts, "SETTLE_SECONDS", 0.001)
    return Books()


async def test_answers_are_counted_when_nothing_is_under_way(books: Books) -> None:
    books.busy = True
    books.note()
    books.note()
    await asyncio.sleep(0.02)
    assert books.counted() is None
    books.busy = False
    await asyncio.sleep(0.02)
    assert books.counted() == 2
    assert books.metrics.registry.get_sample_value("weft_attachments") == 7


async def test_a_refusal_is_counted_at_once_with_all_before_it(books: Books) -> None:
    books.busy = True
    books.note()
    books.note(CniError(Code.EXHAUSTED, "no address"))
    await asyncio.sleep(0)
    assert (books.counted(), books.counted("101")) == (1, 1)


async def test_a_request_that_hangs_delays_the_books_only_so_long(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "PATIENCE_SECONDS", 0.01)
    books.busy = True
    books.note()
    await asyncio.sleep(0.05)
    assert books.counted() == 1
