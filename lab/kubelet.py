"""The part of a kubelet that a network sees: it registers the Node, reports readiness, runs and removes pods.

Reads and writes the storage directly, as it is part of the lab and not what is tested. A pod is a sandbox
of the runtime with the echo server in it; its containers are not run. A pod that is deleted ends at once,
unless a container asks for lifecycle.preStop.sleep: so long, and within its grace period, it goes on serving.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

from lab.api.selectors import matcher
from lab.api.storage import now
from lab.echo import PORT, Bind, Server
from lab.endpoint_slices import ZONE
from lab.errors import ApiError, LabError
from lab.runtime import PodName

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lab.api.resources import Object
    from lab.api.storage import Storage
    from lab.runtime import Runtime, Sandbox
    from lab.underlay import IpAddress

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_BACKOFF_SECONDS = (0.5, 1.0, 2.0, 4.0)


class Kubelet:
    """One node's kubelet; `run` goes on until it is cancelled and leaves the pods as they are."""

    def __init__(
        self,
        node: str,
        addresses: list[IpAddress],
        storage: Storage,
        runtime: Runtime,
        *,
        max_pods: int = 110,
        zone: str = "",
    ) -> None:
        self.node = node
        self.addresses = addresses
        self.storage = storage
        self.runtime = runtime
        self.max_pods = max_pods
        self.zone = zone
        self.sandboxes: dict[str, Sandbox] = {}
        """By uid of the pod."""
        self._servers: dict[str, Server] = {}
        self._deleted: dict[str, asyncio.Event] = {}
        self._gone: dict[str, asyncio.Event] = {}
        """Whether the pod's object is no longer there: deleted by force, or with its node."""
        self._nodes = storage.catalogue.named("nodes")
        self._pods = storage.catalogue.named("pods")

    async def run(self, lost: Iterable[Sandbox] = ()) -> None:
        """Register the node, end what the last boot left, then watch the node's pods."""
        self.register()
        selected = matcher("", f"spec.nodeName={self.node}")
        async with asyncio.TaskGroup() as group:
            group.create_task(self._report())
            for sandbox in lost:
                group.create_task(self._bury(sandbox))
            revision = self.storage.revision
            for pod in self.storage.list(self._pods, "", selected):
                self._set_pending(pod, "its sandbox is yet to be made")
                self._see(pod, group)
            async for kind, pod in self.storage.watch(self._pods, revision, "", selected):
                if kind == "DELETED":
                    for events in (self._deleted, self._gone):
                        events.setdefault(pod["metadata"]["uid"], asyncio.Event()).set()
                else:
                    self._see(pod, group)

    def register(self) -> None:
        """Create the Node object, or refresh what the kubelet owns of it."""
        with contextlib.suppress(ApiError):
            labels = {"kubernetes.io/hostname": self.node, "kubernetes.io/os": "linux"}
            if self.zone:
                labels[ZONE] = self.zone
            self.storage.create(
                self._nodes, "", {"metadata": {"name": self.node, "labels": labels}, "spec": {}}
            )
        self._set_ready(ready=False, message="container runtime network not ready")

    def _set_ready(self, *, ready: bool, message: str) -> None:
        def change(node: Object) -> Object:
            status = node.setdefault("status", {})
            status["addresses"] = [
                *({"type": "InternalIP", "address": str(address)} for address in self.addresses),
                {"type": "Hostname", "address": self.node},
            ]
            status["capacity"] = status["allocatable"] = {"pods": str(self.max_pods)}
            wanted = "True" if ready else "False"
            conditions = status.setdefault("conditions", [])
            old = next((entry for entry in conditions if entry["type"] == "Ready"), None)
            if old is None or old["status"] != wanted or old["message"] != message:
                reason = "KubeletReady" if ready else "KubeletNotReady"
                new = {"type": "Ready", "status": wanted, "reason": reason, "message": message}
                new["lastTransitionTime"] = now()
                status["conditions"] = [*(entry for entry in conditions if entry is not old), new]
            return node

        with contextlib.suppress(ApiError):  # the Node object may be deleted under us: as in a real cluster
            self.storage.update(self._nodes, "", self.node, change, subresource="status")

    def network_fault(self) -> str:
        """Why pods cannot be started now; empty when they can."""
        try:
            self.runtime.network()
        except (LabError, OSError) as error:
            return str(error)
        return ""

    async def _report(self) -> None:
        while True:
            fault = self.network_fault()
            message = (
                f"container runtime network not ready: {fault}"
                if fault
                else "kubelet is posting ready status"
            )
            self._set_ready(ready=not fault, message=message)
            await asyncio.sleep(_POLL_SECONDS)

    # pods

    def _see(self, pod: Object, group: asyncio.TaskGroup) -> None:
        uid = pod["metadata"]["uid"]
        if uid not in self._deleted:
            self._deleted[uid] = asyncio.Event()
            self._gone[uid] = asyncio.Event()
            group.create_task(self._live(pod))
        if "deletionTimestamp" in pod["metadata"]:
            self._deleted[uid].set()

    async def _live(self, pod: Object) -> None:
        """One pod from its sandbox to its end; tried again with new sandboxes until it works."""
        metadata = pod["metadata"]
        deleted = self._deleted[metadata["uid"]]
        attempt = 0
        while not deleted.is_set():
            try:
                await self._start(pod)
                self._set_running(pod)
                await deleted.wait()
                await self._drain(pod)
            except LabError as error:
                log.warning("pod %s/%s: %s", metadata["namespace"], metadata["name"], error)
                self._record(pod, "FailedCreatePodSandBox", str(error))
                wait = _BACKOFF_SECONDS[min(attempt, len(_BACKOFF_SECONDS) - 1)]
                attempt += 1
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await deleted.wait()
        await self._finish(pod)

    async def _start(self, pod: Object) -> None:
        metadata = pod["metadata"]
        if pod["spec"].get("hostNetwork"):
            await self._serve(pod, self.runtime.namespaces.net)
            return
        while (fault := self.network_fault()) and not self._deleted[metadata["uid"]].is_set():
            self._set_pending(pod, fault)
            await asyncio.sleep(_POLL_SECONDS)
        name = PodName(metadata["namespace"], metadata["name"], metadata["uid"])
        sandbox = await self.runtime.create(name, {"portMappings": _port_mappings(pod)})
        self.sandboxes[metadata["uid"]] = sandbox
        await self._serve(pod, sandbox.descriptor)

    async def _serve(self, pod: Object, net: int) -> None:
        server = Server(pod["metadata"]["name"])
        self._servers[pod["metadata"]["uid"]] = server
        try:
            await server.start(net, _binds(pod))
        except OSError as error:
            raise LabError(f"its server cannot listen: {error}") from error

    async def _drain(self, pod: Object) -> None:
        """Go on serving for as long as the pod's preStop hook sleeps."""
        metadata = pod["metadata"]
        with contextlib.suppress(ApiError):
            pod = self.storage.get(self._pods, metadata["namespace"], metadata["name"])
            grace = float(pod["metadata"].get("deletionGracePeriodSeconds", 0))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(grace, _pre_stop_seconds(pod))):
                    await self._gone[metadata["uid"]].wait()

    async def _finish(self, pod: Object) -> None:
        metadata = pod["metadata"]
        uid = metadata["uid"]
        attempt = 0
        self._set_unready(pod)
        self.silence(uid)
        while (sandbox := self.sandboxes.get(uid)) is not None:
            try:
                await self.runtime.remove(sandbox)
                del self.sandboxes[uid]
            except LabError as error:
                self._record(pod, "FailedKillPod", str(error))
                await asyncio.sleep(_BACKOFF_SECONDS[min(attempt, len(_BACKOFF_SECONDS) - 1)])
                attempt += 1
        self._deleted.pop(uid, None)
        self._gone.pop(uid, None)
        with contextlib.suppress(ApiError):
            now_there = self.storage.get(self._pods, metadata["namespace"], metadata["name"])
            if now_there["metadata"]["uid"] == uid:
                self.storage.delete(self._pods, metadata["namespace"], metadata["name"], grace=0)

    async def _bury(self, sandbox: Sandbox) -> None:
        """DEL for a sandbox whose namespace is gone, as a runtime does after a reboot."""
        for wait in (*_BACKOFF_SECONDS, *_BACKOFF_SECONDS):
            try:
                return await self.runtime.delete(sandbox)
            except LabError as error:
                log.warning("DEL of lost sandbox %s: %s", sandbox.container_id[:12], error)
                await asyncio.sleep(wait)
        return None

    def silence(self, uid: str) -> None:
        """Stop the pod's server, whose sockets would keep the namespace alive."""
        if (server := self._servers.pop(uid, None)) is not None:
            server.close()

    def lose_power(self) -> list[Sandbox]:
        """End all pods without any DEL; returns the sandboxes that a runtime would find in its database."""
        lost = list(self.sandboxes.values())
        for uid in list(self._servers):
            self.silence(uid)
        for sandbox in lost:
            self.runtime.drop(sandbox)
            sandbox.netns = ""
        self.sandboxes.clear()
        self._deleted.clear()
        self._gone.clear()
        return lost

    # what the API is told

    def _status(self, pod: Object, status: dict[str, Any]) -> None:
        metadata = pod["metadata"]

        def change(item: Object) -> Object:
            if item["metadata"]["uid"] != metadata["uid"]:
                raise ApiError.not_found("pods", metadata["name"])
            return {**item, "status": {**item.get("status", {}), **status}}

        with contextlib.suppress(ApiError):
            namespace, name = metadata["namespace"], metadata["name"]
            self.storage.update(self._pods, namespace, name, change, subresource="status")

    def _set_pending(self, pod: Object, message: str) -> None:
        self._status(pod, {"phase": "Pending", "message": message})

    def _set_unready(self, pod: Object) -> None:
        """Say that the pod's containers have ended."""
        self._status(pod, {"conditions": _conditions(ready=False)})

    def _set_running(self, pod: Object) -> None:
        hosts = [str(address) for address in self.addresses]
        sandbox = self.sandboxes.get(pod["metadata"]["uid"])
        addresses = sandbox.addresses if sandbox is not None else hosts
        status: dict[str, Any] = {
            "phase": "Running",
            "message": "",
            "startTime": now(),
            "hostIP": hosts[0],
            "hostIPs": [{"ip": address} for address in hosts],
            "podIP": addresses[0] if addresses else "",
            "podIPs": [{"ip": address} for address in addresses],
            "conditions": _conditions(ready=True),
        }
        self._status(pod, status)

    def _record(self, pod: Object, reason: str, message: str) -> None:
        metadata = pod["metadata"]
        event = {
            "metadata": {"generateName": f"{metadata['name']}.", "namespace": metadata["namespace"]},
            "involvedObject": {"kind": "Pod", "namespace": metadata["namespace"], "name": metadata["name"]},
            "type": "Warning",
            "reason": reason,
            "message": message,
            "source": {"component": "kubelet", "host": self.node},
            "firstTimestamp": now(),
            "lastTimestamp": now(),
            "count": 1,
        }
        self.storage.create(self.storage.catalogue.named("events"), metadata["namespace"], event)
        self._set_pending(pod, message)


