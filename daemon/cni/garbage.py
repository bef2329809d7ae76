"""Keeps attachments right without anybody asking: recovery at start, then by timers.

Nothing depends on a DEL ever coming: dead attachments are found in the kernel, interrupted ones in the
records. Figures and warnings about pools are here too, since they come before exhaustion does. Owns no
decision about a single attachment (daemon.cni.attachments) and no file (ipam.store, daemon.cni.deletions).
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import structlog

from daemon.cni.deletions import Drained
from daemon.findings import Finding
from datapath.errors import DatapathError
from ipam.errors import StoreError
from ipam.pool import Pool, shortfall

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from daemon.cni.attachments import Attachments, Collected, Kernel
    from daemon.cni.deletions import Deletions
    from daemon.cni.service import CniService, Local
    from daemon.findings import Findings
    from daemon.metrics import Metrics
    from ipam.pool import Usage

T = TypeVar("T")
log = structlog.get_logger()

LOOK_SECONDS = 1.0
"""Between looks at the directory of deletions, the database's file and the pools' figures."""
COLLECT_SECONDS = 30.0
"""Between collections of dead attachments."""
SCARCE = 0.9
"""Share of a pool in use from which on an operator is warned."""

_STATE_LOST = "StateLost"
_UNREADABLE_STATE = "StateUnreadable"
_STRANGE_LINKS = "StrangeLinks"
_UNREADABLE_DELETIONS = "DeletionsUnreadable"
_FAILED_DELETIONS = "DeletionsFailed"
_BROKEN = "AttachmentBroken"
_FAILED_COLLECTION = "CollectionFailed"
_SCARCE = "PoolNearlyExhausted"
_TOO_SMALL = "PoolSmallerThanMaxPods"


class Writer(Protocol):
    """What is used of the writer (datapath.writer.Writer)."""

    async def attachment(self, job: Callable[[Kernel], T]) -> T:
        """Run a job on the writer's thread; it finishes even when the caller is cancelled."""


class StateDirectoryLostError(Exception):
    """Somebody removed the state directory: the daemon's lock and sockets are gone with it."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What the start found: attachments rebuilt from the kernel, deletions done, attachments collected."""

    rebuilt: int
    drained: Drained
    collected: Collected


