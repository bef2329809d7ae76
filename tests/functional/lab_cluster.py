"""A lab cluster for tests: real daemons in namespaces of this process, driven by plain synchronous calls.

The cluster lives on an event loop in a thread of its own, so that one cluster can serve many tests. What a
test broke it mends itself; `healthy` says whether it did.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from ctl.render import plain
from lab import connectivity
from lab.cluster import Cluster
from lab.echo import PORT, ask, client_socket
from lab.namespaces import descriptor_path
from lab.options import Options
from weft_rpc import admin_pb2
from weft_rpc.admin_pb2_grpc import AdminStub

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from concurrent.futures import Future

    from lab.api.resources import Object
    from lab.api.server import ApiServer
    from lab.node import Node
    from lab.runtime import Sandbox

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
T = TypeVar("T")

WEFTCTL = str(Path(sys.executable).with_name("weftctl"))
NAMESPACE = "default"
_START_SECONDS = 60.0
_ANSWER_SECONDS = 3.0
"""A packet without an answer for so long is lost; a busy machine may take its time."""
_QUESTIONS: dict[tuple[str, ...], tuple[str, Any]] = {
    ("status",): ("Status", admin_pb2.StatusRequest()),
    ("attachments",): ("ListAttachments", admin_pb2.ListAttachmentsRequest()),
    ("nodes",): ("ListNodes", admin_pb2.ListNodesRequest()),
    ("diff",): ("Diff", admin_pb2.DiffRequest()),
    ("ipam", "show"): ("ShowIpam", admin_pb2.ShowIpamRequest()),
    ("ipam", "check"): ("CheckIpam", admin_pb2.CheckIpamRequest()),
}


@dataclass(slots=True)
class Traffic:
    """What became of packets that went between two pods all the while."""

    answered: int = 0
    lost: list[float] = field(default_factory=list)
    """When, in seconds since the begin, a packet got no answer."""
    broken: str = ""
    """Why the long-lived TCP connection broke, if it did."""


class LabCluster:
    """Use as a context manager."""

    def __init__(self, state: Path, **options: Any) -> None:
        self.options = Options(state=state, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lab", daemon=True)
        self.cluster: Cluster

    def __enter__(self) -> LabCluster:
        self._thread.start()
        try:
            self.run(self._start())
        except BaseException:
            self.__exit__()
            raise
        return self

    async def _start(self) -> None:
        self.cluster = Cluster(self.options)
        await self.cluster.start()
        await self.cluster.wait_ready(_START_SECONDS)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(AttributeError):
            self.run(self.cluster.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # driving it

    def run(self, work: Coroutine[Any, Any, T], limit: float = 90.0) -> T:
        """Carry out a coroutine on the lab's loop and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(limit)

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Let a coroutine go on on the lab's loop while the test does other things."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, work: Callable[[], T]) -> T:
        """Call a function on the lab's loop, which is the only place to touch the cluster's objects."""

        async def here() -> T:
            return work()

        return self.run(here())

    def node(self, name: str) -> Node:
        """A node of the lab."""
        return self.cluster.node(name)

    @property
    def api(self) -> ApiServer:
        """The API server, with its fault switches; its coroutines go through `run`."""
        return self.cluster.api

    def sh(self, node: str, command: str) -> str:
        """Run a shell command in a node and return its output."""
        return self.run(self.node(node).run("sh", "-c", command))

    def pod_sh(self, pod: str, command: str) -> str:
        """Run a shell command in a pod's network namespace and return its output."""
        node = self.pods()[pod]["spec"]["nodeName"]
        net = descriptor_path(self.sandbox(pod).descriptor)
        return self.run(self.node(node).run("sh", "-c", command, net=net))

    def wait(self, condition: Callable[[], T], what: str, limit: float = 20.0) -> T:
        """Wait until `condition` is true; returns its value."""
        deadline = time.monotonic() + limit
        while not (value := condition()):
            assert time.monotonic() < deadline, f"after {limit:.0f} s still not: {what}"
            time.sleep(0.05)
        return value

    # what the daemons say

    def weftctl(self, node: str, *arguments: str) -> Any:
        """What `weftctl ... -o json` prints on a node; {} when the daemon cannot be reached.

        Asks and renders as weftctl does, in this process: an interpreter started for each question would take
        most of the tests' time. `run_weftctl` runs the program itself.
        """
        verb, request = _QUESTIONS[arguments]
        # The node's /run is in a mount namespace of its own.
        path = f"/proc/{self.node(node).daemon.pid}/root/run/weft/admin.sock"
        with grpc.insecure_channel(f"unix:{path}") as channel:
            try:
                answer = getattr(AdminStub(channel), verb)(request, timeout=5)  # type: ignore[no-untyped-call]
            except grpc.RpcError:
                return {}
        return plain(answer)

    def run_weftctl(self, node: str, *arguments: str) -> str:
        """Run weftctl itself on a node and return what it prints; it may have found something (status 1)."""
        command = self.node(node).namespaces.command(WEFTCTL, *arguments)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode in (0, 1), f"weftctl {' '.join(arguments)}: {done.stderr}{done.stdout}"
        return done.stdout

    def findings(self, node: str) -> dict[str, str]:
        """What is found wrong on a node: name → message."""
        found: dict[str, str] = {}
        for row in self.weftctl(node, "status").get("findings", []):
            if row["level"] != "ok":
                found[row["name"]] = f"{found.get(row['name'], '')} {row['message']}".strip()
        return found

    def wait_finding(self, node: str, name: str, *words: str, limit: float = 15.0) -> str:
        """Wait until the finding stands in the status, with all the words in its message."""

        def found() -> str:
            message = self.findings(node).get(name, "")
            return message if all(word in message for word in words) else ""

        return self.wait(found, f"{name} with {words} on {node}; there is {self.findings(node)}", limit)

    def wait_cleared(self, node: str, name: str, limit: float = 15.0) -> None:
        """Wait until the finding is gone."""
        self.wait(lambda: name not in self.findings(node), f"{name} cleared on {node}", limit)

    def log(self, node: str) -> list[dict[str, Any]]:
        """The daemon's log since the node was made."""
        rows = []
        for line in self.node(node).log_file.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
        return rows

    def wait_log(self, node: str, event: str, *words: str) -> None:
        """Wait until the daemon's log has the event, with all the words in its line."""

        def found() -> bool:
            lines = [json.dumps(row) for row in self.log(node) if event in row["event"]]
            return any(all(word in line for word in words) for line in lines)

        self.wait(found, f"{event!r} with {words} in the log of {node}", 10)

    def differences(self) -> dict[str, Any]:
        """By node what `weftctl diff` shows, for nodes where it shows anything."""

        found = {
            name: self.weftctl(name, "diff").get("differences", ["no daemon"]) for name in self.cluster.nodes
        }
        return {name: rows for name, rows in found.items() if rows}

    # pods

    def add_pods(self, *names: str, node: str = "", wait: bool = True) -> None:
        """Create pods and wait until they run."""

        def create() -> None:
            for name in names:
                spec = {"nodeName": node} if node else {}
                self.cluster.apply(
                    {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
                )

        self.call(create)
        if wait:
            self.run(self.cluster.wait_ready(30))

    def delete_pods(self, *names: str, wait: bool = True) -> None:
        """Delete pods and wait until they are gone."""
        resource = self.cluster.storage.catalogue.named("pods")
        for name in names:
            self.call(lambda name=name: self.cluster.storage.delete(resource, NAMESPACE, name))  # type: ignore[misc]
        if wait:
            self.wait(lambda: not set(names) & set(self.pods()), f"pods {names} gone")

    def pods(self) -> dict[str, Object]:
        """All pods by name."""
        return {pod["metadata"]["name"]: pod for pod in self.call(self.cluster.pods)}

    def addresses(self, pod: str) -> list[str]:
        """The pod's addresses as its status tells them."""
        return [entry["ip"] for entry in self.pods()[pod].get("status", {}).get("podIPs", [])]

    def sandbox(self, pod: str) -> Sandbox:
        """The pod's sandbox."""
        return self.call(lambda: self.cluster.sandbox(NAMESPACE, pod))

    def events(self, pod: str) -> list[str]:
        """The messages of the pod's events."""
        resource = self.cluster.storage.catalogue.named("events")
        events = self.call(lambda: self.cluster.storage.list(resource))
        return [
            event["message"] for event in events if (event.get("involvedObject") or {}).get("name") == pod
        ]

    # whether it works

    def faults(self) -> list[str]:
        """Run the connectivity matrix; what is wrong, in words."""
        outcomes = self.run(connectivity.run(self.call(lambda: connectivity.plan(self.cluster))))
        assert outcomes, "there are no pods to test"
        return [
            f"{row.road}: {row.source} → {row.destination} IPv{row.family} {row.protocol}: {row.fault}"
            for row in outcomes
            if row.fault
        ]

    def reaches(self, source: str, destination: str) -> bool:
        """Whether a pod gets an answer from another over all its addresses."""
        net = self.sandbox(source).descriptor
        answers = [self.run(ask(net, ip_address(one), "udp")) for one in self.addresses(destination)]
        return bool(answers) and all(answer.name == destination for answer in answers)

    @contextlib.contextmanager
    def traffic(self, source: str, destination: str, family: int = 4) -> Iterator[Traffic]:
        """Packets every few milliseconds and one long TCP connection between two pods, all the while."""
        net = self.sandbox(source).descriptor
        address = next(one for one in map(ip_address, self.addresses(destination)) if one.version == family)
        traffic = Traffic()
        stop = threading.Event()
        task = asyncio.run_coroutine_threadsafe(_exchange(net, address, traffic, stop), self._loop)
        self.wait(lambda: traffic.answered > 3, f"traffic from {source} to {destination}")
        try:
            yield traffic
        finally:
            stop.set()
            task.result(10)

    def restore(self) -> None:
        """Bring back what a failed test may have left off, so that the next one is not blamed for it."""
        self.api.faults.status, self.api.faults.hang = 0, False
        if not self.api.serving:
            self.run(self.cluster.serve_api())
        for node in self.cluster.nodes.values():
            if not node.daemon.pid:
                node.configure()
                self.run(node.start_daemon())

    def healthy(self) -> None:
        """Assert that all is well: ready, kernels as desired, rulesets printable."""
        self.run(self.cluster.wait_ready(30))
        deadline = time.monotonic() + 5
        while (found := self.differences()) and time.monotonic() < deadline:
            time.sleep(0.1)  # a change of just now may still be under way
        assert found == {}
        for name in self.cluster.nodes:
            assert "weft" in self.sh(name, "ip -d link >/dev/null && nft list ruleset")


async def _exchange(net: int, address: Any, traffic: Traffic, stop: threading.Event) -> None:
    loop = asyncio.get_running_loop()
    begin = time.monotonic()
    connection = client_socket(net, address.version, "tcp")
    datagrams = client_socket(net, address.version, "udp")
    with connection, datagrams:
        await loop.sock_connect(connection, (str(address), PORT))
        await loop.sock_connect(datagrams, (str(address), PORT))
        while not stop.is_set():
            at = time.monotonic() - begin
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await loop.sock_sendall(datagrams, b"?")
                    await loop.sock_recv(datagrams, 100)
                traffic.answered += 1
            except (TimeoutError, OSError):
                traffic.lost.append(at)
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await loop.sock_sendall(connection, b"?\n")
                    if not await loop.sock_recv(connection, 100):
                        traffic.broken = traffic.broken or "closed"
            except (TimeoutError, OSError) as error:
                traffic.broken = traffic.broken or repr(error)
            await asyncio.sleep(0.005)
