"""The bell wakes one thread, and tells of what was overheard when it is asked to."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from datapath.bell import OVERHEAR_SECONDS, Bell

if TYPE_CHECKING:
    from collections.abc import Iterator


class Source:
    """A descriptor that is readable while something is in it."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK)
        self.heard = 0

    def come(self) -> None:
        os.eventfd_write(self.descriptor, 1)

    def empty(self) -> None:
        os.eventfd_read(self.descriptor)

    def hear(self) -> None:
        self.heard += 1


@pytest.fixture
def source() -> Iterator[Source]:
    made = Source()
    yield made
    os.close(made.descriptor)


def quick(bell: Bell) -> bool:
    """Whether the bell did not let us sleep."""
    began = time.monotonic()
    bell.wait(0.2)
    return time.monotonic() - began < 0.15


def test_a_ring_ends_one_sleep() -> None:
    bell = Bell()
    threading.Timer(0.05, bell.ring).start()
    assert quick(bell)
    assert not quick(bell)


def test_requests_end_each_sleep_until_they_are_taken(source: Source) -> None:
    bell = Bell()
    bell.listen(source.descriptor)
    source.come()
    assert quick(bell)
    assert quick(bell)
    source.empty()
    assert not quick(bell)
    source.come()
    bell.listen(None)
    assert not quick(bell)


def test_what_was_overheard_is_told_once_and_only_when_there_is_time(source: Source) -> None:
    bell = Bell()
    bell.overhear(source.descriptor, source.hear)
    bell.tell()
    assert source.heard == 0
    source.come()
    assert quick(bell)
    assert source.heard == 0
    bell.tell()
    assert source.heard == 1
    assert not quick(bell)
    bell.tell()
    assert source.heard == 1
    # Nobody has read it: it is there at once.
    bell.overhear(source.descriptor, source.hear)
    assert quick(bell)
    bell.tell()
    assert source.heard == 2


def test_what_is_ignored_is_not_heard(source: Source) -> None:
    bell = Bell()
    bell.overhear(source.descriptor, source.hear)
    bell.ignore(source.descriptor)
    bell.ignore(source.descriptor)
    source.come()
    assert not quick(bell)
    bell.tell()
    assert source.heard == 0


def test_a_thread_that_never_sleeps_hears_nevertheless(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    bell = Bell()
    bell.wait(0)
    bell.overhear(source.descriptor, source.hear)
    source.come()
    now[0] += OVERHEAR_SECONDS / 2
    bell.tell()
    assert source.heard == 0
    now[0] += OVERHEAR_SECONDS
    bell.tell()
    assert source.heard == 1
