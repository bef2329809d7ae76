"""What a cluster's controllers do for Services: EndpointSlices from pods, addresses for load balancers.

Level-triggered: whatever changed, the objects that should be there are computed anew for the Services that
it concerns, compared with those that are there, and the differences written. Other people's slices and
Services with a loadBalancerClass are left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from ipaddress import ip_address
from typing import TYPE_CHECKING

from lab.api.services import NAMES
from lab.endpoint_slices import CONTROLLER, MANAGED_BY, SERVICE_NAME, ZONE, has_slices, selects, slices_of
from lab.errors import ApiError
from lab.underlay import LOAD_BALANCER_NETWORKS

if TYPE_CHECKING:
    from lab.api.resources import Object, Resource
    from lab.api.storage import Storage

Key = tuple[str, str]
"""Namespace and name."""


def key_of(item: Object) -> Key:
    """Namespace and name of an object."""
    metadata = item["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


class EndpointSliceController:
    """Keeps the slices of Services with selectors as the pods are."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        catalogue = storage.catalogue
        self._services = catalogue.named("services")
        self._slices = catalogue.named("endpointslices")
        self._pods = catalogue.named("pods")
        self._nodes = catalogue.named("nodes")
        self._zones: dict[str, str] = {}
        self._made: dict[Key, dict[Key, None]] = {}
        """The names of the slices that there are of a Service."""

    async def run(self) -> None:
        """Go on until cancelled."""
        revision = self.storage.revision
        concerned = self._all()
        while True:
            for key in sorted(concerned):
                self._bring_up_to_date(key)
            await self.storage.beyond(self.storage.revision)
            concerned, revision = self._concerned(revision), self.storage.revision

    def _all(self) -> set[Key]:
        """Every Service that there is or was, after reading the zones."""
        self._zones = self._read_zones()
        for item in self.storage.list(self._slices, "", _is_ours):
            self._made.setdefault(_service_of(item), {})[key_of(item)] = None
        return {*self._made, *map(key_of, self.storage.list(self._services))}

    def _read_zones(self) -> dict[str, str]:
        nodes = self.storage.list(self._nodes)
        labels = {node["metadata"]["name"]: node["metadata"].get("labels") or {} for node in nodes}
        return {name: label[ZONE] for name, label in labels.items() if label.get(ZONE)}

    def _concerned(self, revision: int) -> set[Key]:
        """The Services that changes after `revision` concern; all when more happened than is remembered."""
        try:
            self.storage.check_revision(revision)
        except ApiError:
            return self._all()
        if self.storage.history(self._nodes, revision) and self._read_zones() != self._zones:
            return self._all()
        concerned = set(map(key_of, self._seen(self._services, revision)))
        for item in self._seen(self._slices, revision):
            if _is_ours(item):
                self._made.setdefault(_service_of(item), {})[key_of(item)] = None
                concerned.add(_service_of(item))
        if pods := self._seen(self._pods, revision):
            services = self.storage.list(self._services)
            concerned |= {key_of(one) for one in services if any(selects(one, pod) for pod in pods)}
        return concerned

    def _seen(self, resource: Resource, revision: int) -> list[Object]:
        """What objects that changed after `revision` were and are."""
        changes = self.storage.history(resource, revision)
        return [item for change in changes for item in (change.before, change.after) if item is not None]

    def _bring_up_to_date(self, key: Key) -> None:
        """Create and change before deleting, so that no endpoint is missing in between."""
        desired: dict[Key, Object] = {}
        with contextlib.suppress(ApiError):
            service = self.storage.get(self._services, *key)
            if has_slices(service):
                pods = self.storage.list(self._pods, key[0])
                desired = {key_of(item): item for item in slices_of(service, pods, self._zones)}
        for name, item in desired.items():
            self._put(name, item)
        for name in self._made.pop(key, {}).keys() - desired.keys():
            with contextlib.suppress(ApiError):
                self.storage.delete(self._slices, *name)
        if desired:
            self._made[key] = dict.fromkeys(desired)

    def _put(self, name: Key, item: Object) -> None:
        try:
            there = self.storage.get(self._slices, *name)
        except ApiError:
            self.storage.create(self._slices, name[0], item)
            return
        if _is_ours(there):  # else it is somebody's slice of that name, and theirs to move
            self.storage.update(self._slices, *name, lambda old: _renewed(old, item))


def _is_ours(item: Object) -> bool:
    return (item["metadata"].get("labels") or {}).get(MANAGED_BY) == CONTROLLER


def _service_of(item: Object) -> Key:
    return item["metadata"]["namespace"], item["metadata"]["labels"].get(SERVICE_NAME, "")


def _renewed(old: Object, new: Object) -> Object:
    """What the slice should be, with the metadata that the server keeps."""
    return {**new, "metadata": {**old["metadata"], **new["metadata"]}}


class LoadBalancerController:
    """Gives Services of type LoadBalancer an address of each of their families.

    One with a loadBalancerClass is left to whoever made it: its status is to be patched.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._services = storage.catalogue.named("services")

    async def run(self) -> None:
        """Go on until cancelled."""
        revision = self.storage.revision
        changed = self.storage.list(self._services)
        while True:
            for service in changed:
                if (wanted := self._wanted(service)) != _ingress(service):
                    self._set(service, wanted)
            await self.storage.beyond(self.storage.revision)
            changed, revision = self._changed(revision), self.storage.revision

    def _changed(self, revision: int) -> list[Object]:
        """The Services that changed after `revision`; all when more happened than is remembered."""
        try:
            self.storage.check_revision(revision)
        except ApiError:
            return self.storage.list(self._services)
        history = self.storage.history(self._services, revision)
        latest = {key_of(change.after): change.after for change in history if change.after is not None}
        return list(latest.values())

    def _wanted(self, service: Object) -> list[Object]:
        spec, present = service["spec"], _ingress(service)
        if spec["type"] != "LoadBalancer":
            return []
        if spec.get("loadBalancerClass"):
            return present
        families = spec["ipFamilies"]
        if [NAMES[ip_address(entry["ip"]).version] for entry in present if "ip" in entry] == families:
            return present
        services = self.storage.list(self._services)
        taken = {entry["ip"] for one in services for entry in _ingress(one) if "ip" in entry}
        return [{"ip": _free(family, taken, spec), "ipMode": "VIP"} for family in families]

    def _set(self, service: Object, ingress: list[Object]) -> None:
        def change(item: Object) -> Object:
            return {**item, "status": {**item.get("status", {}), "loadBalancer": {"ingress": ingress}}}

        with contextlib.suppress(ApiError):
            self.storage.update(self._services, *key_of(service), change, subresource="status")


def _ingress(service: Object) -> list[Object]:
    return service.get("status", {}).get("loadBalancer", {}).get("ingress") or []


def _free(family: str, taken: set[str], spec: Object) -> str:
    """The address that the Service asks for, else the first of the family that no Service has."""
    asked = spec.get("loadBalancerIP", "")
    if asked and NAMES[ip_address(asked).version] == family:
        return str(asked)
    network = next(net for version, net in LOAD_BALANCER_NETWORKS.items() if NAMES[version] == family)
    candidates = (str(network[number]) for number in range(1, 255))
    free = next((address for address in candidates if address not in taken), None)
    if free is None:
        raise ApiError(500, "InternalError", f"all addresses for load balancers of {family} are in use")
    return free


async def run(storage: Storage) -> None:
    """Run the controllers until cancelled."""
    async with asyncio.TaskGroup() as group:
        group.create_task(EndpointSliceController(storage).run())
        group.create_task(LoadBalancerController(storage).run())
