"""What policies let pass and what was denied: the kernel's counters, added up over changes of its rules.

A counter goes when its rule or element does, as with every change of a policy; so what is told is the sum of
what they grew by, and never falls. Owns when the counters are read: now and then while some pod is isolated,
on a thread, and never otherwise. What was counted between the last reading and a rule's end is lost.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeAlias, TypeVar

import structlog

from datapath.errors import DatapathError
from datapath.netlink.transport import NETLINK_NETFILTER, Socket
from datapath.nft.counters import Count, element_counts, rule_counts
from datapath.nft.policy import DENIED, FAMILIES, TABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from daemon.compile.policy import Policies
    from daemon.compile.policy_tables import PolicyTables
    from daemon.metrics import Metrics
    from datapath.policy import Direction, PolicyPart

log = structlog.get_logger()

READ_SECONDS = 10.0

K = TypeVar("K")
PodPart: TypeAlias = "tuple[str, Direction]"


class Reading(NamedTuple):
    """Counters as the kernel has them.

    Attributes:
        rules: by family, chain and the rule's handle.
        denied: by family, direction and host link.
    """

    rules: Mapping[tuple[int, str, int], Count]
    denied: Mapping[tuple[int, Direction, str], Count]


def read(namespace: int | None = None) -> Reading:
    """Read all counters of policies. Raises DatapathError."""
    rules: dict[tuple[int, str, int], Count] = {}
    denied: dict[tuple[int, Direction, str], Count] = {}
    with Socket(NETLINK_NETFILTER, namespace=namespace) as socket:
        for family in FAMILIES:
            for chain, handle, count in rule_counts(socket, family, TABLE):
                rules[family, chain, handle] = count
            for direction, name in DENIED.items():
                for element, count in element_counts(socket, (family, TABLE, name)).items():
                    denied[family, direction, element.rstrip(b"\0").decode()] = count
    return Reading(rules, denied)


class Growth(Generic[K]):
    """By how much counters grew, reading by reading."""

    def __init__(self) -> None:
        self._last: dict[K, Count] = {}

    def take(self, counts: Mapping[K, Count]) -> dict[K, Count]:
        """Return what each counter counted since the last reading; one that is new or fell began at 0."""
        grown = {}
        for key, count in counts.items():
            before = self._last.get(key)
            if before is None or count.packets < before.packets:
                grown[key] = count
            elif count != before:
                grown[key] = Count(count.packets - before.packets, count.octets - before.octets)
        self._last = dict(counts)
        return grown


class PolicyAccounts:
    """The sums; `run` is a task that never ends and keeps them, `refresh` brings them up to date at once.

    Attributes:
        accepted: packets and bytes by policy and direction, of policies in force.
        denied: packets by pod and direction, of pods that are attached.
    """

    def __init__(
        self,
        model: Policies,
        tables: PolicyTables,
        metrics: Metrics,
        *,
        reading: Callable[[], Reading] = read,
        on_denied: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Connect the parts.

        `reading` blocks, and is called on another thread; `on_denied` is told how many packets were denied
        since the reading before.
        """
        self._on_denied = on_denied
        self._known = False
        self._model = model
        self._tables = tables
        self._metrics = metrics
        self._reading = reading
        self._rules: Growth[tuple[int, str, int]] = Growth()
        self._denied: Growth[tuple[int, Direction, str]] = Growth()
        self._lock = asyncio.Lock()
        self.accepted: dict[PolicyPart, Count] = {}
        self.denied: Counter[PodPart] = Counter()

    async def run(self) -> None:
        """Read the counters now and then."""
        while True:
            await asyncio.sleep(READ_SECONDS)
            try:
                await self.refresh()
            except DatapathError as error:
                log.warning("counters of policies can't be read", error=str(error))

    async def refresh(self) -> None:
        """Read the counters, if there are any. Raises DatapathError."""
        async with self._lock:
            if self._tables.present:
                # Whose a chain is may change meanwhile: those of before count too.
                owners = dict(self._tables.owners)
                reading = await asyncio.to_thread(self._reading)
                self._take(reading, owners | dict(self._tables.owners))
            self._forget()

    def _take(self, reading: Reading, owners: Mapping[str, PolicyPart]) -> None:
        for (_, chain, _), count in self._rules.take(reading.rules).items():
            part = owners.get(chain)
            if part is not None and count.packets:
                before = self.accepted.get(part, Count(0, 0))
                self.accepted[part] = Count(before.packets + count.packets, before.octets + count.octets)
                labels = part[0], part[1].value
                self._metrics.policy_packets.labels(*labels).inc(count.packets)
                self._metrics.policy_bytes.labels(*labels).inc(count.octets)
        denied = self._denied.take(reading.denied)
        if self._known:
            self._on_denied(sum(each.packets for each in denied.values()))
        # At the first reading nobody knows when that was.
        self._known = True
        for (_, direction, link), count in denied.items():
            subject = self._model.subjects.get(link)
            if subject is not None and count.packets:
                self.denied[subject.pod, direction] += count.packets
                self._metrics.policy_denied.labels(subject.pod, direction.value).inc(count.packets)

    def _forget(self) -> None:
        """Forget what is not there any more, so that there are never more series than pods and policies."""
        for part in [each for each in self.accepted if each not in self._model.rules]:
            del self.accepted[part]
            self._metrics.policy_packets.remove(part[0], part[1].value)
            self._metrics.policy_bytes.remove(part[0], part[1].value)
        pods = {each.pod for each in self._model.subjects.values()}
        for pod in [each for each in self.denied if each[0] not in pods]:
            del self.denied[pod]
            self._metrics.policy_denied.remove(pod[0], pod[1].value)
