"""Hands out addresses and takes them back: reserve, confirm, release.

What is reserved and confirmed is known at once and written with `settle`, since whoever waits for the
attachment need not wait for that: a pod that is wired is found by its link's alias, and one that is not was
promised to nobody. What is released is written at once, step by step.

The address that has been free for longest goes first, a released one rests before it is taken again unless
nothing else is left. Owns no kernel state: the caller wires the pod between `reserve` and `confirm` and takes
the wiring down between `begin_release` and `release`. Used by one thread at a time; `records` and `usage` by
any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ipam import ports as host_ports
from ipam.errors import DuplicateError, ExhaustedError, IpamError, PortTakenError
from ipam.pool import QUEUE_LIMIT, RESERVED_LOW, Released, Usage
from ipam.queue import Queue
from ipam.record import Record, State

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ipam.pool import Pool
    from ipam.ports import PortMapping
    from ipam.record import AttachmentKey
    from ipam.store import Store

_SECOND = 1_000_000_000


class Wish(NamedTuple):
    """What is to be recorded of an attachment to be.

    Attributes:
        key: what is to be attached.
        pools: this node's pod CIDRs; of one family the first with an address left serves.
        netns: path of the pod's network namespace.
        host_link: the host veth's name.
        mac: of the pod's interface.
        mtu: of the pod's interface.
        pod: the pod's namespace, name and UID, as far as known.
        ports: ports of the node that are to lead to the pod.
    """

    key: AttachmentKey
    pools: Sequence[Pool]
    netns: str
    host_link: str
    mac: bytes
    mtu: int
    pod: tuple[str, str, str] = ("", "", "")
    ports: tuple[PortMapping, ...] = ()


class Allocator:
    """The addresses of this node's pods."""

    def __init__(self, store: Store, *, cooldown: float = 30.0) -> None:
        self.store = store
        self._cooldown = int(cooldown * _SECOND)
        self._pools: tuple[Pool, ...] = ()
        self._families: list[list[Queue]] = []

    def get(self, key: AttachmentKey) -> Record | None:
        """Return the attachment recorded under a key."""
        return self.store.records.get(key)

    def records(self) -> tuple[Record, ...]:
        """Return all attachments."""
        return tuple(self.store.records.values())

    def reserve(
        self,
        key: AttachmentKey,
        pools: Sequence[Pool],
        *,
        netns: str,
        host_link: str,
        mac: bytes,
        mtu: int,
        pod: tuple[str, str, str] = ("", "", ""),
        ports: tuple[PortMapping, ...] = (),
    ) -> Record:
        """Hold one address of each family that the pools have, for an attachment that is to be made.

        Raises:
            ExhaustedError: a family has no address left; nothing was recorded.
            PortTakenError: another attachment holds one of the ports; nothing was recorded.
            DuplicateError: the key or the link is recorded already.
            StoreError: what was reserved before can't be written.
        """
        (found,) = self.reserve_all((Wish(key, pools, netns, host_link, mac, mtu, pod, ports),))
        if isinstance(found, IpamError):
            raise found
        return found

    def reserve_all(self, wishes: Sequence[Wish]) -> list[Record | IpamError]:
        """Hold addresses for several at once.

        What is wrong with one does not concern the others.

        Returns:
            For each wish its record or the error that `reserve` would raise.
        """
        now = self.store.clock()
        found: list[Record | IpamError] = []
        records: list[Record] = []
        for wish in wishes:
            try:
                record = self._choose_all(wish, now, records)
            except IpamError as error:
                found += (error,)
            else:
                found += (record,)
                records += (record,)
        try:
            self.store.insert(*records)
        except IpamError as error:
            # What was chosen is free again: the queues are made anew from what is recorded.
            self._forget_queues()
            if len(wishes) > 1:
                return [each for wish in wishes for each in self.reserve_all((wish,))]
            return [error]
        return found

    def _choose_all(self, wish: Wish, now: int, others: Iterable[Record]) -> Record:
        if wish.key in self.store.records:
            raise DuplicateError(f"attachment {wish.key} is recorded already")
        families = self._families_of(wish.pools)
        chosen: tuple[bytes, ...] = ()
        for family in families:
            for queue in family:
                address = queue.choose(now - self._cooldown)
                if address is not None:
                    chosen += (address,)
                    break
            else:
                full = self._usage(family[-1].pool)
                raise ExhaustedError(full.pool.text, size=full.size, used=full.used, cooling=full.cooling)
        if wish.ports:
            _require_free(wish.ports, chosen, (*self.store.records.values(), *others))
        for family, address in zip(families, chosen, strict=True):
            for queue in family:
                queue.take(address)
        return Record(
            key=wish.key,
            netns=wish.netns,
            host_link=wish.host_link,
            mac=wish.mac,
            mtu=wish.mtu,
            addresses=chosen,
            pod_namespace=wish.pod[0],
            pod_name=wish.pod[1],
            pod_uid=wish.pod[2],
            created=now / _SECOND,
            ports=wish.ports,
        )

    def confirm(self, key: AttachmentKey) -> Record:
        """Remember that the wiring is complete; `settle` writes it.

        Raises:
            UnknownAttachmentError: nothing was reserved under the key.
        """
        return self.store.confirm(key)

    def settle(self) -> None:
        """Write what is not yet, in one transaction.

        Raises:
            StoreError: the database can't be written; the next call tries again.
        """
        self.store.settle()

    def begin_release(self, key: AttachmentKey) -> Record:
        """Record the intent to take the wiring down.

        Raises:
            UnknownAttachmentError: nothing is recorded under the key.
            StoreError: the database can't be written.
        """
        return self.store.set_state(key, State.RELEASING)

    def release(self, key: AttachmentKey) -> Record:
        """Forget the attachment; its addresses rest from now on. The caller has taken the wiring down.

        Raises:
            UnknownAttachmentError: nothing is recorded under the key.
            StoreError: the database can't be written; the addresses are still held.
        """
        record = self.store.remove(key)
        for family in self._families:
            for queue in family:
                for address in record.addresses:
                    queue.give_back(address, self.store.released[address])
        return record

    def restore(self, records: Iterable[Record]) -> tuple[str, ...]:
        """Record attachments that were found in the kernel; return in words what contradicts itself.

        Raises:
            StoreError: the database can't be written.
        """
        problems = []
        for record in records:
            try:
                self.store.insert(record)
            except DuplicateError as error:
                problems.append(f"attachment {record.key} on {record.host_link} was not restored: {error}")
        self.store.settle()
        self._forget_queues()
        return tuple(problems)

    def usage(self, pools: Iterable[Pool]) -> tuple[Usage, ...]:
        """Return each pool's figures."""
        return tuple(self._usage(pool) for pool in pools)

    def _usage(self, pool: Pool) -> Usage:
        now = self.store.clock()
        used = sum(
            pool.hands_out(address)
            for record in tuple(self.store.records.values())
            for address in record.addresses
        )
        cooling = sum(
            pool.hands_out(address) and now - at < self._cooldown
            for address, at in tuple(self.store.released.items())
        )
        return Usage(pool, pool.size, used, cooling)

    def _families_of(self, pools: Sequence[Pool]) -> list[list[Queue]]:
        """Return the pools' queues by family, in the order in which the families first occur."""
        # They are the same sequence for as long as the node keeps its CIDRs; comparing them costs more.
        if pools is not self._pools and tuple(pools) != self._pools:
            families: dict[int, list[Queue]] = {}
            for pool in pools:
                families.setdefault(pool.bits, []).append(self._read_queue(pool))
            self._pools, self._families = tuple(pools), list(families.values())
        return self._families

    def _forget_queues(self) -> None:
        self._pools, self._families = (), []

    def _read_queue(self, pool: Pool) -> Queue:
        """Work out from the records where nothing was ever used.

        Whatever was handed out is either held or released, unless the database was lost: then nobody knows
        what the gaps below the highest address are. They may have been given back a moment ago, so they rest
        from now on.
        """
        held = {
            pool.offset(address)
            for record in self.store.records.values()
            for address in record.addresses
            if pool.hands_out(address)
        }
        known = held.union(pool.offset(each) for each in self.store.released if pool.hands_out(each))
        cursor = max(known, default=RESERVED_LOW - 1) + 1
        lowest = max(RESERVED_LOW, cursor - QUEUE_LIMIT)
        gaps = [pool.address(offset) for offset in range(lowest, cursor) if offset not in known]
        self.store.rest(gaps)
        waiting = (Released(*each) for each in self.store.released.items() if pool.hands_out(each[0]))
        return Queue(pool, cursor, waiting)


def _require_free(
    ports: tuple[PortMapping, ...], addresses: Iterable[bytes], others: Iterable[Record]
) -> None:
    wanted = host_ports.claims(ports, map(len, addresses))
    for other in others:
        if other.ports:
            held = host_ports.claims(other.ports, map(len, other.addresses))
            for claim in sorted(wanted.keys() & held.keys()):
                raise PortTakenError(wanted[claim], other)
