"""Keeps NetworkPolicy in line with the cluster: tells the model what changed, and the writer what follows.

One path for everything: a changed pod, namespace, node or policy, an attachment that came or went, the start.
Owns the model and its tables; knows no netlink and no API. Pods of other nodes are asked for only while a
policy that is in force here needs them.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import structlog

from daemon.cluster.store import NAMESPACE, NETWORK_POLICY, NODE, POD, REMOTE_POD, Key
from daemon.compile.policy import Policies
from daemon.compile.policy_flows import Effect, effect
from daemon.compile.policy_subjects import Attached
from daemon.compile.policy_tables import PolicyTables
from daemon.findings import Finding
from daemon.policyblame import Blame
from datapath.errors import DatapathError
from datapath.kernel import birth_key
from datapath.sync import NFTABLES
from datapath.writer import StoppedError
from ipam.record import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from daemon.cluster.demand import Demand
    from daemon.cluster.store import Store, Subscription
    from daemon.findings import Findings
    from datapath.desired import Fragment, FragmentKey
    from datapath.policy import Direction
    from datapath.underlay import HostLink
    from datapath.writer import Writer
    from ipam.record import Record

log = structlog.get_logger()

SLICE = 200
"""Policies that are compiled in one go."""
SWEEP_SECONDS = 0.5
"""How long superfluous chains may stay: what is changed again soon finds them still there."""
GATHER_SECONDS = 15.0
"""How long the start waits for pods of other nodes; nothing is removed meanwhile."""
PROBLEMS = ("PolicyIncomplete", "PolicyRefused")
ATTACHMENTS = Key("attachment", "")
"""Stands for all attachments among the keys of what may have changed."""
REFUSAL = Key("refusal", "")
"""Stands for what the kernel refuses."""


class Policing:
    """The loop and what it knows.

    Attributes:
        model: the policies as they concern this node.
        tables: what programs the kernel, made of the model.
        complete: everybody is known whom policies may let in or out, pods of other nodes included.
    """

    def __init__(
        self,
        *,
        store: Store,
        writer: Writer,
        node_name: str,
        records: Callable[[], Iterable[Record]],
        remote_pods: Demand,
        findings: Findings,
        on_applied: Callable[[Mapping[FragmentKey, Fragment | None]], None] = lambda _: None,
        on_isolation: Callable[[bool], None] = lambda _: None,
        on_effect: Callable[[Effect], None] = lambda _: None,
    ) -> None:
        """Connect the parts.

        Args:
            store: the cluster.
            writer: takes the fragments.
            node_name: name of this node's Node object.
            records: IPAM's records of attachments.
            remote_pods: asked for pods of other nodes.
            findings: what is wrong with policies goes there.
            on_applied: told of fragments that the writer was given.
            on_isolation: told whether any pod is isolated, whenever something was compiled.
            on_effect: told what changes may do to connections under way, once the kernel has their rules.
        """
        self.model = Policies(node_name)
        self.tables = PolicyTables()
        self.complete = False
        self._store = store
        self._writer = writer
        self._records = records
        self._remote_pods = remote_pods
        self._findings = findings
        self._on_applied = on_applied
        self._on_isolation = on_isolation
        self._suspicious = False
        self._on_effect = on_effect
        self._effect = Effect.NONE
        self._blame = Blame(
            self.model, self.tables, lambda trial: writer.query(lambda sync: sync.ruleset.attempt(trial))
        )
        self._settled = asyncio.Event()
        # Half a change would let a pod be born open that a policy isolates before and after it.
        self._changing = threading.Lock()
        self._attached: dict[str, Record] = {}
        self._subscription: Subscription | None = None

    def birth(self, namespace: str, name: str, uid: str) -> tuple[Direction, ...]:
        """Return the directions in which a pod must be closed from its first packet on; on any thread."""
        with self._changing:
            return self.model.birth(namespace, name, uid)

    def take_links(self, links: Iterable[HostLink]) -> None:
        """Take the machine's links: what comes from their addresses reaches every pod of this node."""
        self.model.put_host_addresses(address for link in links for address, _ in link.addresses)

    def refused(self, failures: Mapping[str, str]) -> None:
        """Take what the kernel refuses now (the writer's `report`): a policy may be the reason."""
        if NFTABLES in failures and self._subscription is not None:
            self._subscription.mark(REFUSAL)

    def look(self) -> None:
        """Say that attachments may have come or gone."""
        if self._subscription is not None:
            self._subscription.mark(ATTACHMENTS)

    async def settled(self) -> None:
        """Return when nothing is pending in the model."""
        await self._settled.wait()

    async def gather(self) -> None:
        """Learn everything that policies in force need, pods of other nodes included, before `prepare`.

        The kernel may hold policies of before: what they let in stays in only if it is known by then. A list
        that takes too long is not waited for; the pods that it would tell are shut out until it comes.
        """
        self._subscription = self._store.subscribe(NODE, NAMESPACE, NETWORK_POLICY, POD, REMOTE_POD)
        await self._update()
        if not self.model.needs_all_pods:
            return
        try:
            async with asyncio.timeout(GATHER_SECONDS):
                await self._store.remote_pods.wait_synced()
        except TimeoutError:
            log.warning("policies are enforced without pods of other nodes: they can't be listed yet")

    async def prepare(self) -> None:
        """After `gather`: compile everything and hand it to the writer, without waiting for the kernel.

        The store's policy tables must be complete: once the writer deletes what nobody desires, a policy that
        is missing would open a pod.
        """
        changes = await self._compile()
        if changes:
            self._writer.offer(changes)
            self._on_applied(changes)

    async def run(self) -> None:
        """Serve for ever, after `prepare`.

        Raises:
            StoppedError: the writer is stopping.
        """
        subscription = self._subscription
        assert subscription is not None
        try:
            while True:
                try:
                    waits = self.tables.superfluous or not self.complete
                    async with asyncio.timeout(SWEEP_SECONDS if waits else self._blame.pause):
                        await subscription.wait()
                except TimeoutError:
                    await self._apply(self.tables.sweep())
                    if not await self._blame.ask_again() and self.complete:
                        continue
                await self._apply(await self._compile())
                if self._suspicious:
                    await self._find_fault()
                told, self._effect = self._effect, Effect.NONE
                self._on_effect(told)
                self._findings.replace(PROBLEMS, [Finding(*each) for each in self.model.problems()])
        finally:
            self._store.unsubscribe(subscription)

    async def _compile(self) -> dict[FragmentKey, Fragment | None]:
        changes = await self._update()
        found = self.model.changes()
        self._effect = max(self._effect, effect(self.model, found))
        taken = self.tables.take(self.model, found) | changes
        self._on_isolation(self.tables.present)
        return taken

    async def _update(self) -> dict[FragmentKey, Fragment | None]:
        """Bring the model up to date; returns what attachments change besides."""
        assert self._subscription is not None
        self._settled.clear()
        synced = self._store.remote_pods.synced
        with self._changing:
            for key in self._subscription.take():
                self._put(key)
            changes = self._put_attached()
        while self.model.pending:
            self.model.compile(SLICE)
            await asyncio.sleep(0)
        self._remote_pods.want(self.model.needs_all_pods)
        was, self.complete = self.complete, synced or not self.model.needs_all_pods
        if self.complete and not was:
            self._effect = Effect.STRICTER
        self._settled.set()
        return changes

    def _put(self, key: Key) -> None:
        store, model, name = self._store, self.model, key.name
        if key.kind == NODE:
            model.put_node(name, store.nodes.get(name))
        elif key.kind == NAMESPACE:
            model.put_namespace(name, store.namespaces.get(name))
        elif key.kind == NETWORK_POLICY:
            model.put_policy(name, store.network_policies.get(name))
        elif key.kind == POD:
            model.put_pod(name, store.pods.get(name))
        elif key == REFUSAL:
            self._suspicious = True
        elif key.kind == REMOTE_POD:
            model.put_remote_pod(name, store.remote_pods.get(name))

    def _put_attached(self) -> dict[FragmentKey, Fragment | None]:
        """Tell the model which attachments there are; what closed a new one at its birth may go then.

        One that is being taken down counts until it is gone: its pod may be talking still.
        """
        found = {each.host_link: each for each in self._records() if each.state is not State.PENDING}
        changes: dict[FragmentKey, Fragment | None] = {}
        for link in self._attached.keys() - found.keys():
            self.model.put_attached(link, None)
        for link, record in found.items():
            # Records tell two attachments of one link apart, also where nothing but the time is another.
            if self._attached.get(link) != record:
                self.model.put_attached(link, Attached(link, *_pod(record), record.addresses))
                changes[birth_key(link)] = None
        self._attached = found
        return changes

    async def _find_fault(self) -> None:
        """Find the policies that the kernel refuses, and have the others enforced without them."""
        self._suspicious = False
        if not await self._blame.find():
            return
        try:
            # What the kernel refuses must not be asked for once more as what will be swept.
            await self._apply(self.tables.take(self.model, self.model.changes()) | self.tables.sweep())
            # What is refused is else tried again after a while only.
            await self._writer.resync("policies that the kernel refuses were taken out")
        except StoppedError:
            raise
        except DatapathError as error:
            log.warning("policies wait for the kernel", error=str(error))

    async def _apply(self, changes: dict[FragmentKey, Fragment | None]) -> None:
        if not changes:
            return
        try:
            await self._writer.apply(changes)
        except StoppedError:
            raise
        except DatapathError as error:
            # The writer keeps the changes and goes on trying.
            log.warning("policies wait for the kernel", error=str(error))
        self._on_applied(changes)


def _pod(record: Record) -> tuple[str, str, str]:
    return record.pod_namespace, record.pod_name, record.pod_uid
