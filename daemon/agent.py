"""Puts the daemon together: starts and stops its parts in order, and ends loudly when one of them fails.

Order of the start: the lock, the configuration, what the kernel can do; the list-watches until they are
complete; attachments of before, adopted; DELs recorded meanwhile, done; the kernel brought in line; only
then the runtime is served and told so by the conflist. Stopping leaves the kernel and the conflist as they
are: pods keep their network, and a node does not fall back to another CNI plugin.

All tasks live in one TaskGroup. A task that should never end and does is a fault that ends the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from daemon import health as http
from daemon.cluster import decode, endpoint
from daemon.cluster.connection import ApiError, Connection, UnreachableError
from daemon.cluster.reflector import Reflector, Resource
from daemon.cluster.store import NODE, Key, Store
from daemon.config import node_name
from daemon.events import Events, mark_network_available
from daemon.findings import Findings
from daemon.health import Health
from daemon.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from daemon.config import Config
    from daemon.findings import Finding

log = structlog.get_logger()

SYNCED = "cluster state complete"
KERNEL = "kernel in line"
SERVING = "container runtime served"


class EndedError(Exception):
    """A part of the daemon that should run for ever has returned."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Places on the node; the defaults are part of the interface, others are for tests."""

    run: str = "/run/weft"
    conflist: str = "/etc/cni/net.d/05-weft.conflist"

    @property
    def lock(self) -> str:
        """The lock of the only daemon."""
        return os.path.join(self.run, "lock")

    @property
    def cni_socket(self) -> str:
        """Where the shim calls."""
        return os.path.join(self.run, "cni.sock")

    @property
    def admin_socket(self) -> str:
        """Where weftctl calls."""
        return os.path.join(self.run, "admin.sock")

    @property
    def state(self) -> str:
        """IPAM's database."""
        return os.path.join(self.run, "state.db")

    @property
    def deletions(self) -> str:
        """DELs recorded by the shim while nobody served."""
        return os.path.join(self.run, "deletions")

    @property
    def credentials(self) -> str:
        """Certificates that a kubeconfig embeds, as the files that TLS wants."""
        return os.path.join(self.run, "credentials")


class Agent:
    """The daemon. `run` starts it and returns when `stop` was called and everything is stopped."""

    def __init__(self, config: Config, *, version: str, paths: Paths | None = None) -> None:
        self.config = config
        self.version = version
        self.paths = paths or Paths()
        self.node_name = node_name(config)
        self.metrics = Metrics()
        self.metrics.build.labels(version).set(1)
        self.findings = Findings()
        self.findings.listen(self._count_finding)
        self.health = Health(self.metrics, (SYNCED, KERNEL, SERVING))
        self.store = Store()
        self.connection = Connection(lambda: endpoint.choose(config), scratch=self.paths.credentials)
        self.events = Events(self.connection, self.node_name, self.metrics)
        self.findings.listen(self.events.on_finding)
        self.reflectors: tuple[Reflector[Any], ...] = (
            self._reflector(Resource("/api/v1/nodes", decode.node), self.store.nodes),
            self._reflector(
                Resource("/apis/networking.k8s.io/v1/servicecidrs", decode.service_cidr, optional=True),
                self.store.service_cidrs,
            ),
        )
        self._stopping = asyncio.Event()
        self._eternal: list[asyncio.Task[None]] = []

    def stop(self) -> None:
        """Have `run` return; may be called any number of times."""
        self._stopping.set()

    async def run(self) -> None:
        """Run until `stop`.

        Raises:
            ExceptionGroup: with what failed.
        """
        os.makedirs(self.paths.credentials, mode=0o700, exist_ok=True)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self.connection.close)
            async with asyncio.TaskGroup() as group:
                start = group.create_task(self._start(group), name="start")
                await self._stopping.wait()
                log.info("stopping")
                self.health.set(SERVING, "stopping")
                start.cancel()
                await self._stop_serving()
                for task in self._eternal:
                    task.cancel()
        log.info("stopped; pods keep their network")

    async def _start(self, group: asyncio.TaskGroup) -> None:
        def forever(name: str, body: Coroutine[Any, Any, None]) -> None:
            self._eternal.append(group.create_task(_never_ending(name, body), name=name))

        forever("heartbeat", self.health.run())
        health_routes, metrics_routes = self.health.routes(), http.metrics_routes(self.metrics)
        forever("health", self._http(self.config.health_address, health_routes, "healthAddress"))
        forever("metrics", self._http(self.config.metrics_address, metrics_routes, "metricsAddress"))
        forever("events", self.events.run())
        for reflector, table in zip(self.reflectors, self.store.tables, strict=True):
            forever(f"list-watch of {table.kind}s", reflector.run())
        await self.store.wait_synced()
        self.health.set(SYNCED)
        gc.collect()
        gc.freeze()
        self.health.set(KERNEL)
        self.health.set(SERVING)
        forever("node condition", self._keep_condition())
        self._note_start()

    async def _stop_serving(self) -> None:
        pass

    async def _keep_condition(self) -> None:
        """Mark this node's network as available, now and whenever somebody says that it is not."""
        subscription = self.store.subscribe(NODE)
        own = Key(NODE, self.node_name)
        marked = False
        while True:
            if own in await subscription.next():
                node = self.store.nodes.get(self.node_name)
                if node is None or (marked and not node.network_unavailable):
                    continue
                try:
                    await mark_network_available(self.connection, self.node_name)
                    marked = True
                    self.findings.clear("NodeConditionNotSet")
                except ApiError as error:
                    self.findings.report(
                        "NodeConditionNotSet",
                        "warning",
                        f"the condition NetworkUnavailable of the Node stays: {error}; grant patch on "
                        "nodes/status, or clear it yourself where a cloud provider sets it",
                    )
                except UnreachableError:
                    await asyncio.sleep(10)
                    subscription.mark(own)

    def _reflector(self, resource: Resource[Any], table: Any) -> Reflector[Any]:
        return Reflector(self.connection, resource, table, findings=self.findings, metrics=self.metrics)

    def _http(self, address: str, routes: Any, key: str) -> Coroutine[Any, Any, None]:
        return http.serve(address, routes, self.findings, key=key)

    def _count_finding(self, finding: Finding, _holds: bool) -> None:
        rows = self.findings.rows()
        for level in ("ok", "warning", "error"):
            count = sum(row.name == finding.name and row.level == level for row in rows)
            self.metrics.findings.labels(finding.name, level).set(count)

    def _note_start(self) -> None:
        seconds = process_age()
        self.metrics.startup_seconds.set(seconds)
        log.info("ready", node=self.node_name, version=self.version, seconds=round(seconds, 3))


async def _never_ending(name: str, body: Coroutine[Any, Any, None]) -> None:
    await body
    raise EndedError(f"{name} ended, which it never should; the daemon has to be started again")


def process_age() -> float:
    """Seconds since this process was started, the start of Python included."""
    with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
        started = int(file.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def stop_on_signals(agent: Agent) -> None:
    """Stop at SIGTERM and SIGINT."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.stop)
