"""A running lab: control plane, API server and nodes as one thing that starts, changes and ends.

Everything runs on the event loop that called `start`; what blocks is done in threads or child processes.
Nothing survives the process, whatever ends it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from ipaddress import ip_network
from typing import TYPE_CHECKING

from lab.api.patches import strategic
from lab.api.server import ApiServer
from lab.api.storage import Storage
from lab.control_plane import ControlPlane
from lab.echo import PORT, Bind, Server, sockets_in
from lab.errors import ApiError, LabError
from lab.node import Node
from lab.underlay import (
    API_PORT,
    EXTERNAL_NETWORKS,
    LOAD_BALANCER_NETWORKS,
    OUTSIDE,
    Segment,
    Underlay,
    families_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.api.resources import Object
    from lab.options import Options
    from lab.runtime import Sandbox

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
_REASONS = 6
"""So many reasons for not being ready are told at once."""
_FAILURES = 4
"""A daemon that ended so many times soon after its start is not worth waiting for."""


class Cluster:
    """The lab's cluster; one task calls its methods."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.storage = Storage()
        self.api = ApiServer(self.storage)
        self.nodes: dict[str, Node] = {}
        segments = tuple(Segment(number) for number in range(1, options.segments + 1))
        self.underlay = Underlay(families_of(options.underlay_family), segments, options.mtu)
        self._control_plane: asyncio.Task[None] | None = None
        self._outside = Server("outside")
        self._next_index = 0

    async def start(self, progress: Callable[[str], None] = lambda _: None) -> None:
        """Bring up control plane and nodes; returns when all daemons are started, not when they are ready."""
        self.options.state.mkdir(parents=True, exist_ok=True)
        progress("underlay and API server")
        await self.underlay.build()
        binds = [
            Bind(protocol, str(OUTSIDE[family]), PORT) for family in (4, 6) for protocol in ("tcp", "udp")
        ]
        await self._outside.start(self.underlay.outside, binds)
        self._furnish()
        await self.serve_api()
        control_plane = ControlPlane(self.storage, self.options.pod_networks(), self.options.slice_lengths)
        self._control_plane = asyncio.create_task(control_plane.run(), name="control plane")
        for _ in range(self.options.nodes):
            node = await self.add_node()
            if len(self.nodes) == 1:
                await self.attract(node.name)
            progress(f"{node.name}")

    def _furnish(self) -> None:
        """The objects that every cluster has from the start."""
        for name in ("default", "kube-system"):
            labels = {"kubernetes.io/metadata.name": name}
            self.apply(
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
            )
        cidrs = [self.options.service_cidrs[family] for family in self.options.pod_families]
        service_cidr = {"metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs}}
        self.apply({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", **service_cidr})

    async def serve_api(self) -> None:
        """Let the nodes reach the API server (again)."""
        for sock in sockets_in(self.underlay.net, [Bind("tcp", "", API_PORT)]):
            await self.api.start(sock)

    async def stop(self) -> None:
        """End everything; never fails halfway."""
        if self._control_plane is not None:
            self._control_plane.cancel()
            await asyncio.wait({self._control_plane})
        ends = await asyncio.gather(
            *(node.power_off() for node in self.nodes.values()), return_exceptions=True
        )
        for end in ends:
            if isinstance(end, Exception):
                log.error("a node did not end well", exc_info=end)
        self.nodes.clear()
        await self.api.stop()
        await self.api.stop(faulty=False)
        self._outside.close()
        self.underlay.close()

    # nodes

    async def add_node(self, name: str = "", *, daemon: bool = True) -> Node:
        """Make and start one more node."""
        index = self._next_index
        self._next_index += 1
        segments = self.underlay.segments
        segment = segments[index % len(segments)]
        name = name or f"node-{index + 1}"
        node = Node(name, index, segment, self.underlay, self.storage, self.options)
        self.nodes[name] = node
        await node.start(daemon=daemon)
        return node

    async def remove_node(self, name: str) -> None:
        """Switch a node off for good and delete its object and pods."""
        node = self.nodes.pop(name)
        await node.power_off()
        catalogue = self.storage.catalogue
        self.storage.delete(catalogue.named("nodes"), "", name)
        for pod in self.pods():
            if pod["spec"].get("nodeName") == name:
                metadata = pod["metadata"]
                self.storage.delete(catalogue.named("pods"), metadata["namespace"], metadata["name"], grace=0)

    async def reboot(self, name: str, *, daemon: bool = True) -> list[Sandbox]:
        """Reboot a node; its pods are started again by its kubelet."""
        return await self.nodes[name].reboot(daemon=daemon)

    async def attract(self, name: str) -> None:
        """Let the router send to this node what comes from outside for Services."""
        services = [ip_network(cidr) for cidr in self.options.service_cidrs.values()]
        networks = (*services, *LOAD_BALANCER_NETWORKS.values(), *EXTERNAL_NETWORKS.values())
        await self.underlay.attract(networks, self.node(name).addresses)

    def node(self, name: str) -> Node:
        """A node by name; LabError lists those that exist."""
        if name not in self.nodes:
            raise LabError(f"no node {name!r}; there are {', '.join(self.nodes)}")
        return self.nodes[name]

    # objects

    def apply(self, item: Object) -> str:
        """Create or merge an object; returns "created", "configured" or "unchanged"."""
        resource = self.storage.catalogue.of(item)
        metadata = item.get("metadata", {})
        name = metadata.get("name", "")
        namespace = metadata.get("namespace", "default") if resource.namespaced else ""
        try:
            before = self.storage.get(resource, namespace, name)
        except ApiError:
            self.storage.create(resource, namespace, item)
            return "created"
        after = self.storage.update(resource, namespace, name, lambda there: strategic(there, item))
        return "unchanged" if after is before else "configured"

    def pods(self) -> list[Object]:
        """All pods."""
        return self.storage.list(self.storage.catalogue.named("pods"))

    def node_objects(self) -> dict[str, Object]:
        """The API's Node objects by name."""
        nodes = self.storage.list(self.storage.catalogue.named("nodes"))
        return {node["metadata"]["name"]: node for node in nodes}

    def sandbox(self, namespace: str, name: str) -> Sandbox:
        """The sandbox of a running pod."""
        pod = self.storage.get(self.storage.catalogue.named("pods"), namespace, name)
        node = self.node(pod["spec"].get("nodeName", ""))
        try:
            return node.kubelet.sandboxes[pod["metadata"]["uid"]]
        except KeyError:
            raise LabError(f"pod {namespace}/{name} has no sandbox: it is not running") from None

    # waiting

    def unready(self) -> list[str]:
        """What is not Ready or Running, with the reason in words; empty: the cluster is well."""
        control_plane = self._control_plane
        if control_plane is not None and control_plane.done() and not control_plane.cancelled():
            return [f"the control plane failed, which is a fault of the lab: {control_plane.exception()!r}"]
        troubles = {name: node.trouble for name, node in self.nodes.items() if node.trouble}
        reasons = [f"node {name}: {trouble}" for name, trouble in troubles.items()]
        for name, node in self.node_objects().items():
            conditions = node.get("status", {}).get("conditions", [])
            ready = next((entry for entry in conditions if entry["type"] == "Ready"), None)
            if name not in troubles and (ready is None or ready["status"] != "True"):
                reasons.append(f"node {name}: {ready['message'] if ready else 'no Ready condition'}")
        for pod in self.pods():
            status = pod.get("status", {})
            if status.get("phase") != "Running" or "deletionTimestamp" in pod["metadata"]:
                name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
                reasons.append(f"pod {name}: {status.get('phase', 'Pending')} {status.get('message', '')}")
        return reasons

    async def wait_ready(self, limit: float = 60.0) -> None:
        """Wait until all nodes are Ready and all pods Running; LabError says what is not."""
        deadline = time.monotonic() + limit
        while reasons := self.unready():
            hopeless = any(
                node.trouble and (node.daemon.pid or node.daemon.failures >= _FAILURES)
                for node in self.nodes.values()
            )
            if hopeless or time.monotonic() > deadline:
                passed = limit - (deadline - time.monotonic())
                more = f"\n  ... and {len(reasons) - _REASONS} more" if len(reasons) > _REASONS else ""
                listed = "".join(f"\n  {reason}" for reason in reasons[:_REASONS])
                raise LabError(f"not ready after {passed:.0f} s:{listed}{more}")
            await asyncio.sleep(_POLL_SECONDS)
