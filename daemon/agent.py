"""Puts the daemon together: starts and stops its parts in order, and ends loudly when one of them fails.

Order of the start: list-watches until they are complete; attachments of before, recovered; DELs recorded
while the daemon was away, done; the kernel brought in line; only then the runtime is served, and told so by
the conflist. Stopping leaves the kernel and the conflist as they are: pods keep their network, and the node
does not fall back to another CNI plugin.

All tasks live in one TaskGroup. A task that should never end and does is a fault that ends the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from daemon import collection, tracking, upkeep
from daemon import health as http
from daemon.admin import paths as admin_paths
from daemon.admin import server as admin
from daemon.admin.sources import Health as AdminHealth
from daemon.admin.sources import PolicySources, Sources
from daemon.cluster import decode, decode_services, endpoint
from daemon.cluster.connection import Connection, UnreachableError
from daemon.cluster.demand import Demand
from daemon.cluster.reflector import Reflector, Resource
from daemon.cluster.resources import NAMESPACES, NETWORK_POLICIES, pods_beyond, pods_on
from daemon.cluster.store import NODE, Store
from daemon.cni.attachments import Attachments
from daemon.cni.conflist import Conflist
from daemon.cni.deletions import Deletions
from daemon.cni.garbage import Garbage
from daemon.cni.server import CniServer
from daemon.cni.service import CniService
from daemon.compile.policy_flows import Effect
from daemon.config import node_name
from daemon.cutting import Cutting
from daemon.denials import Denials
from daemon.events import Events
from daemon.findings import LEVELS, Finding, Findings
from daemon.health import Health
from daemon.metrics import Metrics
from daemon.podnames import PodNames
from daemon.policing import Policing
from daemon.policyaccounts import PolicyAccounts
from daemon.reconcile import Reconciler
from daemon.servicefollowers import ServiceFollowers
from daemon.servicehealth import HealthCheckPorts
from daemon.serviceprogress import Progress
from daemon.services import Services
from datapath import podlinks, probe
from datapath.conntrack import Sweeper
from datapath.errors import DatapathError
from datapath.handover import Handover
from datapath.kernel import attachment_fragment, attachment_key
from datapath.netlink.transport import NETLINK_NETFILTER, Socket
from datapath.nft import policy_inspection
from datapath.nft.policy import DenialLog
from datapath.snapshot import Recorder
from datapath.writer import Writer
from ipam.allocator import Allocator
from ipam.pool import Pool
from ipam.store import Store as Leases

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from daemon.cluster.model import Node
    from daemon.compile.catalog import View
    from daemon.compile.local import LocalNetwork
    from daemon.config import Config
    from datapath.desired import Fragment, FragmentKey
    from datapath.nft.policy_inspection import ExpectedVerdict
    from datapath.writer import Drift

log = structlog.get_logger()

SYNCED = "cluster state complete"
KERNEL = "kernel in line"
SERVING = "container runtime served"

TELL_SECONDS = 5.0
GRACE_SECONDS = 5.0
"""How long requests of the runtime may take to finish when the daemon stops."""
_LOOK_SECONDS = 5.0


class EndedError(Exception):
    """A part of the daemon that should run for ever has returned."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Places on the node; the defaults are part of the interface, others are for tests."""

    run: str = "/run/weft"
    conflists: str = "/etc/cni/net.d"

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
    def desired(self) -> str:
        """The desired state as it was applied last, for weftctl while the daemon is down."""
        return os.path.join(self.run, "desired.db")

    @property
    def leases(self) -> str:
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
        """Open what is local and connect the parts; nothing runs yet.

        Raises:
            StoreError: IPAM's database can't be opened.
            OSError: the directory below /run can't be made.
        """
        self.config = config
        self.version = version
        self.paths = paths or Paths()
        # Of a daemon that was killed, copies of keys may have stayed.
        shutil.rmtree(self.paths.credentials, ignore_errors=True)
        os.makedirs(self.paths.credentials, mode=0o700, exist_ok=True)
        self.node_name = node_name(config)
        self.metrics = Metrics()
        self.metrics.build.labels(version).set(1)
        self.findings = Findings()
        self.findings.listen(self._count_finding)
        self.progress = Progress(self.metrics)
        self.health = Health(
            self.metrics,
            (SYNCED, KERNEL, SERVING),
            services=self.progress,
            leaving=self._leaving,
        )
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
            self._reflector(
                Resource("/api/v1/services", decode_services.service, selector=decode_services.SELECTOR),
                self.store.services,
            ),
            self._reflector(
                Resource(
                    "/apis/discovery.k8s.io/v1/endpointslices",
                    decode_services.endpoint_slice,
                    selector=decode_services.SLICE_SELECTOR,
                ),
                self.store.endpoint_slices,
            ),
            self._reflector(NAMESPACES, self.store.namespaces),
            self._reflector(NETWORK_POLICIES, self.store.network_policies),
            self._reflector(pods_on(self.node_name), self.store.pods),
        )
        self.writer = Writer(report=self._report_refusals)
        self.recorder = Recorder(self.paths.desired)
        self.reconciler = Reconciler(
            store=self.store,
            writer=self.writer,
            config=config,
            node_name=self.node_name,
            findings=self.findings,
            metrics=self.metrics,
            recorder=self.recorder,
            on_addresses=self.connection.forsake,
            on_local=lambda: self.services.look(),
            on_links=lambda links: self.policing.take_links(links),
            on_repair=self._look_at_connections,
        )
        self.sweeper = Sweeper(
            deleted=self.metrics.flows_deleted.inc,
            report=self._report_sweeps,
        )
        self.health_ports = HealthCheckPorts(self.findings, lambda: self.health.proxying)
        self.services = Services(
            store=self.store,
            writer=self.writer,
            config=config,
            node_name=self.node_name,
            local=self._local,
            findings=self.findings,
            progress=self.progress,
            recorder=self.recorder,
            on_applied=ServiceFollowers(self.sweeper, self.health_ports, self._local).follow,
        )
        self.leases = Leases(self.paths.leases)
        loop = asyncio.get_running_loop()
        self.handover = Handover(loop, report=self._report_handover)
        self.attachments = Attachments(
            Allocator(self.leases, cooldown=config.cooldown_seconds),
            on_stale_flows=lambda stale: loop.call_soon_threadsafe(self.sweeper.offer, stale),
            handover=self.handover,
        )
        self.remote_pods = Demand(
            lambda: self._reflector(pods_beyond(self.node_name), self.store.remote_pods),
            self.store.remote_pods,
        )
        self.policing = Policing(
            store=self.store,
            writer=self.writer,
            node_name=self.node_name,
            records=self.attachments.ipam.records,
            remote_pods=self.remote_pods,
            findings=self.findings,
            on_applied=self._record,
            on_isolation=lambda isolated: self.denials.isolated(isolated),
            on_effect=lambda effect: self.cutting.look(effect),
        )
        self.cutting = Cutting(
            self.policing, cut=self.metrics.connections_cut.inc, report=self._report_cutting
        )
        model = self.policing.model
        self.denials = Denials(model, PodNames(model, self.store.remote_pods), self.metrics, self.findings)
        self.policy_accounts = PolicyAccounts(
            model, self.policing.tables, self.metrics, on_denied=self.denials.counted
        )
        self.deletions = Deletions(self.paths.deletions)
        self.cni = CniService(
            attachments=self.attachments,
            deletions=self.deletions,
            local=self._local,
            config=config,
            metrics=self.metrics,
            soon=loop.call_soon_threadsafe,
            birth=self.policing.birth,
            changed=self.policing.look,
        )
        self.garbage = Garbage(
            writer=self.writer,
            attachments=self.attachments,
            deletions=self.deletions,
            service=self.cni,
            local=self._local,
            max_pods=lambda: self._own_node.max_pods if self._own_node is not None else 0,
            findings=self.findings,
            metrics=self.metrics,
        )
        self.cni_server = CniServer(
            self.cni, self.paths.cni_socket, writer=self.writer, limit=config.max_concurrent_adds
        )
        self.conflist = Conflist(self.findings, self.paths.conflists)
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def stop(self) -> None:
        """Have `run` return; may be called any number of times."""
        self._stopping.set()

    async def run(self) -> None:
        """Run until `stop`.

        Raises:
            ExceptionGroup: with what failed.
        """
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.leases.close)
            stack.callback(self.deletions.close)
            stack.push_async_callback(self.connection.close)
            stack.push_async_callback(self.cni_server.stop, 0)
            async with asyncio.TaskGroup() as group:
                start = group.create_task(self._start(group, stack), name="start")
                await self._stopping.wait()
                log.info("stopping")
                self.health.set(SERVING, "stopping")
                start.cancel()
                await self.cni_server.stop(GRACE_SECONDS)
                for task in self._tasks:
                    task.cancel()
        log.info("stopped; pods keep their network")

    async def _start(self, group: asyncio.TaskGroup, stack: contextlib.AsyncExitStack) -> None:
        def forever(name: str, body: Coroutine[Any, Any, None]) -> None:
            self._tasks.append(group.create_task(_never_ending(name, body), name=name))

        config, findings = self.config, self.findings
        collection.slow_down()
        forever("heartbeat", self.health.run())
        forever(
            "health", http.serve(config.health_address, self.health.routes(), findings, key="healthAddress")
        )
        forever(
            "probes", http.serve(config.probe_address, self.health.routes(), findings, key="probeAddress")
        )
        routes = http.metrics_routes(self.metrics)
        forever("metrics", http.serve(config.metrics_address, routes, findings, key="metricsAddress"))
        forever("events", self.events.run())
        for reflector, table in zip(
            self.reflectors, (*self.store.tables, *self.store.policy_tables), strict=True
        ):
            forever(f"list-watch of {table.kind}s", reflector.run())
        forever("writer", self.writer.run())
        forever("figures", upkeep.sample(self.writer, self.metrics))
        admin_server = await admin.serve(self.paths.admin_socket, admin.AdminService(self._sources()))
        stack.push_async_callback(admin_server.stop, 0)
        self._tasks.append(group.create_task(upkeep.check_kernel(config, findings), name="kernel features"))
        forever("look at the machine", upkeep.check_machine(findings))

        await self.store.wait_synced()
        for table in self.store.policy_tables:
            await table.wait_synced()
        self.health.set(SYNCED)
        forever("address plan", self._check_cluster())
        local = await self._know_local()
        forever("pods of other nodes", self.remote_pods.run())
        await self._prepare_denial_log()
        await self.policing.gather()
        async with self.deletions.hold() as held:
            if not held:
                log.warning("the shims' lock was not free in time; DELs of now are done by the timer")
            await self.garbage.recover()
            await self.writer.adopt(
                {
                    attachment_key(each.host_link): attachment_fragment(each, local.sources)
                    for each in self.attachments.attached()
                }
            )
            await self.services.prepare(local)
            await self.policing.prepare()
            forever("reconciler", self.reconciler.run())
            await self.reconciler.wait_synced()
            # Only now: a record without the network would call everything in the kernel stale.
            forever("record of the desired state", self.recorder.run())
            forever("services", self.services.run())
            forever("policies", self.policing.run())
            forever("counters of policies", self.policy_accounts.run())
            forever("denied packets", self.denials.run())
            forever("connections that policies forbid", self.cutting.run())
            # A daemon that was killed may have brought or taken host ports without this.
            self.attachments.tell_flows()
            forever("stale flows", self.sweeper.run())
            await self._clean_addresses(local)
            forever("flows of former owners", self.handover.run())
            forever("health check ports", self.health_ports.run())
            self.health.set(KERNEL)
            forever(
                "connection tracking", tracking.keep(self.config, self.writer, self.findings, self.metrics)
            )
            collection.settle()
            await self.cni_server.start()
        forever("CNI socket", self.cni_server.run())
        forever("garbage", self.garbage.run())
        forever("conflist", self.conflist.run())
        forever(
            "host ports",
            upkeep.check_host_ports(self.attachments.ipam.records, self.services.catalog.holder, findings),
        )
        forever(
            "node condition", upkeep.keep_condition(self.connection, self.store, self.node_name, findings)
        )
        self.health.set(SERVING)
        self._note_start()

    async def _prepare_denial_log(self) -> None:
        """Have denied packets logged if that is wanted and the kernel can do it."""
        config = self.config
        if not config.policy_log_rate:
            return
        settings = DenialLog(config.policy_log_group, config.policy_log_rate)
        refusal = await asyncio.to_thread(probe.log_refusal, settings)
        if refusal:
            self.findings.report(
                "DenialLogUnavailable",
                "warning",
                f"denied packets are counted and not told one by one: {refusal}; load the module "
                "nfnetlink_log and restart the daemon, or give 0 as policyLogRate",
            )
            return
        self.policing.tables.log_denials(settings)
        self.denials.configure(settings)

    async def _know_local(self) -> LocalNetwork:
        """Wait until this node's own network can be worked out; findings say what is missing for that."""
        subscription = self.store.subscribe(NODE)
        try:
            while (local := await self.reconciler.prepare()) is None:
                # A changed Node is one thing that may help, an address of the machine another.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(subscription.next(), _LOOK_SECONDS)
            return local
        finally:
            self.store.unsubscribe(subscription)

    def _check_cluster(self) -> Coroutine[Any, Any, None]:
        return upkeep.check_cluster(
            self.store,
            self.config,
            self.node_name,
            self.findings,
            local=self._local,
            connection=self.connection,
        )

    def _local(self) -> LocalNetwork | None:
        return self.reconciler.local

    def _report_sweeps(self, failure: str) -> None:
        name = "FlowsStale"
        message = (
            f"UDP flows to backends that left can't be deleted, and their clients get no answer: {failure}"
        )
        self.findings.replace((name,), [Finding(name, "warning", message)] if failure else [])

    async def _clean_addresses(self, local: LocalNetwork) -> None:
        """Forget flows to addresses that nobody holds: nobody knows who had them."""
        pools = [Pool(prefix.address, prefix.length) for prefix in local.pod_cidrs]
        # Why it fails is told as a finding, and each ADD tries again.
        with contextlib.suppress(DatapathError):
            await asyncio.to_thread(self.attachments.clean, pools)

    def _report_handover(self, failure: str) -> None:
        name = "FormerFlows"
        message = (
            "flows of pods that are gone can't be deleted, and their addresses can't be handed out before: "
            f"{failure}"
        )
        self.findings.replace((name,), [Finding(name, "error", message)] if failure else [])

    def _look_at_connections(self, drift: Drift) -> None:
        """After rules were missing: what began meanwhile was asked nothing."""
        if any(each.kind == "nft" for each in drift.differences):
            self.cutting.look(Effect.STRICTER)

    def _report_cutting(self, failure: str) -> None:
        name = "ConnectionsNotCut"
        message = f"connections that NetworkPolicies forbid by now can't be found and cut: {failure}"
        self.findings.replace((name,), [Finding(name, "error", message)] if failure else [])

    def _leaving(self) -> str:
        """Why load balancers should send nothing new to this node; "" while they may."""
        node = self._own_node
        if node is None:
            return f"there is no Node {self.node_name}"
        return f"Node {self.node_name} is about to go" if node.leaving else ""

    @property
    def _own_node(self) -> Node | None:
        return self.store.nodes.get(self.node_name)

    def _sources(self) -> Sources:
        async def links() -> Mapping[str, str]:
            return await self.writer.query(lambda sync: podlinks.read(sync.route))

        return Sources(
            version=self.version,
            node_name=self.node_name,
            overlay=self.config.overlay,
            nodes=self.store.nodes,
            local=self._local,
            path=lambda node: admin_paths.path(self.reconciler.local, node),
            leases=self.attachments.ipam,
            difference=self.writer.difference,
            links=links,
            findings=self.findings,
            health=self._admin_health,
            services=self._views,
            policies=PolicySources(
                model=self.policing.model,
                tables=self.policing.tables,
                accounts=self.policy_accounts,
                denials=self.denials,
                inspect=lambda expected: asyncio.to_thread(_inspect, expected),
                pods=self.store.pods,
                remote_pods=self.store.remote_pods,
            ),
        )

    def _record(self, changes: Mapping[FragmentKey, Fragment | None]) -> None:
        if (local := self._local()) is not None:
            self.recorder.record(changes, local.sources)

    def _views(self, name: str) -> list[View]:
        catalog = self.services.catalog
        views = map(catalog.view, [name] if name else sorted(catalog))
        return [view for view in views if view is not None]

    def _admin_health(self) -> AdminHealth:
        synced = self.reconciler.last_sync
        return AdminHealth(
            ready=self.health.ready,
            api_connected=self.reflectors[0].connected,
            seconds_since_sync=time.time() - synced if synced else -1.0,
            repairs=self.reconciler.repairs,
            pending_deletions=len(self.deletions.names()),
        )

    def _reflector(self, resource: Resource[Any], table: Any) -> Reflector[Any]:
        return Reflector(self.connection, resource, table, findings=self.findings, metrics=self.metrics)

    def _report_refusals(self, failures: Mapping[str, str]) -> None:
        self.reconciler.refused(failures)
        self.policing.refused(failures)

    def _count_finding(self, finding: Finding, _holds: bool) -> None:
        for level in LEVELS:
            self.metrics.findings.labels(finding.name, level).set(self.findings.count(finding.name, level))

    def _note_start(self) -> None:
        seconds = process_age()
        self.metrics.startup_seconds.set(seconds)
        log.info("ready", node=self.node_name, version=self.version, seconds=round(seconds, 3))


def _inspect(expected: ExpectedVerdict) -> tuple[str, ...]:
    with Socket(NETLINK_NETFILTER) as netfilter:
        return policy_inspection.inspect(netfilter, expected)


async def _never_ending(name: str, body: Coroutine[Any, Any, None]) -> None:
    await body
    raise EndedError(f"{name} ended, which it never should; the daemon has to be started again")


async def tell_cluster(config: Config, reason: str, message: str, *, paths: Paths) -> None:
    """Post one event about this node, for a daemon that won't start; does what it can in TELL_SECONDS."""
    connection = Connection(lambda: endpoint.choose(config), scratch=paths.credentials)
    events = Events(connection, node_name(config), Metrics())
    events.emit(reason, message, warning=True)
    try:
        os.makedirs(paths.credentials, mode=0o700, exist_ok=True)
        async with asyncio.timeout(TELL_SECONDS):
            await events.flush()
    except (UnreachableError, TimeoutError, OSError) as error:
        log.warning("the cluster could not be told", error=str(error))
    finally:
        await connection.close()


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
