"""The HTTP face of the lab's storage: list, watch and change objects as Kubernetes clients expect it.

Owns the translation between HTTP and `Storage`, and the fault switches that tests and people use to see how
a daemon bears a sick API server. Speaks plain HTTP and knows no authentication: it listens in the lab's own
namespaces only.
"""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml
from aiohttp import web

from lab.api import patches
from lab.api.selectors import matcher
from lab.api.watches import Feed
from lab.errors import ApiError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from lab.api.resources import Object, Resource
    from lab.api.storage import Storage

_VERSION = {"major": "1", "minor": "34", "gitVersion": "v1.34.0-weft-lab", "platform": "linux/lab"}
_PATCHES: dict[str, Callable[[Any, Any], Any]] = {
    "application/merge-patch+json": patches.merge,
    "application/strategic-merge-patch+json": patches.strategic,
    "application/apply-patch+yaml": patches.strategic,
    "application/json-patch+json": patches.json_patch,
}


@dataclass(slots=True)
class Faults:
    """How the server misbehaves; the defaults are good behaviour."""

    status: int = 0
    """Answer every request with this HTTP status, such as 500 or 429."""
    hang: bool = False
    """Accept requests and never answer."""
    requests: dict[str, int] = field(default_factory=dict)
    """Not a fault but its measure: how many requests came, by "VERB plural"."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a URL names; empty name: the collection."""

    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""


