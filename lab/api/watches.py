"""One watch of the API: its events and bookmarks in order, written to a client until its time is over."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import TYPE_CHECKING

from lab.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lab.api.resources import Object, Resource
    from lab.api.selectors import Matcher
    from lab.api.storage import Storage

BOOKMARK_SECONDS = 5.0
_LONGEST_SECONDS = 1800.0


class Feed:
    """What one watcher is told.

    Args:
        storage: where the objects are.
        resource: the kind that is watched.
        namespace: the namespace that is watched; empty: all.
        selected: which objects the watcher wants to see.
        write: sends bytes to the client.
    """

    def __init__(
        self,
        storage: Storage,
        resource: Resource,
        namespace: str,
        selected: Matcher,
        write: Callable[[bytes], Awaitable[None]],
    ) -> None:
        self.storage = storage
        self.resource = resource
        self.namespace = namespace
        self.selected = selected
        self._write = write

    async def run(self, query: dict[str, str], revision: int) -> None:
        """Tell everything after `revision`; 0 tells all objects first, as does sendInitialEvents."""
        initial = query.get("sendInitialEvents") == "true"
        limit = float(query.get("timeoutSeconds") or _LONGEST_SECONDS)
        bookmarks = query.get("allowWatchBookmarks") in ("1", "true")
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(limit):
                try:
                    if revision == 0 or initial:
                        revision = self.storage.revision
                        for item in self.storage.list(self.resource, self.namespace, self.selected):
                            await self._send("ADDED", item)
                    if initial:
                        await self._bookmark(revision, {"k8s.io/initial-events-end": "true"})
                    await self._follow(revision, bookmarks=bookmarks)
                except ApiError as error:
                    await self._send("ERROR", error.status())

    async def _follow(self, revision: int, *, bookmarks: bool) -> None:
        due = time.monotonic() + BOOKMARK_SECONDS
        while True:
            self.storage.check_revision(revision)
            events, revision = self.storage.changes(self.resource, revision, self.namespace, self.selected)
            for kind, item in events:
                await self._send(kind, item)
            if time.monotonic() >= due:
                due = time.monotonic() + BOOKMARK_SECONDS
                if bookmarks:
                    await self._bookmark(revision, {})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(due - time.monotonic()):
                    await self.storage.beyond(revision)

    async def _send(self, kind: str, item: Object) -> None:
        await self._write(json.dumps({"type": kind, "object": item}).encode() + b"\n")

    async def _bookmark(self, revision: int, annotations: dict[str, str]) -> None:
        metadata: Object = {"resourceVersion": str(revision), "creationTimestamp": None}
        if annotations:
            metadata["annotations"] = annotations
        resource = self.resource
        item = {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}
        await self._send("BOOKMARK", item)
