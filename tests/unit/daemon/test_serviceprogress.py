"""What waits, since when, and what kube-proxy's metrics say of it."""

from __future__ import annotations

import pytest

from daemon.metrics import Metrics
from daemon.serviceprogress import LATE_SECONDS, Progress

PREFIX = "kubeproxy_sync_proxy_rules"
START = 1_700_000_000.0


class Figures:
    """A progress whose time is set by the test."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.time = 0.0
        self.progress = Progress(self.metrics, clock=lambda: self.time, now=lambda: START + self.time)

    def value(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(name)

    def late(self) -> bool:
        return self.progress.late

    def programmed(self) -> tuple[float | None, float | None]:
        name = "kubeproxy_network_programming_duration_seconds"
        return self.value(f"{name}_count"), self.value(f"{name}_sum")


@pytest.fixture
def figures() -> Figures:
    return Figures()


def test_changes_are_counted_and_pending_until_a_round_is_through(figures: Figures) -> None:
    progress = figures.progress
    assert (progress.applied, progress.waited, progress.late) == (False, 0.0, False)
    progress.service_changed()
    figures.time = 2
    progress.endpoints_changed("a/b")
    progress.endpoints_changed("a/c")
    assert progress.waited == 2
    assert figures.value(f"{PREFIX}_service_changes_total") == 1
    assert figures.value(f"{PREFIX}_endpoint_changes_total") == 2
    assert figures.value(f"{PREFIX}_endpoint_changes_pending") == 2
    assert figures.value(f"{PREFIX}_last_queued_timestamp_seconds") == START + 2
    with progress.round():
        figures.time = 5
        assert progress.waited == 5
    assert (progress.applied, progress.waited) == (True, 0.0)
    assert figures.value(f"{PREFIX}_duration_seconds_sum") == 3
    assert figures.value(f"{PREFIX}_last_timestamp_seconds") == START + 5
    assert figures.value(f"{PREFIX}_service_changes_pending") == 0
    assert figures.value(f"{PREFIX}_endpoint_changes_pending") == 0


def test_what_changes_during_a_round_waits_for_the_next(figures: Figures) -> None:
    progress = figures.progress
    with progress.round():
        figures.time = 1
        progress.service_changed()
        figures.time = 2
    assert progress.waited == 1
    assert figures.value(f"{PREFIX}_service_changes_pending") == 1
    with progress.round():
        pass
    assert progress.waited == 0


def test_a_failed_round_leaves_everything_waiting_since_the_first_change(figures: Figures) -> None:
    progress = figures.progress
    progress.endpoints_changed("a/b", START + 1)
    figures.time = 10

    def fail() -> None:
        with progress.round():
            progress.service_changed()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (progress.applied, progress.waited) == (False, 10)
    assert figures.value(f"{PREFIX}_endpoint_changes_pending") == 1
    assert figures.value(f"{PREFIX}_service_changes_pending") == 1
    assert figures.programmed() == (0, 0)
    figures.time = LATE_SECONDS
    assert not figures.late()
    figures.time += 1
    assert figures.late()
    with progress.round():
        assert figures.late()
    assert not figures.late()
    assert figures.programmed() == (1, LATE_SECONDS)


def test_programming_is_measured_from_the_trigger_once_for_each(figures: Figures) -> None:
    progress = figures.progress
    figures.time = 4
    progress.endpoints_changed("a/before", START - 1)
    progress.endpoints_changed("a/b", START + 1)
    progress.endpoints_changed("a/b", START + 1)
    progress.endpoints_changed("a/b", START + 3)
    progress.endpoints_changed("a/ahead", START + 100)
    progress.endpoints_changed("a/none")
    with progress.round():
        pass
    assert figures.programmed() == (3, 3 + 1 + 0)
    progress.endpoints_changed("a/b", START + 3)
    with progress.round():
        pass
    assert figures.programmed() == (3, 4)
    progress.endpoints_changed("a/b")
    progress.endpoints_changed("a/b", START + 3)
    with progress.round():
        pass
    assert figures.programmed() == (4, 5)
