from __future__ import annotations

from datapath.backoff import Backoff


def test_pauses_double_up_to_the_limit_and_begin_anew_after_success() -> None:
    told: list[str] = []
    retries = Backoff(told.append, 0.5, 2.0)
    retries.succeeded()
    assert [retries.failed(OSError("no")) for _ in range(4)] == [0.5, 1.0, 2.0, 2.0]
    retries.succeeded()
    retries.succeeded()
    assert retries.failed(OSError("again")) == 0.5
    assert told == ["no"] * 4 + ["", "again"]
