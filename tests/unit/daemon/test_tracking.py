"""How connection tracking is sized, what can be set here, and when its fill level is told."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, cast

import pytest

from daemon import tracking
from daemon.config import Config
from daemon.findings import Findings
from daemon.metrics import Metrics
from datapath import sysctls
from datapath.desired import Fragment, Sysctl
from datapath.errors import DatapathError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from datapath.desired import FragmentKey


def wanted(cores: int = 2, **keys: int) -> dict[str, tuple[str, bool]]:
    found = tracking.settings(Config(**cast(Any, keys)), cores)
    return {each.path.removeprefix("net/netfilter/nf_conntrack_"): (each.value, each.least) for each in found}


@pytest.mark.parametrize(
    ("cores", "limit"),
    [(1, 131072), (4, 131072), (5, 163840), (64, 2097152)],
)
def test_the_defaults_are_kube_proxys(cores: int, limit: int) -> None:
    assert wanted(cores) == {
        "buckets": (str(limit // 4), True),
        "max": (str(limit), True),
        "tcp_timeout_established": ("86400", False),
        "tcp_timeout_close_wait": ("3600", False),
    }


def test_each_key_can_leave_the_kernel_alone() -> None:
    assert wanted(conntrack_max_per_core=0).keys() == {"tcp_timeout_established", "tcp_timeout_close_wait"}
    assert wanted(8, conntrack_max_per_core=1000, conntrack_min=0)["max"] == ("8000", True)
    assert "tcp_timeout_established" not in wanted(conntrack_established_seconds=0)
    assert "tcp_timeout_close_wait" not in wanted(conntrack_close_wait_seconds=0)


def test_what_is_not_there_or_read_only_is_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysctls, "WRITABLE", str(tmp_path))
    all_settings = tracking.settings(Config(), 1)
    assert tracking.writable(all_settings) == ()
    place = tmp_path / "net" / "netfilter"
    place.mkdir(parents=True)
    (place / "nf_conntrack_tcp_timeout_established").write_text("432000")
    assert [each.path for each in tracking.writable(all_settings)] == [
        "net/netfilter/nf_conntrack_tcp_timeout_established"
    ]


class FakeWriter:
    """Takes fragments; fails as often as it is told."""

    def __init__(self) -> None:
        self.applied: list[Mapping[FragmentKey, Fragment]] = []
        self.failures = 0

    async def apply(self, changes: Mapping[FragmentKey, Fragment]) -> None:
        if self.failures:
            self.failures -= 1
            raise DatapathError("busy")
        self.applied.append(changes)


class Node:
    """Files in place of the kernel's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.values: dict[str, str] = {}
        self.possible: tuple[Sysctl, ...] = ()
        self.writer = FakeWriter()
        self.findings = Findings()
        self.metrics = Metrics()
        monkeypatch.setattr(tracking, "LOOK_SECONDS", 0.005)
        monkeypatch.setattr(tracking, "read_setting", lambda path: self.values.get(path.rpartition("_")[2]))
        monkeypatch.setattr(tracking, "writable", lambda _: self.possible)

    async def look(self) -> None:
        body = tracking.keep(Config(), cast(Any, self.writer), self.findings, self.metrics)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(body, 0.05)

    def finding(self, count: int, limit: int = 1000) -> None:
        self.values = {"count": str(count), "max": str(limit)}


async def test_the_fill_level_is_told_from_nine_tenths_until_four_fifths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = Node(monkeypatch)
    for count, told in ((0, 0), (900, 0), (901, 1), (1000, 1), (850, 1), (799, 0), (850, 0)):
        node.finding(count)
        await node.look()
        assert len(node.findings.rows()) == told, count
        assert node.metrics.registry.get_sample_value("weft_conntrack_entries") == count
    assert node.metrics.registry.get_sample_value("weft_conntrack_limit") == 1000


async def test_a_kernel_without_connection_tracking_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(monkeypatch)
    await node.look()
    assert node.findings.rows() == ()
    assert node.writer.applied == []


async def test_settings_are_asked_for_when_they_can_be_had_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(monkeypatch)
    node.writer.failures = 2
    node.possible = (Sysctl("net/netfilter/nf_conntrack_max", "1", least=True),)
    await node.look()
    assert node.writer.applied == [{tracking.KEY: Fragment(objects=node.possible)}]