class ApiServer:
    """Serves one storage on any number of sockets.

    TCP sockets, which the nodes use, can be cut off and brought back (`stop`, `start`); the fault switches
    act on them alone, so that the lab itself always reaches its cluster through its unix socket.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.faults = Faults()
        self._runners: dict[bool, web.AppRunner] = {}
        self._watches: set[asyncio.Task[None]] = set()

    @property
    def serving(self) -> bool:
        """Whether the nodes can connect."""
        return True in self._runners

    async def start(self, sock: socket.socket, *, faulty: bool = True) -> None:
        """Serve on a bound socket; `faulty` sockets obey the fault switches."""
        if faulty not in self._runners:
            application = web.Application(client_max_size=32 << 20)
            application.router.add_route("*", "/{path:.*}", self._faulty if faulty else self._answer)
            runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            self._runners[faulty] = runner
        await web.SockSite(self._runners[faulty], sock).start()

    async def stop(self, *, faulty: bool = True) -> None:
        """Close the sockets and cut all their connections."""
        runner = self._runners.pop(faulty, None)
        if runner is not None:
            self.drop_watches()
            await runner.cleanup()

    def drop_watches(self) -> None:
        """Cut every running watch, as a restarting server or load balancer does."""
        for task in self._watches:
            task.cancel()

    async def _faulty(self, request: web.Request) -> web.StreamResponse:
        verb = "WATCH" if request.query.get("watch") in ("1", "true") else request.method
        key = f"{verb} {request.path}"
        self.faults.requests[key] = self.faults.requests.get(key, 0) + 1
        if self.faults.hang:
            await asyncio.Event().wait()
        if self.faults.status:
            error = ApiError(self.faults.status, "LabFault", "the lab's fault switch is on")
            return web.json_response(error.status(), status=error.code, headers={"Retry-After": "1"})
        return await self._answer(request)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        try:
            if (known := _discovery(self.storage, request.path)) is not None:
                return web.json_response(known)
            if request.path in ("/readyz", "/livez", "/healthz"):
                return web.Response(text="ok")
            target = _target(self.storage, request.path)
            if request.method == "GET":
                if target.name:
                    item = self.storage.get(target.resource, target.namespace, target.name)
                    return web.json_response(item)
                if request.query.get("watch") in ("1", "true"):
                    return await self._watch(request, target)
                return web.json_response(_list(self.storage, target, dict(request.query)))
            return await self._change(request, target)
        except ApiError as error:
            return web.json_response(error.status(), status=error.code)

    async def _change(self, request: web.Request, target: Target) -> web.Response:
        storage, resource = self.storage, target.resource
        body = await request.read()
        if request.method == "DELETE":
            options = _decode(body) if body else {}
            grace = options.get("gracePeriodSeconds", request.query.get("gracePeriodSeconds"))
            grace = None if grace is None else int(grace)
            if target.name:
                return web.json_response(storage.delete(resource, target.namespace, target.name, grace=grace))
            selected = matcher(request.query.get("labelSelector", ""), request.query.get("fieldSelector", ""))
            doomed = storage.list(resource, target.namespace, selected)
            for item in doomed:
                metadata = item["metadata"]
                storage.delete(resource, metadata.get("namespace", ""), metadata["name"], grace=grace)
            return web.json_response(_collection(storage, resource, doomed))
        if request.method == "POST" and not target.name:
            return web.json_response(storage.create(resource, target.namespace, _decode(body)), status=201)
        if request.method == "PUT" and target.name:
            item = _decode(body)
            return web.json_response(self._write(target, lambda _: item))
        if request.method == "PATCH" and target.name:
            kind = request.content_type
            if kind not in _PATCHES:
                message = f"the body of the request was in an unknown format: {kind}"
                raise ApiError(415, "UnsupportedMediaType", message)
            patch = _decode(body)
            if kind == "application/apply-patch+yaml" and not self._exists(target):
                return web.json_response(storage.create(resource, target.namespace, patch), status=201)
            return web.json_response(self._write(target, lambda item: _PATCHES[kind](item, patch)))
        raise ApiError(405, "MethodNotAllowed", f"{request.method} is not possible here")

    def _write(self, target: Target, change: Callable[[Object], Object]) -> Object:
        return self.storage.update(
            target.resource, target.namespace, target.name, change, subresource=target.subresource
        )

    def _exists(self, target: Target) -> bool:
        try:
            self.storage.get(target.resource, target.namespace, target.name)
        except ApiError:
            return False
        return True

    async def _watch(self, request: web.Request, target: Target) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        query = dict(request.query)
        selected = matcher(query.get("labelSelector", ""), query.get("fieldSelector", ""))
        feed = Feed(self.storage, target.resource, target.namespace, selected, response.write)
        task = asyncio.create_task(feed.run(query, _revision(query)))
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)
        try:
            await task
        except asyncio.CancelledError:
            if (here := asyncio.current_task()) is not None and here.cancelling():
                task.cancel()
                raise
            if request.transport is not None:
                request.transport.abort()
        return response


def _decode(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        pass
    try:
        return yaml.safe_load(body)
    except yaml.YAMLError as error:
        raise ApiError.invalid(f"the body is neither JSON nor YAML: {error}") from error


def _target(storage: Storage, path: str) -> Target:
    steps = [step for step in path.split("/") if step]
    match steps:
        case ["api", version, *rest]:
            group = ""
        case ["apis", group, version, *rest]:
            pass
        case _:
            rest = []
    if not rest:
        raise ApiError(404, "NotFound", "the server could not find the requested resource")
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    plural, name, subresource, *_ = [*rest, "", ""]
    return Target(storage.catalogue.at(group, version, plural), namespace, name, subresource)


def _revision(query: dict[str, str]) -> int:
    text = query.get("resourceVersion") or "0"
    if not text.isdigit():
        raise ApiError.invalid(f"invalid resource version {text!r}")
    return int(text)


def _collection(
    storage: Storage, resource: Resource, items: list[Object], **metadata: str | int
) -> dict[str, Any]:
    return {
        "kind": f"{resource.kind}List",
        "apiVersion": resource.api_version,
        "metadata": {"resourceVersion": str(storage.revision), **metadata},
        "items": items,
    }


def _list(storage: Storage, target: Target, query: dict[str, str]) -> dict[str, Any]:
    """One page of a list. A continue token holds the revision of the first page and the last object's key."""
    selected = matcher(query.get("labelSelector", ""), query.get("fieldSelector", ""))
    items = storage.list(target.resource, target.namespace, selected)
    revision = storage.revision
    if token := query.get("continue"):
        try:
            revision, *last = json.loads(base64.urlsafe_b64decode(token))
        except ValueError as error:
            raise ApiError.invalid("continue key is not valid") from error
        storage.check_revision(revision)
        items = [item for item in items if _key(item) > last]
    limit = int(query.get("limit") or 0)
    metadata: dict[str, str | int] = {"resourceVersion": str(revision)}
    if limit and len(items) > limit:
        token = json.dumps([revision, *_key(items[limit - 1])])
        metadata["continue"] = base64.urlsafe_b64encode(token.encode()).decode()
        metadata["remainingItemCount"] = len(items) - limit
        items = items[:limit]
    return _collection(storage, target.resource, items, **metadata)


def _key(item: Object) -> list[str]:
    return [item["metadata"].get("namespace", ""), item["metadata"]["name"]]


def _discovery(storage: Storage, path: str) -> dict[str, Any] | None:
    """What clients like kubectl ask before anything else; None where the path is no discovery document."""
    steps = tuple(step for step in path.split("/") if step)
    groups = sorted({(resource.group, resource.version) for resource in storage.catalogue})
    match steps:
        case ("version",):
            return dict(_VERSION)
        case ("api",):
            return {"kind": "APIVersions", "versions": ["v1"]}
        case ("apis",):
            versions = [
                (group, {"groupVersion": f"{group}/{version}", "version": version})
                for group, version in groups
                if group
            ]
            return {
                "kind": "APIGroupList",
                "apiVersion": "v1",
                "groups": [
                    {"name": group, "versions": [version], "preferredVersion": version}
                    for group, version in versions
                ],
            }
        case ("api", version):
            group = ""
        case ("apis", group, version):
            pass
        case _:
            return None
    resources = [
        {
            "name": resource.plural,
            "singularName": resource.kind.lower(),
            "kind": resource.kind,
            "namespaced": resource.namespaced,
            "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        }
        for resource in storage.catalogue
        if (resource.group, resource.version) == (group, version)
    ]
    if not resources:
        return None
    version = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}
