"""Keeps the node's network in line with the cluster: compiles what changed and hands it to the writer.

One loop for everything: a changed Node, a changed underlay, a notification of the kernel, the timer. What it
does depends on what is, not on what happened: the happenings only say what to look at. Owns the compiled
state; knows no netlink and no API.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

import structlog

from daemon.cluster.store import NODE
from daemon.compile.network import Network
from daemon.findings import Finding
from datapath import text
from datapath.errors import DatapathError
from datapath.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from daemon.cluster.model import Node, Prefix
    from daemon.cluster.store import Store, Subscription
    from daemon.compile.local import LocalNetwork
    from daemon.config import Config
    from daemon.findings import Findings
    from daemon.metrics import Metrics
    from datapath.desired import Address, Fragment, FragmentKey
    from datapath.snapshot import Recorder
    from datapath.underlay import HostLink
    from datapath.watch import Noticed
    from datapath.writer import Drift, Writer

log = structlog.get_logger()

GATHER_SECONDS = 0.02
"""How long notifications gather: what one act of an administrator does to the kernel comes as many."""
POLL_SECONDS = 0.4
"""How often the generation of nftables is asked for; listening instead would slow down every commit."""
RETRY_SECONDS = 1.0
PROBLEMS = (
    "NodeMissing",
    "PodCidrMissing",
    "InternalIPMissing",
    "MtuTooLarge",
    "MtuTooSmall",
    "PodCidrConflict",
    "NoDirectRoute",
    "NodeUnreachable",
)
REFUSED = "KernelRefused"
RIVAL_REPAIRS, RIVAL_SECONDS = 10, 60.0
"""So many repairs in so short a time are nobody's mistake but another agent's will."""
FAST_SECONDS, MAX_PAUSE_SECONDS = 0.02, 0.5
SLICE = 500
"""Nodes that are compiled in one go: some 5 ms, in which the loop serves nobody else."""
MAX_NODES_TOLD = 20
"""So many nodes that change at once are logged one by one."""
MAX_REFUSALS = 10
"""Refusals of the kernel that become findings; the rest is told as a number."""


class Reconciler:
    """The loop and what it knows.

    Attributes:
        network: the compiled state.
        last_sync: time.time() of when the kernel last had no difference left; 0 if never.
        repairs: differences repaired that no change of ours explains.
    """

    def __init__(
        self,
        *,
        store: Store,
        writer: Writer,
        config: Config,
        node_name: str,
        findings: Findings,
        metrics: Metrics | None = None,
        namespace: int | None = None,
        recorder: Recorder | None = None,
        on_addresses: Callable[[Collection[Address]], None] = lambda _: None,
        on_local: Callable[[], None] = lambda: None,
        on_links: Callable[[tuple[HostLink, ...]], None] = lambda _: None,
        on_repair: Callable[[Drift], None] = lambda _: None,
    ) -> None:
        """Connect the parts.

        `on_addresses` is told of addresses of the machine, not of pods, that came or went; `on_local` is
        called when this node's own network has become another; `on_links` is told of the machine's links
        whenever they were read; `on_repair` is told what somebody else had changed, when that is put right.
        """
        self.network = Network(node_name, config)
        self.last_sync = 0.0
        self.repairs = 0
        self._synced = asyncio.Event()
        self._store = store
        self._writer = writer
        self._config = config
        self._node_name = node_name
        self._findings = findings
        self._metrics = metrics
        self._namespace = namespace
        self._recorder = recorder
        self._noted: dict[str, Node] = {}
        self._on_addresses = on_addresses
        self._on_local = on_local
        self._on_links = on_links
        self._on_repair = on_repair
        self._links: tuple[HostLink, ...] = ()
        self._look_at_links = True
        self._dirty: set[str] = set()
        self._reasons: set[str] = set()
        self._repaired: deque[float] = deque()
        self._wake = asyncio.Event()

    @property
    def local(self) -> LocalNetwork | None:
        """This node's network; None while it is not known."""
        return self.network.local

    @property
    def synced(self) -> bool:
        """Whether the kernel was brought in line once."""
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        """Return as soon as the kernel was brought in line once."""
        await self._synced.wait()

    def request(self, reason: str) -> None:
        """Have the kernel read and compared soon."""
        self._reasons.add(reason)
        self._wake.set()

    async def prepare(self) -> LocalNetwork | None:
        """Compile this node's own network and change nothing: attachments are restored with its addresses."""
        self._links = await self._writer.underlay()
        self._on_links(self._links)
        scratch = Network(self._node_name, self._config)
        scratch.update(self._store.nodes, self._store.nodes, self._links)
        if scratch.local is None:
            # Nothing else will be compiled before this changes, so nobody else will say what is missing.
            self._findings.replace(PROBLEMS, [Finding(*problem) for problem in scratch.problems()])
        return scratch.local

    async def run(self) -> None:
        """Serve for ever. The store must be complete, and the writer have adopted the attachments.

        Raises:
            ExceptionGroup: with what failed.
        """
        watch = Watch(self._writer, namespace=self._namespace, own_port=self._writer.port)
        subscription = self._store.subscribe(NODE)
        self._dirty.update(self._store.nodes)
        self._wake.set()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_nodes(subscription), name="nodes")
                group.create_task(self._follow_kernel(watch), name="kernel notifications")
                group.create_task(self._poll_nftables(), name="nftables generation")
                await self._serve()
        finally:
            watch.close()
            self._store.unsubscribe(subscription)

    def refused(self, failures: Mapping[str, str]) -> None:
        """Take what the kernel refuses now; the writer's `report`."""
        shown = dict(list(failures.items())[:MAX_REFUSALS])
        if len(failures) > len(shown):
            shown["others"] = f"{len(failures) - len(shown)} more objects"
        self._findings.replace(
            (REFUSED,),
            [Finding(REFUSED, "error", f"{name}: {error}", name) for name, error in shown.items()],
        )
        if failures and self._metrics is not None:
            self._metrics.sync_errors.inc()

    async def _follow_nodes(self, subscription: Subscription) -> None:
        while True:
            keys = await subscription.next()
            self._dirty.update(key.name for key in keys)
            self._wake.set()

    async def _follow_kernel(self, watch: Watch) -> None:
        while True:
            noticed = await watch.next()
            await asyncio.sleep(GATHER_SECONDS)
            await self._judge(noticed)

    async def _judge(self, noticed: Noticed) -> None:
        """Find out whether a notification concerns what is desired."""
        if noticed.links or noticed.addresses or noticed.overrun:
            self._look_at_links = True
            self._wake.set()
        if noticed.addresses:
            self._on_addresses(noticed.addresses)
        local = self.local
        ways = {way.link for way in local.underlays.values()} if local is not None else set()
        own = {way.address for way in local.underlays.values()} if local is not None else set()
        if noticed.overrun:
            self.request("notifications were lost")
        elif noticed.forwarding:
            self.request("forwarding was switched off")
        elif not noticed.links.isdisjoint(ways):
            self.request("the underlay link changed")
        elif not noticed.addresses.isdisjoint(own):
            self.request("an address of the node changed")
        elif noticed.objects and await self._writer.wants(noticed.objects):
            self.request("something of ours was changed")

    async def _poll_nftables(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                if self.synced and await self._writer.disturbed():
                    self.request("nftables was changed")
            except DatapathError as error:
                log.warning("nftables generation", error=str(error))

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.resync_seconds
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._wake.wait()
            except TimeoutError:
                self._look_at_links = True
                self._reasons.add("timer")
            self._wake.clear()
            try:
                await self._turn()
            except DatapathError as error:
                self._findings.report("KernelUnreadable", "error", str(error))
                self._look_at_links = True
                self.request("an earlier try failed")
                await asyncio.sleep(RETRY_SECONDS)
            if loop.time() >= deadline:
                deadline = loop.time() + self._config.resync_seconds

    async def _turn(self) -> None:
        """Compile what is dirty and apply it; read the kernel if there is a reason."""
        reasons, self._reasons = self._reasons, set()
        if self._look_at_links:
            # Before asking: what happens while the answer comes asks again.
            self._look_at_links = False
            self._links = await self._writer.underlay()
            self._on_links(self._links)
        dirty, self._dirty = self._dirty, set()
        self._note_nodes(dirty)
        before = self.local
        self.network.take(self._store.nodes, dirty, self._links)
        if self.local != before:
            self._on_local()
        if self.network.pending:
            await self._compile(before)
        self._report_problems()
        if self.local is None:
            return
        if reasons or not self.synced:
            await self._resync(", ".join(sorted(reasons)) or "start")
        self._findings.clear("KernelUnreadable")

    async def _compile(self, before: LocalNetwork | None) -> None:
        """Compile what is pending and have it written; the writer begins with the first slice."""
        local = self.local
        assert local is not None
        self._note_mtu(before, local)
        changes: dict[FragmentKey, Fragment | None] = {}
        while self.network.pending:
            part = self.network.compile(SLICE)
            # The first time all goes together: the rules that guard the overlay stand before its links.
            if self.synced and self.network.pending:
                self._writer.offer(part)
            changes |= part
            await asyncio.sleep(0)
        applied = await self._writer.apply(changes, complete=True, sources=local.sources)
        self._note_sync("change", applied.seconds, applied.failures)
        if self._recorder is not None and changes:
            self._recorder.record(changes, local.sources)

    async def _resync(self, reason: str) -> None:
        drift = await self._writer.resync(reason)
        self._note_sync("resync", drift.seconds, drift.failures)
        if drift.differences:
            self._note_repair(reason, drift)
            self._on_repair(drift)
        self._watch_for_rivals(drift)
        self._synced.set()
        # Whoever makes work for us again and again gets a part of the time, not all of it.
        await asyncio.sleep(min(drift.seconds, MAX_PAUSE_SECONDS) if drift.seconds > FAST_SECONDS else 0)

    def _note_nodes(self, names: Iterable[str]) -> None:
        """Log the nodes that came, went or moved; many at once, as at the start, as a number."""
        moves: list[tuple[str, Node | None, Node | None]] = []
        for name in names:
            before, now = self._noted.get(name), self._store.nodes.get(name)
            if now is None:
                self._noted.pop(name, None)
            else:
                self._noted[name] = now
            if _place(before) != _place(now):
                moves.append((name, before, now))
        if not moves:
            return
        if len(moves) > MAX_NODES_TOLD or not self.synced:
            log.info("nodes", changed=len(moves), known=len(self._noted))
            return
        for name, before, now in moves:
            # A Node that has neither addresses nor podCIDRs yet joins when it gets the first of them.
            joined = not any(_place(before))
            event = "node left" if now is None else "node joined" if joined else "node changed"
            log.info(event, node=name, before=_place_words(before), now=_place_words(now))

    def _note_repair(self, reason: str, drift: Drift) -> None:
        self.repairs += len(drift.differences)
        log.warning(
            "repaired what was changed from outside",
            reason=reason,
            count=len(drift.differences),
            first=" ".join(drift.differences[0]),
            seconds=round(drift.seconds, 4),
        )
        if self._metrics is not None:
            for difference in drift.differences:
                self._metrics.repairs.labels(difference.kind).inc()

    def _watch_for_rivals(self, drift: Drift) -> None:
        """Say so when the same is repaired over and over: another agent wants it otherwise."""
        now = asyncio.get_running_loop().time()
        if drift.differences:
            self._repaired.append(now)
        while self._repaired and self._repaired[0] < now - RIVAL_SECONDS:
            self._repaired.popleft()
        if len(self._repaired) >= RIVAL_REPAIRS:
            if drift.differences:
                what = " ".join(drift.differences[0])
                self._findings.report(
                    "KernelContested",
                    "warning",
                    f"something on this node keeps changing what Weft has set ({what}): look for another "
                    "network agent or a network manager",
                )
        elif not self._repaired:
            self._findings.clear("KernelContested")

    def _note_sync(self, kind: str, seconds: float, failures: Mapping[str, str]) -> None:
        if not failures:
            self.last_sync = time.time()
        if self._metrics is not None:
            self._metrics.sync_seconds.labels(kind).observe(seconds)
            if not failures:
                self._metrics.sync_last.set(self.last_sync)

    def _note_mtu(self, before: LocalNetwork | None, now: LocalNetwork) -> None:
        if before is not None and before.mtu != now.mtu:
            self._findings.report(
                "MtuChanged",
                "warning",
                f"the MTU of pods' interfaces changed from {before.mtu} to {now.mtu}: running pods keep "
                "theirs until they are recreated",
            )

    def _report_problems(self) -> None:
        self._findings.replace(PROBLEMS, [Finding(*problem) for problem in self.network.problems()])


def _place(node: Node | None) -> tuple[Sequence[Address], Sequence[Prefix]]:
    """What the network depends on of a node: its addresses and podCIDRs."""
    return (node.underlay or node.internal_ips, node.pod_cidrs) if node is not None else ((), ())


def _place_words(node: Node | None) -> list[str]:
    addresses, prefixes = _place(node)
    return [*map(text.address, addresses), *(text.prefix(*prefix) for prefix in prefixes)]
