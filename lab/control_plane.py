"""What kube-controller-manager and kube-scheduler do for a network: podCIDRs for Nodes, nodes for Pods.

Runs the controllers of Services too.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from lab import service_controllers
from lab.errors import ApiError

if TYPE_CHECKING:
    from lab.api.resources import Object
    from lab.api.storage import Storage
    from lab.underlay import IpNetwork


class ControlPlane:
    """Assigns each Node a slice of every cluster CIDR and each Pod a node, in turn.

    Args:
        storage: the cluster's objects.
        cluster_cidrs: the pod CIDRs of the cluster, one per family.
        slice_lengths: prefix length of a node's slice, by address family.
    """

    def __init__(
        self, storage: Storage, cluster_cidrs: tuple[IpNetwork, ...], slice_lengths: dict[int, int]
    ) -> None:
        self.storage = storage
        self.cluster_cidrs = cluster_cidrs
        self.slice_lengths = slice_lengths
        self._turn = 0
        self._nodes = storage.catalogue.named("nodes")
        self._pods = storage.catalogue.named("pods")

    async def run(self) -> None:
        """Go on until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._slice_nodes())
            group.create_task(self._schedule_pods())
            group.create_task(service_controllers.run(self.storage))

    async def _slice_nodes(self) -> None:
        revision = self.storage.revision
        for node in self.storage.list(self._nodes):
            self._slice(node["metadata"]["name"])
        async for kind, node in self.storage.watch(self._nodes, revision):
            if kind != "DELETED":
                self._slice(node["metadata"]["name"])

    def _slice(self, name: str) -> None:
        """Give the Node its slices, unless it has them by now: events tell of the past."""
        with contextlib.suppress(ApiError):
            self._slice_present(self.storage.get(self._nodes, "", name))

    def _slice_present(self, node: Object) -> None:
        if node.get("spec", {}).get("podCIDRs"):
            return
        taken = {
            cidr
            for other in self.storage.list(self._nodes)
            for cidr in other.get("spec", {}).get("podCIDRs", [])
        }
        slices = []
        for cluster_cidr in self.cluster_cidrs:
            candidates = cluster_cidr.subnets(new_prefix=self.slice_lengths[cluster_cidr.version])
            free = next((str(candidate) for candidate in candidates if str(candidate) not in taken), None)
            if free is None:
                return
            slices.append(free)

        def change(item: Object) -> Object:
            item.setdefault("spec", {}).update(podCIDR=slices[0], podCIDRs=slices)
            return item

        self.storage.update(self._nodes, "", node["metadata"]["name"], change)

    async def _schedule_pods(self) -> None:
        """Bind pods without a node, whenever anything changed: pods may come before nodes."""
        while True:
            names = [node["metadata"]["name"] for node in self.storage.list(self._nodes)]
            for pod in self.storage.list(self._pods):
                if names and not pod["spec"].get("nodeName"):
                    self._bind(pod, names[self._turn % len(names)])
                    self._turn += 1
            await self.storage.beyond(self.storage.revision)

    def _bind(self, pod: Object, node: str) -> None:
        def change(item: Object) -> Object:
            item["spec"]["nodeName"] = node
            return item

        with contextlib.suppress(ApiError):
            self.storage.update(self._pods, pod["metadata"]["namespace"], pod["metadata"]["name"], change)