class Garbage:
    """Recovery and the timers."""

    def __init__(
        self,
        *,
        writer: Writer,
        attachments: Attachments,
        deletions: Deletions,
        service: CniService,
        local: Callable[[], Local | None],
        max_pods: Callable[[], int],
        findings: Findings,
        metrics: Metrics,
    ) -> None:
        """Make it.

        Args:
            writer: runs the jobs.
            attachments: what is collected.
            deletions: tombstones.
            service: knows what a tombstone means.
            local: this node's network, None while it is not known.
            max_pods: how many pods kubelet starts at most, 0 while that is not known.
            findings: what an operator is told.
            metrics: where figures go.
        """
        self._writer = writer
        self._attachments = attachments
        self._ipam = attachments.ipam
        self._deletions = deletions
        self._service = service
        self._local = local
        self._max_pods = max_pods
        self._findings = findings
        self._metrics = metrics
        self._directory = _identity(os.path.dirname(self._ipam.store.path))

    async def recover(self) -> Recovered:
        """Bring records and kernel together after a start; before attachments are adopted, before any ADD.

        Raises:
            StoreError: the database can't be written.
            DatapathError: the kernel can't be read.
        """
        store = self._ipam.store
        if store.aside:
            self._findings.report(
                _UNREADABLE_STATE,
                "warning",
                f"{store.path} could not be read ({store.reason}) and was moved to {store.aside}; the "
                "attachments were rebuilt from their links; unless a newer Weft wrote it, look for a full or "
                "failing disk; then remove the file",
            )
        if store.voided:
            log.info("the node was restarted: what was attached before is void", attachments=store.voided)
        known = len(store.records)
        problems = await self._writer.attachment(self._attachments.adopt)
        self._warn(_STRANGE_LINKS, {problem: problem for problem in problems})
        rebuilt = len(store.records) - known
        drained = await self._drain()
        recovered = Recovered(rebuilt, drained, await self._collect())
        log.info(
            "attachments recovered",
            attachments=len(store.records),
            fresh=store.fresh,
            rebuilt=rebuilt,
            deleted=drained.done,
            collected=len(recovered.collected.released),
        )
        return recovered

    async def run(self) -> None:
        """Look after everything for ever; raises what `look` does."""
        loop = asyncio.get_running_loop()
        due = loop.time() + COLLECT_SECONDS
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            collect = loop.time() >= due
            await self.look(collect=collect)
            if collect:
                due = loop.time() + COLLECT_SECONDS

    async def look(self, *, collect: bool) -> None:
        """Look after the state directory, pools and deletions once, and `collect` what is dead.

        Raises:
            StateDirectoryLostError: it was made anew with the database in it, but only a new process holds
                the lock in there and serves the sockets.
            StoreError: the database was lost and can't be written anew: the process must not go on.
        """
        self._look_at_state()
        self._look_at_pools()
        if self._deletions.names():
            await self._drain()
        if collect:
            await self._collect_quietly()

    def _look_at_state(self) -> None:
        store = self._ipam.store
        directory = _identity(os.path.dirname(store.path))
        if store.ensure_present():
            self._findings.report(
                _STATE_LOST,
                "warning",
                f"somebody removed {store.path} under the running daemon; it was written anew and nothing is "
                "lost; only weftd may touch that directory",
            )
        if directory != self._directory:
            raise StateDirectoryLostError(
                f"somebody removed {os.path.dirname(store.path)} under the running daemon; nothing is lost, "
                "but it has to start anew; only weftd may touch that directory"
            )
        with suppress(OSError):
            self._deletions.prepare()

    def _look_at_pools(self) -> None:
        local = self._local()
        if local is None:
            return
        pools = tuple(Pool(prefix.address, prefix.length) for prefix in local.pod_cidrs)
        usages = self._ipam.usage(pools)
        for usage in usages:
            for state in ("used", "cooling", "free"):
                self._metrics.ipam_addresses.labels(usage.pool.text, state).set(getattr(usage, state))
        self._metrics.attachments.set(len(self._ipam.store.records))
        scarce = {usage.pool.text: _scarcity(usage) for usage in usages if usage.used >= SCARCE * usage.size}
        self._warn(_SCARCE, scarce)
        limit = self._max_pods()
        self._warn(
            _TOO_SMALL,
            {
                pool.text: f"podCIDR {pool.text} has {pool.size} addresses for pods, and kubelet's "
                "maxPods is "
                f"{limit}: pods beyond will not start; lower maxPods or give nodes larger podCIDRs"
                for pool in shortfall(pools, limit)
            },
        )

    async def _drain(self) -> Drained:
        drained = Drained()
        if self._deletions.names():
            drained = await self._writer.attachment(self._service.drain_job)
        if drained.corrupt:
            self._findings.report(
                _UNREADABLE_DELETIONS,
                "warning",
                f"{len(drained.corrupt)} recorded deletions can't be read and were set aside: "
                f"{'; '.join(drained.corrupt[:3])}; their addresses return when their pods' "
                "namespaces are gone",
            )
        if drained.problems:
            self._findings.report(
                _FAILED_DELETIONS,
                "warning",
                f"{len(drained.problems)} recorded deletions fail and are tried again: "
                f"{'; '.join(drained.problems[:3])}",
            )
        else:
            self._findings.clear(_FAILED_DELETIONS)
        self._metrics.deletions_pending.set(len(self._deletions.names()))
        return drained

    async def _collect(self) -> Collected:
        collected = await self._writer.attachment(self._attachments.collect)
        for record in collected.confirmed:
            log.info("attachment confirmed: its ADD had no time to say so", attachment=str(record.key))
        for record, reason in collected.released:
            log.info("attachment collected", attachment=str(record.key), reason=reason)
        for name in collected.orphans:
            log.info("link without an attachment removed", link=name)
        self._metrics.leaks.inc(len(collected.released))
        self._warn(
            _BROKEN,
            {
                record.host_link: f"host link {record.host_link} of pod "
                f"{record.pod_namespace}/{record.pod_name} "
                "was removed by somebody: the pod has no network; delete the pod"
                for record in collected.broken
            },
        )
        self._warn(_FAILED_COLLECTION, {problem: problem for problem in collected.problems})
        return collected

    def _warn(self, name: str, messages: Mapping[str, str]) -> None:
        """Make these, by key, all that holds under a name."""
        rows = [Finding(name, "warning", message, key) for key, message in messages.items()]
        self._findings.replace((name,), rows)

    async def _collect_quietly(self) -> None:
        try:
            await self._collect()
        except (DatapathError, StoreError) as error:
            log.warning("collection failed, the next one tries again", error=str(error))


def _identity(directory: str) -> tuple[int, int] | None:
    try:
        status = os.stat(directory)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _scarcity(usage: Usage) -> str:
    return (
        f"{usage.used} of {usage.size} addresses of podCIDR {usage.pool.text} are in use and {usage.cooling} "
        "rest: soon no pod will start on this node; lower kubelet's maxPods or give nodes larger podCIDRs"
    )
