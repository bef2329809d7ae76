"""List-watch: keeps one table of the store equal to one kind of objects in the API server.

Lists in pages, then watches from that resourceVersion, resuming where a watch ended. Only when the server
has forgotten it (410 Gone) is everything listed again; the table then takes over just the differences, so
that objects deleted meanwhile are noticed. While the API server is away the table stays as it is. Owns no
HTTP and no decoding.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import structlog

from daemon.cluster.connection import ApiError, UnreachableError
from daemon.cluster.decode import DecodeError
from daemon.cluster.decode import name as name_of
from daemon.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from daemon.cluster.connection import Connection
    from daemon.cluster.store import Table
    from daemon.findings import Findings
    from daemon.metrics import Metrics

Value = TypeVar("Value")
log = structlog.get_logger()


class ExpiredError(Exception):
    """The resourceVersion can't be continued from; everything has to be listed again."""


@dataclass(frozen=True, slots=True)
class Resource(Generic[Value]):
    """A kind to follow.

    Attributes:
        path: of the list.
        decode: an object into its value; raises DecodeError.
        optional: whether an API server may lack the kind (or refuse it to us).
        selector: labels that objects have to have; one that loses them is gone, which the server says.
        fields: as `selector`, of fields that the server selects by.
    """

    path: str
    decode: Callable[[Mapping[str, object]], Value]
    optional: bool = False
    selector: str = ""
    fields: str = ""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds, and the page size of lists.

    Attributes:
        watch: a watch is asked to end after this or up to twice this, so that load spreads over API
        servers. idle: silence after which a connection counts as dead. Bookmarks come about once a minute.
        first_delay: before the first retry; each further one waits twice as long, up to `last_delay`, +-50
        %. absent: how often an optional kind is looked for again. patience: how long it may take to be back
        in contact before a finding says so. page: objects per page. Nodes are 10 KiB and more; a page is
        parsed in one go and costs tenfold in memory.
    """

    watch: float = 300
    idle: float = 90
    first_delay: float = 0.5
    last_delay: float = 30
    absent: float = 600
    patience: float = 10
    page: int = 250


class Reflector(Generic[Value]):
    """Follows one resource into one table; `run` is a task that never ends."""

    def __init__(
        self,
        connection: Connection,
        resource: Resource[Value],
        table: Table[Value],
        *,
        findings: Findings,
        metrics: Metrics,
        timing: Timing | None = None,
    ) -> None:
        self._connection = connection
        self._resource = resource
        self._table = table
        self._findings = findings
        self._metrics = metrics
        self._timing = timing or Timing()
        self._finding = f"Undecodable{table.kind.capitalize()}"
        self._version = ""
        self._delay = 0.0
        self._listing_again = False
        self._lost_since: float | None = time.monotonic()
        self.connected = False
        self._contact(False)

    async def run(self) -> None:
        """List and watch until cancelled."""
        while True:
            try:
                if not self._version:
                    self._version = await self._list()
                await self._watch()
            except ExpiredError as error:
                log.info("listing again", kind=self._table.kind, why=str(error))
                self._version = ""
                if not self._listing_again:
                    # The server answers: how long it was away must not keep us blind any longer. Only one
                    # that forgets again and again is to be spared.
                    self._delay, self._listing_again = 0, True
                await self._pause(0)
            except (ApiError, UnreachableError) as error:
                if self._absent(error):
                    await self._wait_for_kind(error)
                    continue
                self._failed(error)
                await self._pause(error.retry_after if isinstance(error, ApiError) else 0)

    def retire(self) -> None:
        """Take back what was reported, once `run` was cancelled and the kind is not followed any more."""
        self._contact(True)
        self._findings.replace({self._finding}, [])
        self._metrics.objects.labels(self._table.kind).set(0)

    async def _list(self) -> str:
        """Read everything; returns the resourceVersion to watch from."""
        try:
            objects, version = await self._pages(self._timing.page)
        except ApiError as error:
            if error.status != 410:
                raise
            # Reading the pages took longer than the server remembers; one large answer can't expire.
            objects, version = await self._pages(0)
        self._metrics.api_lists.labels(self._table.kind).inc()
        changed = self._table.replace(objects)
        self._contact(True)
        self._metrics.objects.labels(self._table.kind).set(len(self._table))
        log.info("listed", kind=self._table.kind, objects=len(objects), changed=changed, version=version)
        return version

    async def _pages(self, limit: int) -> tuple[dict[str, Value], str]:
        objects: dict[str, Value] = {}
        faulty: dict[str, str] = {}
        query = self._selection()
        if limit:
            query["limit"] = limit
        while True:
            document = await self._connection.request("GET", self._resource.path, query=query, timeout=60)
            items, metadata = document.get("items"), document.get("metadata")
            if not isinstance(metadata, dict) or not (items is None or isinstance(items, list)):
                raise UnreachableError("protocol", f"the answer for {self._resource.path} is no list")
            for item in items or []:
                self._decode_into(objects, faulty, item if isinstance(item, dict) else {})
            if not (token := metadata.get("continue")):
                break
            query["continue"] = str(token)
            # A page takes the loop tens of milliseconds to parse; others get their turn in between.
            await asyncio.sleep(0)
        name = self._finding
        self._findings.replace({name}, [Finding(name, "warning", text, key) for key, text in faulty.items()])
        version = metadata.get("resourceVersion")
        if not isinstance(version, str) or not version:
            raise UnreachableError("protocol", f"the list of {self._resource.path} has no resourceVersion")
        return objects, version

    def _decode_into(
        self, objects: dict[str, Value], faulty: dict[str, str], item: dict[str, object]
    ) -> None:
        name = ""
        try:
            name = name_of(item)
            objects[name] = self._resource.decode(item)
        except DecodeError as error:
            faulty[name or "?"] = self._fault(name, error)
            if name in self._table:
                objects[name] = self._table[name]

    def _selection(self) -> dict[str, str | int]:
        wanted = {"labelSelector": self._resource.selector, "fieldSelector": self._resource.fields}
        return {name: text for name, text in wanted.items() if text}

    async def _watch(self) -> None:
        """Follow changes until the server ends the watch."""
        seconds = int(self._timing.watch * random.uniform(1, 2)) or 1  # noqa: S311 - spreads load
        query = self._selection() | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": seconds,
        }
        started = time.monotonic()
        try:
            async with self._connection.stream(self._resource.path, query, idle=self._timing.idle) as lines:
                self._metrics.api_watches.labels(self._table.kind).inc()
                self._contact(True)
                async for line in lines:
                    self._event(line)
                    self._delay, self._listing_again = 0, False
        except ApiError as error:
            if error.status == 410:
                raise ExpiredError(str(error)) from error
            raise
        if time.monotonic() - started < min(1.0, self._timing.watch):
            raise UnreachableError("protocol", f"the watch of {self._resource.path} ended at once")
        self._delay, self._listing_again = 0, False

    def _event(self, line: bytes) -> None:
        try:
            event: Any = json.loads(line)
            kind, item = event["type"], event["object"]
            version = "" if kind == "ERROR" else item["metadata"]["resourceVersion"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UnreachableError("protocol", f"a watch event can't be read: {line[:200]!r}") from error
        self._metrics.api_events.labels(self._table.kind, str(kind).lower()).inc()
        if kind == "ERROR":
            raise self._error(item)
        if version.isdigit() and self._version.isdigit() and int(version) < int(self._version):
            # The cluster's database was restored from a backup: what was seen since may never have happened.
            raise ExpiredError(f"the resourceVersion went back from {self._version} to {version}")
        if kind in {"ADDED", "MODIFIED"}:
            self._store(item)
        elif kind == "DELETED":
            self._forget(item)
        self._version = version

    def _error(self, status: object) -> Exception:
        fields = status if isinstance(status, dict) else {}
        code, reason, message = fields.get("code"), str(fields.get("reason")), str(fields.get("message"))
        if code == 410 or reason in {"Expired", "Gone"}:
            return ExpiredError(message)
        return ApiError(code if isinstance(code, int) else 500, reason, message)

    def _store(self, item: dict[str, object]) -> None:
        name = ""
        try:
            name = name_of(item)
            value = self._resource.decode(item)
        except DecodeError as error:
            self._findings.report(self._finding, "warning", self._fault(name, error), key=name or "?")
            return
        self._findings.clear(self._finding, key=name)
        if self._table.put(name, value):
            self._metrics.objects.labels(self._table.kind).set(len(self._table))

    def _forget(self, item: dict[str, object]) -> None:
        try:
            name = name_of(item)
        except DecodeError:
            return
        self._findings.clear(self._finding, key=name)
        self._table.remove(name)
        self._metrics.objects.labels(self._table.kind).set(len(self._table))

    def _fault(self, name: str, error: DecodeError) -> str:
        kept = "its last good version stays in use" if name in self._table else "it is left out"
        return f"{self._table.kind} {name or '(without a name)'} can't be understood and {kept}: {error}"

    def _absent(self, error: Exception) -> bool:
        return self._resource.optional and isinstance(error, ApiError) and error.status in {403, 404}

    async def _wait_for_kind(self, error: Exception) -> None:
        log.info("kind is not available", kind=self._table.kind, why=str(error))
        self._version = ""
        self._contact(True)
        self._table.replace({})
        await asyncio.sleep(self._timing.absent * random.uniform(0.75, 1.25))  # noqa: S311 - spreads load

    def _failed(self, error: ApiError | UnreachableError) -> None:
        self._contact(False)
        reason = str(error.status) if isinstance(error, ApiError) else error.kind
        self._metrics.api_errors.labels(self._table.kind, reason).inc()
        log.debug("list-watch interrupted", kind=self._table.kind, error=str(error))
        lost = self._lost_since
        if lost is not None and time.monotonic() - lost >= self._timing.patience:
            effect = (
                "pods keep their network; changes of the cluster are taken over when it is back"
                if self._table.synced
                else "the daemon can't serve pods before it has seen the cluster once"
            )
            self._findings.report(
                "ApiServerUnreachable",
                "warning" if self._table.synced else "error",
                f"No contact for {self._table.kind}s ({effect}): {error}",
                key=self._table.kind,
            )

    def _contact(self, connected: bool) -> None:
        self._metrics.api_connected.labels(self._table.kind).set(connected)
        self.connected = connected
        if connected:
            self._lost_since = None
            self._findings.clear("ApiServerUnreachable", key=self._table.kind)
        elif self._lost_since is None:
            self._lost_since = time.monotonic()

    async def _pause(self, least: float) -> None:
        """Wait before the next try: exponential, jittered, and at least as long as the server asked for."""
        self._delay = min(self._timing.last_delay, self._delay * 2 or self._timing.first_delay)
        await asyncio.sleep(max(least, self._delay * random.uniform(0.5, 1.5)))  # noqa: S311 - spreads load
