"""Which address of a pool is next."""

from __future__ import annotations

import pytest

from ipam import queue as module
from ipam.pool import Pool, Released
from ipam.queue import Queue

SECOND = 1_000_000_000
POOL = Pool(bytes((10, 0, 0, 0)), 29)
ALL = [POOL.address(offset) for offset in range(2, 7)]
A, B, C, *_ = ALL


def all_used(*waiting: Released) -> Queue:
    return Queue(POOL, POOL.end, waiting)


def test_a_never_used_address_goes_before_any_released_one() -> None:
    assert Queue(POOL, 3, [Released(A, 0)]).choose(3600 * SECOND) == B


def test_the_longest_released_goes_when_all_were_used_even_if_it_still_rests() -> None:
    queue = all_used(Released(B, 7), Released(A, 8))
    assert queue.choose(1) == queue.choose(3600 * SECOND) == B


def test_a_long_queue_goes_before_never_used_ones_but_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(POOL, 4, [Released(B, 7), Released(A, 8)])
    assert queue.choose(7) == C
    monkeypatch.setattr(module, "QUEUE_LIMIT", 2)
    assert queue.choose(7) == B
    assert queue.choose(6) == C


def test_nothing_left_is_none() -> None:
    assert all_used().choose(0) is None
    assert Queue(Pool(bytes((10, 0, 0, 0)), 32), 2, ()).choose(0) is None


def test_what_is_taken_is_not_chosen_again_and_what_is_given_back_comes_last() -> None:
    queue = Queue(POOL, 2, ())
    for expected in ALL:
        assert queue.choose(0) == expected
        assert queue.choose(0) == expected, "choosing takes nothing"
        queue.take(expected)
    assert queue.choose(0) is None
    queue.give_back(B, 1)
    queue.give_back(A, 2)
    assert queue.choose(0) == B
    queue.take(B)
    assert queue.choose(0) == A


def test_what_another_pool_handed_out_is_taken_here_too() -> None:
    queue = Queue(POOL, 2, ())
    queue.take(B)
    assert queue.choose(0) == C
    queue.take(bytes((10, 0, 0, 200)))
    assert queue.choose(0) == C


@pytest.mark.parametrize(
    "stranger", [POOL.address(1), POOL.address(7), bytes((10, 0, 1, 2)), bytes(15) + b"\x02"]
)
def test_only_addresses_of_the_pool_wait_in_it(stranger: bytes) -> None:
    queue = all_used()
    queue.give_back(stranger, 0)
    assert queue.choose(0) is None


def test_the_largest_pool_has_its_addresses_too() -> None:
    queue = Queue(Pool(bytes(16), 0), 2, ())
    assert queue.choose(0) == bytes(15) + b"\x02"
