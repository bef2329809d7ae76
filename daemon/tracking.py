"""Sizes connection tracking for a node that proxies Services, and tells before it is full.

Everything that Services do is done to tracked flows: when the kernel's table is full, new connections are
dropped, of whomever. Owns the settings that are wanted of the kernel (the figures are kube-proxy's), when
they can be had, and the watch on the fill level; the writer sets them.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import structlog

from datapath import sysctls
from datapath.desired import Fragment, Sysctl
from datapath.errors import DatapathError
from datapath.observe import read_setting

if TYPE_CHECKING:
    from collections.abc import Iterable

    from daemon.config import Config
    from daemon.findings import Findings
    from daemon.metrics import Metrics
    from datapath.desired import FragmentKey
    from datapath.writer import Writer

log = structlog.get_logger()

KEY: FragmentKey = ("conntrack",)
FULL = "ConntrackNearlyFull"
LOOK_SECONDS = 5.0
FULL_SHARE, CALM_SHARE = 0.9, 0.8
"""Of the limit: from where on it is told, and below which it is over."""
FLOWS_PER_BUCKET = 4

_DIRECTORY = "net/netfilter"
_COUNT, _LIMIT = f"{_DIRECTORY}/nf_conntrack_count", f"{_DIRECTORY}/nf_conntrack_max"


def settings(config: Config, cores: int) -> tuple[Sysctl, ...]:
    """Return what is wanted of the kernel; a key that is 0 wants nothing."""
    found = []
    if config.conntrack_max_per_core:
        limit = max(config.conntrack_max_per_core * cores, config.conntrack_min)
        # A longer table first: with many flows in each bucket every packet pays for looking them through.
        found += [
            Sysctl(f"{_DIRECTORY}/nf_conntrack_buckets", str(limit // FLOWS_PER_BUCKET), least=True),
            Sysctl(_LIMIT, str(limit), least=True),
        ]
    for name, seconds in (
        ("established", config.conntrack_established_seconds),
        ("close_wait", config.conntrack_close_wait_seconds),
    ):
        if seconds:
            found.append(Sysctl(f"{_DIRECTORY}/nf_conntrack_tcp_timeout_{name}", str(seconds)))
    return tuple(found)


def writable(wanted: Iterable[Sysctl]) -> tuple[Sysctl, ...]:
    """Return those that exist and can be written here.

    Without connection tracking in the kernel there are none yet, and only the machine's own network namespace
    may change the limit, which is one for all namespaces.
    """
    return tuple(each for each in wanted if os.access(f"{sysctls.WRITABLE}/{each.path}", os.W_OK))


async def keep(config: Config, writer: Writer, findings: Findings, metrics: Metrics) -> None:
    """Have the settings made and the fill level watched; never ends."""
    wanted = settings(config, os.cpu_count() or 1)
    asked: tuple[Sysctl, ...] = ()
    while True:
        try:
            possible = writable(wanted)
            if possible != asked:
                log.info(
                    "connection tracking",
                    settings={each.path.rpartition("/")[2]: each.value for each in possible},
                    not_ours=[each.path.rpartition("/")[2] for each in wanted if each not in possible],
                )
                await writer.apply({KEY: Fragment(objects=possible)})
                asked = possible
            _watch(findings, metrics)
        except DatapathError as error:
            log.warning("connection tracking", error=str(error))
        await asyncio.sleep(LOOK_SECONDS)


def _watch(findings: Findings, metrics: Metrics) -> None:
    count, limit = (int(read_setting(path) or 0) for path in (_COUNT, _LIMIT))
    metrics.conntrack_entries.set(count)
    metrics.conntrack_limit.set(limit)
    if limit and count > FULL_SHARE * limit:
        findings.report(
            FULL,
            "warning",
            f"more than {FULL_SHARE:.0%} of the {limit} flows that the kernel can track are in use; when all "
            "are, new connections of pods and of this node fail. Raise conntrackMaxPerCore, and look for who "
            "opens so many (conntrack -L)",
        )
    elif count < CALM_SHARE * limit:
        findings.clear(FULL)
