"""An API server that serves one kind of objects and misbehaves on demand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class FakeApi:
    """Lists, pages, watches, bookmarks, forgets; every switch is a plain attribute."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.version = 100
        self.oldest = 100
        self.log: list[tuple[int, dict[str, Any]]] = []
        self.requests: Counter[str] = Counter()
        self.queries: list[dict[str, str]] = []
        self.tokens: set[str] = set()
        self.seen_tokens: list[str] = []
        self.fail: list[web.Response] = []
        self.silent = False
        self.absent = False
        self.expire_pages = 0
        self.bodies: list[Any] = []
        self._changed = asyncio.Event()
        self._streams: set[asyncio.Task[Any]] = set()
        self._runner: web.AppRunner | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def put(self, name: str, labels: dict[str, str] | None = None, **fields: Any) -> None:
        kind = "MODIFIED" if name in self.objects else "ADDED"
        self.version += 1
        metadata = {"name": name, "resourceVersion": str(self.version), "labels": labels or {}}
        item = {"metadata": metadata, **fields}
        self.objects[name] = item
        self._publish({"type": kind, "object": item})

    def delete(self, name: str) -> None:
        self.version += 1
        item = self.objects.pop(name)
        item = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self.version)}}
        self._publish({"type": "DELETED", "object": item})

    def bookmark(self) -> None:
        self.version += 1
        self._publish({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(self.version)}}})

    def publish_raw(self, event: dict[str, Any]) -> None:
        self.version += 1
        self._publish(event)

    def forget(self) -> None:
        """Compaction: watches from before now are 410 Gone; those that run go on."""
        self.oldest = self.version

    def _publish(self, event: dict[str, Any]) -> None:
        self.log.append((self.version, event))
        self._changed.set()
        self._changed = asyncio.Event()

    async def start(self) -> None:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()

    async def stop(self) -> None:
        for task in self._streams:
            task.cancel()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def drop(self) -> None:
        """Cut the running watches."""
        for task in self._streams:
            task.cancel()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        watch = request.query.get("watch") == "true"
        self.requests["WATCH" if watch else request.method] += 1
        self.queries.append(dict(request.query))
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        self.seen_tokens.append(token)
        if self.fail:
            return self.fail.pop(0)
        if self.tokens and token not in self.tokens:
            return status(401, "Unauthorized")
        if self.absent:
            return status(404, "NotFound")
        if request.method in {"POST", "PATCH"}:
            self.bodies.append((request.path, request.headers["Content-Type"], await request.json()))
            return web.json_response({})
        return await (self._watch(request) if watch else self._list(request))

    async def _list(self, request: web.Request) -> web.Response:
        start, limit = int(request.query.get("continue", "0")), int(request.query.get("limit", "0"))
        if start and self.expire_pages:
            self.expire_pages -= 1
            return status(410, "Expired")
        items = [item for item in self.objects.values() if selected(request, item)]
        metadata = {"resourceVersion": str(self.version)}
        if limit and start + limit < len(items):
            metadata["continue"] = str(start + limit)
        return web.json_response(
            {"items": items[start : start + limit] if limit else items, "metadata": metadata}
        )

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        version = int(request.query["resourceVersion"])
        response = web.StreamResponse()
        if version < self.oldest:
            return status(410, "Expired")
        await response.prepare(request)
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(int(request.query["timeoutSeconds"])):
                    while True:
                        changed = self._changed
                        for at, event in [] if self.silent else list(self.log):
                            if at > version:
                                version = at
                                event = seen(request, event)
                                await response.write(json.dumps(event).encode() + b"\n")
                        await changed.wait()
        finally:
            self._streams.discard(task)
        return response


def selected(request: web.Request, item: dict[str, Any]) -> bool:
    """Whether an object has the labels of a selector like `a,!b`."""
    labels = item["metadata"].get("labels", {})
    terms = [term for term in request.query.get("labelSelector", "").split(",") if term]
    return all((term.lstrip("!") in labels) is not term.startswith("!") for term in terms)


def seen(request: web.Request, event: dict[str, Any]) -> dict[str, Any]:
    """An event as a watch with a selector sees it: an object that is selected no more is deleted."""
    if event["type"] in {"ADDED", "MODIFIED"} and not selected(request, event["object"]):
        return {**event, "type": "DELETED"}
    return event


def status(code: int, reason: str, **headers: str) -> web.Response:
    body = {"kind": "Status", "code": code, "reason": reason, "message": f"the fake says {reason}"}
    return web.json_response(body, status=code, headers=headers)


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    server = FakeApi()
    await server.start()
    yield server
    await server.stop()