def _conditions(*, ready: bool) -> list[Object]:
    states = {
        "PodReadyToStartContainers": True,
        "Initialized": True,
        "ContainersReady": ready,
        "Ready": ready,
    }
    return [
        {"type": kind, "status": str(state), "lastTransitionTime": now()} for kind, state in states.items()
    ]


def _container_ports(pod: Object) -> list[Object]:
    containers = pod["spec"].get("containers", [])
    return [port for container in containers for port in container.get("ports", [])]


def _binds(pod: Object) -> list[Bind]:
    """Where the pod's server listens: on the ports that its containers declare, and on the usual one.

    In the node's own network the usual one is taken by the node's server.
    """
    usual = set() if pod["spec"].get("hostNetwork") else {Bind("tcp", "", PORT), Bind("udp", "", PORT)}
    declared = {
        Bind(port.get("protocol", "TCP").lower(), "", int(port["containerPort"]))
        for port in _container_ports(pod)
        if port.get("protocol", "TCP") in ("TCP", "UDP")
    }
    return sorted(usual | declared)


def _port_mappings(pod: Object) -> list[dict[str, Any]]:
    """The pod's hostPorts as containerd hands them to the plugins."""
    return [
        {
            "hostPort": port["hostPort"],
            "containerPort": port["containerPort"],
            "protocol": port.get("protocol", "TCP").lower(),
            "hostIP": port.get("hostIP", ""),
        }
        for port in _container_ports(pod)
        if port.get("hostPort")
    ]


def _pre_stop_seconds(pod: Object) -> float:
    """How long the longest preStop hook of the pod sleeps."""
    hooks = [
        container.get("lifecycle", {}).get("preStop", {}) for container in pod["spec"].get("containers", [])
    ]
    return max((float(hook.get("sleep", {}).get("seconds", 0)) for hook in hooks), default=0.0)
