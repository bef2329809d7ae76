"""What the daemon sees to besides its work: the Node's condition, checks of preflight, figures.

Each function is a task that never ends. Owns when things are checked, not what is checked.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from daemon import preflight
from daemon.cluster.connection import ApiError, UnreachableError
from daemon.cluster.model import Prefix
from daemon.cluster.store import NODE, SERVICE_CIDR, Key
from daemon.compile.hostports import HIDES_NODE_PORT, hidden_node_ports
from daemon.compile.tables import table_options
from daemon.events import mark_network_available
from daemon.findings import Finding
from datapath import probe, surroundings
from datapath.errors import DatapathError
from datapath.netlink.transport import NETLINK_NETFILTER, Socket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from daemon.cluster.connection import Connection
    from daemon.cluster.store import Store
    from daemon.compile.local import LocalNetwork
    from daemon.config import Config
    from daemon.findings import Findings
    from daemon.metrics import Metrics
    from datapath.nft.frontends import Frontend
    from datapath.surroundings import Surroundings
    from datapath.writer import Writer
    from ipam.record import Record

log = structlog.get_logger()

SETTLE_SECONDS = 2.0
"""Changes of the cluster are gathered this long before the address plan is checked: nodes come in crowds."""
LOOK_SECONDS = 300.0
"""Between looks at what else is on the machine."""
SAMPLE_SECONDS = 1.0
RETRY_SECONDS = 10.0


async def keep_condition(connection: Connection, store: Store, node_name: str, findings: Findings) -> None:
    """Mark this node's network as available, now and whenever somebody says that it is not."""
    subscription = store.subscribe(NODE)
    own = Key(NODE, node_name)
    marked = False
    while True:
        if own not in await subscription.next():
            continue
        node = store.nodes.get(node_name)
        if node is None or (marked and not node.network_unavailable):
            continue
        try:
            await mark_network_available(connection, node_name)
        except ApiError as error:
            findings.report(
                "NodeConditionNotSet",
                "warning",
                f"the condition NetworkUnavailable of the Node stays: {error}; grant patch on nodes/status, "
                "or clear it yourself where a cloud provider sets it",
            )
        except UnreachableError:
            await asyncio.sleep(RETRY_SECONDS)
            subscription.mark(own)
        else:
            marked = True
            findings.clear("NodeConditionNotSet")


async def check_cluster(
    store: Store,
    config: Config,
    node_name: str,
    findings: Findings,
    *,
    local: Callable[[], LocalNetwork | None],
    connection: Connection,
) -> None:
    """Check the address plan whenever the cluster changes."""
    async for _ in store.changes(NODE, SERVICE_CIDR):
        network = local()
        connected = (
            {Prefix(*prefix) for way in network.underlays.values() for prefix in way.connected}
            if network is not None
            else ()
        )
        found = preflight.check_cluster(
            store.nodes,
            store.service_cidrs,
            config,
            node_name,
            connected=connected,
            endpoint=connection.endpoint,
        )
        findings.replace(preflight.CLUSTER_NAMES, found)
        await asyncio.sleep(SETTLE_SECONDS)


async def check_kernel(config: Config, findings: Findings) -> None:
    """Try once what the kernel can do; returns when that is known."""
    missing = await asyncio.to_thread(probe.missing_features, table_options(config))
    findings.replace(preflight.KERNEL_NAMES, preflight.check_kernel(missing))


async def check_host_ports(
    records: Callable[[], Iterable[Record]], holder: Callable[[Frontend], str], findings: Findings
) -> None:
    """Look for Services whose node ports are taken by pods of this node.

    Either side may change at any time, and a pass over a node's few pods costs less than following both.
    """
    while True:
        found = [Finding(*problem) for problem in hidden_node_ports(records(), holder)]
        findings.replace((HIDES_NODE_PORT,), found)
        await asyncio.sleep(SAMPLE_SECONDS)


async def check_machine(findings: Findings) -> None:
    """Look for other networks and firewalls on this machine, again and again."""
    while True:
        try:
            found = await asyncio.to_thread(_look_around)
        except (DatapathError, OSError) as error:
            log.warning("the machine's surroundings can't be seen", error=str(error))
        else:
            findings.replace(preflight.MACHINE_NAMES, preflight.check_machine(found))
        await asyncio.sleep(LOOK_SECONDS)


def _look_around() -> Surroundings:
    with Socket(NETLINK_NETFILTER) as netfilter:
        return surroundings.observe(netfilter)


async def sample(writer: Writer, metrics: Metrics) -> None:
    """Keep the gauges of what waits for the writer."""
    while True:
        jobs, bulk = writer.queued
        metrics.writer_queue.labels("attachment").set(jobs)
        metrics.writer_queue.labels("bulk").set(bulk)
        await asyncio.sleep(SAMPLE_SECONDS)
