"""What the daemon knows of the cluster: tables of frozen values, and who has to hear of a change.

Tables are filled by reflectors and read by everyone on the event loop's thread. A change makes the object's
key dirty for each subscription. Keys are coalesced: a busy consumer finds each changed object once, with its
latest value in the table, and misses nothing. Storing an equal value changes nothing. A changed EndpointSlice
makes the key of its Service dirty too. No decoding, no I/O.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from daemon.cluster.model import (
        EndpointSlice,
        Namespace,
        NetworkPolicy,
        Node,
        Pod,
        Service,
        ServiceCIDR,
    )

NODE = "node"
SERVICE_CIDR = "servicecidr"
SERVICE = "service"
ENDPOINT_SLICE = "endpointslice"
NAMESPACE = "namespace"
NETWORK_POLICY = "networkpolicy"
POD = "pod"
REMOTE_POD = "remotepod"

Value = TypeVar("Value")


class Key(NamedTuple):
    """Names one object: the kind of its table and its name (NAMESPACE/NAME where it has a namespace)."""

    kind: str
    name: str


class Table(Mapping[str, Value], Generic[Value]):
    """The objects of one kind by name: a mapping for readers; its reflector puts, removes and replaces."""

    def __init__(self, kind: str, notify: Callable[[Key], None]) -> None:
        self.kind = kind
        self._objects: dict[str, Value] = {}
        self._notify = notify
        self._synced = asyncio.Event()

    def __getitem__(self, name: str) -> Value:
        return self._objects[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._objects)

    def __len__(self) -> int:
        return len(self._objects)

    @property
    def synced(self) -> bool:
        """Whether the table was complete since it is followed; an outage later does not change that."""
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        """Return as soon as the table is complete."""
        await self._synced.wait()

    def put(self, name: str, value: Value) -> bool:
        """Store an object; returns whether that changed anything."""
        if self._objects.get(name) == value:
            return False
        self._objects[name] = value
        self._notify(Key(self.kind, name))
        return True

    def remove(self, name: str) -> bool:
        """Forget an object; returns whether there was one."""
        if self._objects.pop(name, None) is None:
            return False
        self._notify(Key(self.kind, name))
        return True

    def abandon(self) -> None:
        """Forget everything: nobody keeps the table up to date any more, so it is not complete either."""
        self.replace({})
        self._synced.clear()

    def replace(self, objects: Mapping[str, Value]) -> int:
        """Make these all the objects there are, and the table complete; returns how many changed or went."""
        changed = sum([self.remove(name) for name in [name for name in self._objects if name not in objects]])
        changed += sum([self.put(name, value) for name, value in objects.items()])
        self._synced.set()
        return changed


class SliceTable(Table["EndpointSlice"]):
    """EndpointSlices, and which of them each Service has."""

    def __init__(self, notify: Callable[[Key], None]) -> None:
        super().__init__(ENDPOINT_SLICE, notify)
        self._of: dict[str, dict[str, EndpointSlice]] = {}

    def of(self, service: str) -> tuple[EndpointSlice, ...]:
        """The slices of a Service, NAMESPACE/NAME, which need not exist; in the order of their names."""
        slices = self._of.get(service)
        if not slices:
            return ()
        if len(slices) == 1:
            return tuple(slices.values())
        return tuple([slices[name] for name in sorted(slices)])

    def put(self, name: str, value: EndpointSlice) -> bool:
        """Store a slice; returns whether that changed anything."""
        before = self.get(name)
        if not super().put(name, value):
            return False
        owner = value.service_key
        if before is not None and (left := before.service_key) != owner:
            self._leave(left, name)
        self._of.setdefault(owner, {})[name] = value
        self._notify(Key(SERVICE, owner))
        return True

    def remove(self, name: str) -> bool:
        """Forget a slice; returns whether there was one."""
        before = self.get(name)
        if before is None:
            return False
        self._leave(before.service_key, name)
        return super().remove(name)

    def _leave(self, owner: str, name: str) -> None:
        slices = self._of[owner]
        del slices[name]
        if not slices:
            del self._of[owner]
        self._notify(Key(SERVICE, owner))


class Subscription:
    """The changed keys that one consumer has not taken yet; all keys that exist when it is made are dirty."""

    def __init__(self, kinds: frozenset[str], dirty: set[Key]) -> None:
        self.kinds = kinds
        self._dirty = dirty
        self._ready = asyncio.Event()
        if dirty:
            self._ready.set()

    def __len__(self) -> int:
        return len(self._dirty)

    def mark(self, key: Key) -> None:
        """Make a key dirty; also for a consumer that has to come back to it, e.g. after a failure."""
        self._dirty.add(key)
        self._ready.set()

    def take(self) -> frozenset[Key]:
        """All keys that are dirty now, which makes them clean; empty when none is."""
        keys = frozenset(self._dirty)
        self._dirty.clear()
        self._ready.clear()
        return keys

    async def wait(self) -> None:
        """Wait until a key is dirty, and take none."""
        await self._ready.wait()

    async def next(self) -> frozenset[Key]:
        """Wait until a key is dirty, then take all. Cancelling it loses nothing."""
        await self.wait()
        return self.take()

    async def __aiter__(self) -> AsyncIterator[frozenset[Key]]:
        while True:
            yield await self.next()


class Store:
    """All tables. A further kind is one more attribute here and one more reflector in the agent.

    Attributes:
        tables: followed from the start on; the daemon serves nobody before they are complete.
        policy_tables: what NetworkPolicy needs on every node: `pods` are those of this node.
        remote_pods: the pods of all other nodes, followed only while a policy that is in force here asks.
    """

    def __init__(self) -> None:
        self._subscriptions: list[Subscription] = []
        self.nodes: Table[Node] = Table(NODE, self._changed)
        self.service_cidrs: Table[ServiceCIDR] = Table(SERVICE_CIDR, self._changed)
        self.services: Table[Service] = Table(SERVICE, self._changed)
        self.endpoint_slices = SliceTable(self._changed)
        self.namespaces: Table[Namespace] = Table(NAMESPACE, self._changed)
        self.network_policies: Table[NetworkPolicy] = Table(NETWORK_POLICY, self._changed)
        self.pods: Table[Pod] = Table(POD, self._changed)
        self.remote_pods: Table[Pod] = Table(REMOTE_POD, self._changed)

    @property
    def tables(self) -> tuple[Table[Any], ...]:
        """The tables that are followed from the start on."""
        return (self.nodes, self.service_cidrs, self.services, self.endpoint_slices)

    @property
    def policy_tables(self) -> tuple[Table[Any], ...]:
        """The tables that NetworkPolicy needs on every node."""
        return (self.namespaces, self.network_policies, self.pods)

    @property
    def synced(self) -> bool:
        """Whether every table was complete at least once."""
        return all(table.synced for table in self.tables)

    async def wait_synced(self) -> None:
        """Return as soon as every table is complete."""
        for table in self.tables:
            await table.wait_synced()

    def subscribe(self, *kinds: str) -> Subscription:
        """Follow changes of these kinds (all when none is named); end it with `unsubscribe`."""
        tables = (*self.tables, *self.policy_tables, self.remote_pods)
        wanted = frozenset(kinds) or frozenset(table.kind for table in tables)
        dirty = {Key(table.kind, name) for table in tables if table.kind in wanted for name in table}
        subscription = Subscription(wanted, dirty)
        self._subscriptions.append(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop following."""
        self._subscriptions.remove(subscription)

    async def changes(self, *kinds: str) -> AsyncIterator[frozenset[Key]]:
        """Sets of changed keys, the first with all that exist; coalesced while the consumer is busy."""
        subscription = self.subscribe(*kinds)
        try:
            while True:
                yield await subscription.next()
        finally:
            self.unsubscribe(subscription)

    def _changed(self, key: Key) -> None:
        for subscription in self._subscriptions:
            if key.kind in subscription.kinds:
                subscription.mark(key)
