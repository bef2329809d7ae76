"""Keeps Services in line with the cluster: compiles what changed and hands it to the writer.

The same path at the start and for every change: the store says what to look at, the catalog what has
become different, the writer takes it. Owns the catalog and the tables' chains; knows no netlink and no API.
What else follows from a Service (stale flows, health checks) is told to those who listen, once the kernel was
changed.
"""

from __future__ import annotations

import asyncio
import time
from itertools import islice
from typing import TYPE_CHECKING

import structlog

from daemon.cluster.store import NODE, SERVICE
from daemon.compile.catalog import Catalog
from daemon.compile.endpoints import Site
from daemon.compile.tables import TABLES, table_options, tables_fragment
from daemon.findings import Finding
from datapath.errors import DatapathError
from datapath.nft.frontends import Need
from datapath.writer import StoppedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from daemon.cluster.store import Key, Store, Subscription
    from daemon.compile.local import LocalNetwork
    from daemon.config import Config
    from daemon.findings import Findings
    from daemon.metrics import Metrics
    from datapath.desired import Fragment, FragmentKey
    from datapath.nft.frontends import Backend, Frontend
    from datapath.nft.tables import TableOptions
    from datapath.snapshot import Recorder
    from datapath.writer import Applied, Writer

log = structlog.get_logger()

SLICE = 100
"""Services that are compiled in one go: some 10 ms, in which the loop serves nobody else."""
PROBLEMS = ("ServiceIncomplete", "ServiceConflict")
MAX_PROBLEMS = 50
"""Problems that become findings."""


class Services:
    """The loop and what it knows.

    Attributes:
        catalog: the compiled state.
        waiting_since: time.monotonic() of the oldest change that is not in the kernel; None without one.
    """

    def __init__(
        self,
        *,
        store: Store,
        writer: Writer,
        config: Config,
        node_name: str,
        local: Callable[[], LocalNetwork | None],
        findings: Findings,
        metrics: Metrics | None = None,
        recorder: Recorder | None = None,
        on_stale_flows: Callable[[Mapping[Frontend, frozenset[Backend]]], None] = lambda _: None,
        on_applied: Callable[[], None] = lambda: None,
    ) -> None:
        """Connect the parts.

        Args:
            store: the cluster.
            writer: takes the fragments.
            config: the daemon's configuration.
            node_name: name of this node's Node object.
            local: this node's own network, None while it is not known.
            findings: what is wrong with Services goes there.
            metrics: figures go there.
            recorder: keeps the desired state for while the daemon is down.
            on_stale_flows: told of UDP frontends that lost a backend, with those that may answer now.
            on_applied: told when a change is in the kernel.
        """
        self.catalog = Catalog()
        self.waiting_since: float | None = None
        self._store = store
        self._writer = writer
        self._config = config
        self._node_name = node_name
        self._local = local
        self._findings = findings
        self._metrics = metrics
        self._recorder = recorder
        self._on_stale_flows = on_stale_flows
        self._on_applied = on_applied
        self._options: TableOptions | None = None
        self._subscription: Subscription | None = None

    async def prepare(self, local: LocalNetwork) -> None:
        """Compile everything and hand it to the writer, without waiting for the kernel.

        The store must be complete. Nothing of Services may be missing once the writer deletes what nobody
        desires, or a restart would blank them. The tables come along: they are needed without Services too.
        """
        self._subscription = self._store.subscribe(SERVICE, NODE)
        self._take(self._subscription.take())
        changes = self._structure()
        async for part in self._compiled():
            changes |= part
        self._writer.offer(changes)
        self._record(changes, local)

    async def run(self) -> None:
        """Serve for ever, after `prepare`.

        Raises:
            StoppedError: the writer is stopping.
        """
        assert self._subscription is not None
        try:
            self._tell()
            while True:
                keys = await self._subscription.next()
                if self.waiting_since is None:
                    self.waiting_since = time.monotonic()
                self._take(keys)
                await self._turn()
        finally:
            self._store.unsubscribe(self._subscription)

    def _take(self, keys: Iterable[Key]) -> None:
        names = [key.name for key in keys if key.kind == SERVICE]
        node = self._store.nodes.get(self._node_name)
        site = Site(
            self._node_name,
            node.zone if node is not None else "",
            node.internal_ips if node is not None else (),
        )
        self.catalog.take(self._store.services, self._store.endpoint_slices.of, names, site)

    def _structure(self) -> dict[FragmentKey, Fragment | None]:
        """Return the tables if Services need chains that were not there yet; chains are never taken away."""
        before = self._options.services if self._options is not None else None
        need = self.catalog.need
        if before is not None:
            need = Need(need.sizes | set(before.sizes), need.timeouts | set(before.timeouts))
        options = table_options(self._config, need)
        if options == self._options:
            return {}
        self._options = options
        return {TABLES: tables_fragment(options)}

    async def _compiled(self) -> AsyncIterator[dict[FragmentKey, Fragment | None]]:
        """Compile what is pending, in slices; chains come before the elements that lead to them."""
        while self.catalog.pending:
            part = self.catalog.compile(SLICE)
            yield self._structure() | part
            if self.catalog.pending:
                await asyncio.sleep(0)

    async def _turn(self) -> None:
        """Compile what is pending and have it written; the writer begins with the first slice."""
        began = time.monotonic()
        changes: dict[FragmentKey, Fragment | None] = {}
        async for part in self._compiled():
            if self.catalog.pending:
                self._writer.offer(part)
            changes |= part
        if changes:
            try:
                applied = await self._writer.apply(changes)
            except StoppedError:
                raise
            except DatapathError as error:
                # The writer keeps the changes and goes on trying.
                log.warning("services wait for the kernel", error=str(error))
                return
            self._note(began, applied)
            if (local := self._local()) is not None:
                self._record(changes, local)
        self._tell()

    def _tell(self) -> None:
        """Tell everybody who follows Services that the kernel has them."""
        self.waiting_since = None
        problems = islice(self.catalog.problems(), MAX_PROBLEMS)
        self._findings.replace(PROBLEMS, [Finding(*problem) for problem in problems])
        if stale := self.catalog.stale_flows():
            self._on_stale_flows(stale)
        self._on_applied()

    def _record(self, changes: Mapping[FragmentKey, Fragment | None], local: LocalNetwork) -> None:
        if self._recorder is not None and changes:
            self._recorder.record(changes, local.sources)

    def _note(self, began: float, applied: Applied) -> None:
        if self._metrics is None:
            return
        self._metrics.sync_seconds.labels("services").observe(time.monotonic() - began)
        if not applied.failures:
            self._metrics.sync_last.set(time.time())
