"""Keeps Services in line with the cluster: compiles what changed and hands it to the writer.

The same path at the start and for every change: the store says what to look at, the catalog what has
become different, the writer takes it. Owns the catalog and the tables' chains; knows no netlink and no API.
What else follows from a Service (stale flows, health checks) is told to those who listen, once the kernel was
changed.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING

import structlog

from daemon.cluster.store import ENDPOINT_SLICE, NODE, SERVICE, SERVICE_CIDR, Key
from daemon.compile.catalog import Catalog
from daemon.compile.endpoints import Site
from daemon.compile.service_routes import SERVICE_ROUTES, service_cidrs, service_routes
from daemon.compile.tables import TABLES, table_options, tables_fragment
from daemon.findings import Finding
from datapath.desired import Fragment
from datapath.errors import DatapathError
from datapath.nft.frontends import Need
from datapath.writer import StoppedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from daemon.cluster.model import Service
    from daemon.cluster.store import Store, Subscription
    from daemon.compile.local import LocalNetwork
    from daemon.config import Config
    from daemon.findings import Findings
    from daemon.serviceprogress import Progress
    from datapath.desired import FragmentKey
    from datapath.nft.tables import TableOptions
    from datapath.snapshot import Recorder
    from datapath.writer import Writer

log = structlog.get_logger()

SLICE = 100
"""Services that are compiled in one go: some 10 ms, in which the loop serves nobody else."""
RETRY_SECONDS = 1.0
PROBLEMS = ("ServiceIncomplete", "ServiceConflict")
MAX_PROBLEMS = 50
"""Problems that become findings."""


class _PutOffError(Exception):
    """The changes of a round are not known to be in the kernel."""


class Services:
    """The loop and what it knows.

    Attributes:
        catalog: the compiled state.
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
        progress: Progress,
        recorder: Recorder | None = None,
        on_applied: Callable[[Catalog], None] = lambda _: None,
    ) -> None:
        """Connect the parts.

        Args:
            store: the cluster.
            writer: takes the fragments.
            config: the daemon's configuration.
            node_name: name of this node's Node object.
            local: this node's own network, None while it is not known.
            findings: what is wrong with Services goes there.
            progress: told what changed and when it is in the kernel.
            recorder: keeps the desired state for while the daemon is down.
            on_applied: called when what the catalog says is in the kernel.
        """
        self.catalog = Catalog()
        self._store = store
        self._writer = writer
        self._config = config
        self._node_name = node_name
        self._local = local
        self._findings = findings
        self._progress = progress
        self._recorder = recorder
        self._on_applied = on_applied
        self._options: TableOptions | None = None
        self._subscription: Subscription | None = None
        self._known: dict[str, Service] = {}
        self._routes = Fragment()

    async def prepare(self, local: LocalNetwork) -> None:
        """Compile everything and hand it to the writer, without waiting for the kernel.

        The store must be complete. Nothing of Services may be missing once the writer deletes what nobody
        desires, or a restart would blank them. The tables come along: they are needed without Services too.
        """
        self._subscription = self._store.subscribe(SERVICE, ENDPOINT_SLICE, NODE, SERVICE_CIDR)
        self._take(self._subscription.take())
        changes = self._structure() | self._cidrs(local)
        async for part in self._compiled():
            changes |= part
        self._writer.offer(changes)
        self._record(changes, local)

    def look(self) -> None:
        """Say that this node's own network may have become another."""
        if self._subscription is not None:
            self._subscription.mark(Key(NODE, self._node_name))

    async def run(self) -> None:
        """Serve for ever, after `prepare`.

        Raises:
            StoppedError: the writer is stopping.
        """
        assert self._subscription is not None
        try:
            with self._progress.round():
                self._tell()
            while True:
                self._take(await self._subscription.next())
                try:
                    with self._progress.round():
                        await self._turn()
                except _PutOffError:
                    # What waits is told once the kernel has it, also when nothing else changes.
                    asyncio.get_running_loop().call_later(RETRY_SECONDS, self.look)
        finally:
            self._store.unsubscribe(self._subscription)

    def _take(self, keys: Iterable[Key]) -> None:
        names = []
        for kind, name in keys:
            if kind == SERVICE:
                names.append(name)
                self._note_service(name)
            elif kind == ENDPOINT_SLICE:
                each = self._store.endpoint_slices.get(name)
                self._progress.endpoints_changed(name, each.triggered if each is not None else None)
        node = self._store.nodes.get(self._node_name)
        site = Site(self._node_name)
        if node is not None:
            site = Site(self._node_name, node.zone, node.internal_ips)
        self.catalog.take(self._store.services, self._store.endpoint_slices.of, names, site)

    def _note_service(self, name: str) -> None:
        """Count a change of the Service itself: its name is also told when its slices change."""
        service = self._store.services.get(name)
        if service is self._known.get(name):
            return
        if service is None:
            del self._known[name]
        else:
            self._known[name] = service
        self._progress.service_changed()

    def _cidrs(self, local: LocalNetwork) -> dict[FragmentKey, Fragment | None]:
        """Return what follows from the service CIDRs, where that is different from before."""
        cidrs = service_cidrs(self._config, self._store.service_cidrs.values())
        before, self._routes = self._routes, service_routes(local, cidrs)
        return {SERVICE_ROUTES: self._routes} if self._routes != before else {}

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
        """Compile what is pending and have it written; the writer begins with the first slice.

        Raises:
            _PutOffError: the kernel could not be read; the writer has the changes and goes on trying.
        """
        local = self._local()
        changes = self._cidrs(local) if local is not None else {}
        async for part in self._compiled():
            if self.catalog.pending:
                self._writer.offer(part)
            changes |= part
        if changes:
            try:
                await self._writer.apply(changes)
            except StoppedError:
                raise
            except DatapathError as error:
                log.warning("services wait for the kernel", error=str(error))
                raise _PutOffError from error
            if local is not None:
                self._record(changes, local)
        self._tell()

    def _tell(self) -> None:
        """Tell everybody who follows Services what is in the kernel now."""
        problems = islice(self.catalog.problems(), MAX_PROBLEMS)
        self._findings.replace(PROBLEMS, [Finding(*problem) for problem in problems])
        self._on_applied(self.catalog)

    def _record(self, changes: Mapping[FragmentKey, Fragment | None], local: LocalNetwork) -> None:
        if self._recorder is not None and changes:
            self._recorder.record(changes, local.sources)
