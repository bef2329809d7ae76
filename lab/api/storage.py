"""The objects of the lab's cluster: one revision counter, bounded history, watches that read from it.

Owns every object; knows nothing of HTTP. Everything runs on one event loop and nothing here awaits between
reading and writing, so each change is atomic. Objects handed out are shared: callers must not change them.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import uuid
from collections import deque
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import TYPE_CHECKING, NamedTuple

from lab.api.resources import Catalogue
from lab.api.services import ServiceRegistry
from lab.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from lab.api.allocation import IpNetwork
    from lab.api.resources import Object, Resource
    from lab.api.selectors import Matcher

_HISTORY = 8192
_GRACE_SECONDS = 30
_WITH_STATUS = frozenset({"Node", "Pod", "Service"})
"""Kinds whose status only the subresource writes."""


class Change(NamedTuple):
    """One revision: what an object was before and is after (None: it did not or does not exist)."""

    revision: int
    resource: Resource
    before: Object | None
    after: Object | None


def everything(_: Object) -> bool:
    """The matcher that selects all objects."""
    return True


def now() -> str:
    """The time as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Storage:
    """All objects, as etcd and the registry of a real API server keep them."""

    def __init__(self) -> None:
        self.catalogue = Catalogue()
        self.revision = 1
        self._objects: dict[Resource, dict[tuple[str, str], Object]] = {}
        self._history: deque[Change] = deque(maxlen=_HISTORY)
        self._forgotten = 0
        """Changes up to this revision can no longer be told."""
        self._changed = asyncio.Event()
        self._admission = {"Service": ServiceRegistry(self._service_networks)}

    def _service_networks(self) -> list[IpNetwork]:
        """What the ServiceCIDR objects hold; the oldest object, which comes first, has the primary family."""
        cidrs = self._objects.get(self.catalogue.named("servicecidrs"), {}).values()
        return [ip_network(cidr) for item in cidrs for cidr in item["spec"]["cidrs"]]

    # reading

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        """One object; ApiError 404 where there is none."""
        try:
            return self._objects[resource][namespace, name]
        except KeyError:
            raise ApiError.not_found(resource.plural, name) from None

    def history(self, resource: Resource, revision: int) -> list[Change]:
        """The changes of a kind after `revision`, the oldest first, as far as they are remembered."""
        recent = itertools.takewhile(lambda change: change.revision > revision, reversed(self._history))
        return [change for change in recent if change.resource == resource][::-1]

    def list(self, resource: Resource, namespace: str = "", matches: Matcher = everything) -> list[Object]:
        """The selected objects in order of namespace and name; an empty namespace means all."""
        rows = sorted(self._objects.get(resource, {}).items())
        return [item for (space, _), item in rows if namespace in ("", space) and matches(item)]

    def check_revision(self, revision: int) -> None:
        """Raise ApiError 410 when what happened since `revision` is no longer known."""
        if revision < self._forgotten or revision > self.revision:
            raise ApiError.gone(f"too old resource version: {revision} ({self._forgotten + 1})")

    def changes(
        self, resource: Resource, revision: int, namespace: str = "", matches: Matcher = everything
    ) -> tuple[tuple[tuple[str, Object], ...], int]:
        """What happened after `revision` as (type, object) for such a watcher, and the revision now."""
        told = tuple(
            seen
            for change in self.history(resource, revision)
            if (seen := _as_seen(change, namespace, matches)) is not None
        )
        return told, self.revision

    async def watch(
        self, resource: Resource, revision: int, namespace: str = "", matches: Matcher = everything
    ) -> AsyncIterator[tuple[str, Object]]:
        """Changes after `revision` for the lab's own parts: never too old, whatever was forgotten."""
        while True:
            told, revision = self.changes(resource, revision, namespace, matches)
            for kind, item in told:
                yield kind, item
            await self.beyond(revision)

    async def beyond(self, revision: int) -> None:
        """Wait until something changes after `revision`."""
        while self.revision <= revision:
            await self._changed.wait()

    # writing

    def create(self, resource: Resource, namespace: str, item: Object) -> Object:
        """Store a new object; fills in what a server fills in."""
        item = copy.deepcopy(item)
        metadata = item.setdefault("metadata", {})
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + uuid.uuid4().hex[:5]
        name = metadata.get("name", "")
        if not name:
            raise ApiError(422, "Invalid", "metadata.name: Required value: name or generateName is required")
        if resource.namespaced:
            metadata["namespace"] = namespace = namespace or metadata.get("namespace") or "default"
        if (namespace, name) in self._objects.get(resource, {}):
            raise ApiError.exists(resource.plural, name)
        item.setdefault("apiVersion", resource.api_version)
        item.setdefault("kind", resource.kind)
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = now()
        if resource.kind == "CustomResourceDefinition":
            self.catalogue.define(item)
        self._admit(resource, None, item)
        return self._commit(resource, (namespace, name), None, item)

    def update(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        change: Callable[[Object], Object],
        *,
        subresource: str = "",
    ) -> Object:
        """Replace an object by what `change` makes of it; `subresource` "status" writes the status alone."""
        before = self.get(resource, namespace, name)
        after = copy.deepcopy(change(copy.deepcopy(before)))
        metadata = after.setdefault("metadata", {})
        version = metadata.get("resourceVersion")
        if version and version != before["metadata"]["resourceVersion"]:
            why = (
                "the object has been modified; please apply your changes to the latest version and try again"
            )
            raise ApiError.conflict(resource.plural, name, why)
        if metadata.get("uid", before["metadata"]["uid"]) != before["metadata"]["uid"]:
            raise ApiError.conflict(resource.plural, name, "the UID in the precondition does not match")
        if subresource == "status":
            after = {**before, "metadata": dict(before["metadata"]), "status": after.get("status", {})}
        elif resource.kind in _WITH_STATUS and "status" in before:
            after["status"] = before["status"]
        for field in ("name", "namespace", "uid", "creationTimestamp", "resourceVersion"):
            if field in before["metadata"]:
                after["metadata"][field] = before["metadata"][field]
        self._admit(resource, before, after)
        if after == before:
            return before
        return self._commit(resource, (namespace, name), before, after)

    def delete(self, resource: Resource, namespace: str, name: str, *, grace: int | None = None) -> Object:
        """Delete an object. A pod on a node is only marked unless `grace` is 0: its kubelet deletes it."""
        before = self.get(resource, namespace, name)
        if resource.kind == "Pod" and grace != 0 and before.get("spec", {}).get("nodeName"):
            if "deletionTimestamp" in before["metadata"]:
                return before
            if grace is None:
                grace = before["spec"].get("terminationGracePeriodSeconds", _GRACE_SECONDS)
            marks = {"deletionTimestamp": now(), "deletionGracePeriodSeconds": grace}
            return self._commit(
                resource, (namespace, name), before, {**before, "metadata": {**before["metadata"], **marks}}
            )
        self._admit(resource, before, None)
        self._commit(resource, (namespace, name), before, None)
        return before

    def _admit(self, resource: Resource, before: Object | None, after: Object | None) -> None:
        """Let the kind's rules complete or refuse what is about to be stored."""
        if (registry := self._admission.get(resource.kind)) is not None:
            registry.admit(before, after)

    def forget(self) -> None:
        """Lose the history, as after an etcd compaction: every older resourceVersion is too old now."""
        self.revision += 1
        self._forgotten = self.revision
        self._notify()

    def _commit(
        self, resource: Resource, key: tuple[str, str], before: Object | None, after: Object | None
    ) -> Object:
        self.revision += 1
        if after is not None:
            after["metadata"]["resourceVersion"] = str(self.revision)
            self._objects.setdefault(resource, {})[key] = after
        else:
            del self._objects[resource][key]
        if len(self._history) == _HISTORY:
            self._forgotten = max(self._forgotten, self._history[0].revision)
        self._history.append(Change(self.revision, resource, before, after))
        self._notify()
        result = after if after is not None else before
        assert result is not None
        return result

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _as_seen(change: Change, namespace: str, matches: Matcher) -> tuple[str, Object] | None:
    """How a watcher with this selector is told of a change: leaving the selection is a deletion to it."""

    def seen(item: Object | None) -> bool:
        return item is not None and namespace in ("", item["metadata"].get("namespace", "")) and matches(item)

    if seen(change.after):
        assert change.after is not None
        return ("MODIFIED" if seen(change.before) else "ADDED", change.after)
    if seen(change.before):
        assert change.before is not None
        gone = change.after if change.after is not None else change.before
        last = {**gone, "metadata": {**gone["metadata"], "resourceVersion": str(change.revision)}}
        return ("DELETED", last)
    return None
