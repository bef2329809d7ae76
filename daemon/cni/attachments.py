"""Makes, checks and removes attachments: IPAM's record and the kernel's wiring as one piece.

Everything here runs on the writer's thread, one call after the other. That is what serialises requests for
one attachment, and it is why a call never leaves anything half done behind but by dying: then record and link
say so, and `collect` finishes or undoes it. A new attachment is written after its ADD was answered, by
`settle`: the alias that its link gets with the last of its wiring is the record until then, and a start finds
it (`adopt`). Owns no protocol; raises CniError where the runtime must be told a code, lets the exceptions of
ipam and datapath pass otherwise.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from daemon.cni.errors import CniError, Code
from daemon.cni.links import aliases, records_of, with_ports
from daemon.cni.naming import names
from daemon.compile.hostports import stale_flows
from datapath.attachment import Attachment, AttachRequest
from datapath.errors import DatapathError, NamespaceError, NamespaceGoneError, NotANamespaceError
from datapath.netns import open_namespace
from datapath.nft.elements import Range
from datapath.nft.hostports import HostPort
from ipam import alias
from ipam.allocator import Wish
from ipam.audit import is_complete
from ipam.errors import AliasError, IpamError, PortTakenError
from ipam.record import State

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from daemon.cni.links import Link
    from datapath.attachment import Attached
    from datapath.conntrack import StaleFlows
    from datapath.desired import Address
    from datapath.handover import Handover
    from datapath.policy import Direction
    from ipam.allocator import Allocator
    from ipam.pool import Pool
    from ipam.ports import PortMapping
    from ipam.record import AttachmentKey, Record


class Kernel(Protocol):
    """What the writer gives to a job (datapath.writer.Kernel)."""

    def expect(self, requests: Sequence[AttachRequest]) -> None:
        """Let pods send that are attached next, each by its own call."""

    def attach(self, request: AttachRequest) -> Attached:
        """Wire a pod; everything is undone on failure."""

    def settle(self) -> None:
        """Do what `attach` left for when the callers have their answers."""

    def detach(self, attachment: Attachment) -> object:
        """Take a pod's wiring down, whatever is left of it."""

    def inspect(self, attachment: Attachment) -> tuple[str, ...]:
        """Say what differs from what `attach` made."""

    def links(self) -> Sequence[Link]:
        """All links of the node."""

    def host_ports(self) -> Mapping[Address, tuple[HostPort, ...]]:
        """Ports of the node that lead to pods, by address of the pod."""


@dataclass(frozen=True, slots=True)
class Request:
    """What an ADD asks for.

    Attributes:
        key: what is to be attached.
        netns: path of the pod's network namespace.
        pools: this node's pod CIDRs.
        sources: the node's address per family, preferred source of the pod's host routes.
        mtu: of the pod's interface.
        pod: the pod's namespace, name and UID, as far as the runtime told.
        closed: in which directions nothing may pass until policies are known.
        ports: ports of the node that are to lead to the pod.
    """

    key: AttachmentKey
    netns: str
    pools: Sequence[Pool]
    sources: tuple[Address, ...]
    mtu: int
    pod: tuple[str, str, str]
    closed: tuple[Direction, ...] = ()
    ports: tuple[PortMapping, ...] = ()


@dataclass(frozen=True, slots=True)
class Added:
    """A new attachment, and how long each step took (seconds)."""

    record: Record
    seconds: Mapping[str, float]


@dataclass(slots=True)
class Collected:
    """What a collection did.

    Attributes:
        confirmed: attachments found complete whose ADD had no time to say so.
        released: attachments released, and why.
        orphans: host links removed that no record knew.
        broken: attachments whose host link is gone while their namespace lives; they are kept.
        problems: what could not be done, in words; the next collection tries again.
    """

    confirmed: list[Record] = field(default_factory=list)
    released: list[tuple[Record, str]] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    broken: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Add:
    """An ADD on its way."""

    request: Request
    record: Record | None = None
    plan: AttachRequest | None = None
    failure: Exception | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def outcome(self) -> Added | Exception:
        """What became of it."""
        if self.failure is not None:
            return self.failure
        assert self.record is not None
        return Added(self.record, self.seconds)


class Attachments:
    """All attachments of this node."""

    def __init__(
        self,
        ipam: Allocator,
        *,
        lives: Callable[[str], bool] | None = None,
        on_stale_flows: Callable[[StaleFlows], object] = lambda _: None,
        handover: Handover | None = None,
    ) -> None:
        """Make it.

        Args:
            ipam: the records.
            lives: says whether there is a network namespace at a path (tests have their own).
            on_stale_flows: told, on the caller's thread, of flows that a host port which came or went left
                leading nowhere.
            handover: keeps flows of an address's former owner from its next one; None does without.
        """
        self.ipam = ipam
        self._lives = lives or is_namespace
        self._on_stale_flows = on_stale_flows
        self._handover = handover
        self._spans_of: tuple[Sequence[Pool], frozenset[Range]] = ((), frozenset())
        # Pending in a living process is only what it gave up. These are of one that died, at whatever step.
        self._inherited = {record.key for record in ipam.records() if record.state is State.PENDING}

    def add(self, kernel: Kernel, request: Request) -> Added:
        """Attach a pod.

        Raises:
            CniError: it is attached already, or its name can't be noted in the kernel.
            IpamError: no address left, a host port is another's, or the database can't be written; nothing
                was done.
            DatapathError: the kernel refused; everything was undone.
        """
        (outcome,) = self.add_all(kernel, (request,))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def add_all(self, kernel: Kernel, requests: Sequence[Request]) -> list[Added | Exception]:
        """Attach pods. Each is wired by itself; records and elements of all are one transaction each.

        What fails for one does not touch the others. Call `settle` once the callers have their answers.

        Returns:
            For each request what `add` would return or raise.
        """
        began = time.perf_counter()
        group: dict[AttachmentKey, _Add] = {}
        for request in requests:
            if request.key not in group:
                group[request.key] = _Add(request)
        adds = list(group.values())
        self._reserve(kernel, adds)
        reserved = time.perf_counter()
        kernel.expect([add.plan for add in adds if add.plan is not None])
        admitted = time.perf_counter()
        count = len(adds)
        for add in adds:
            self._wire(kernel, add)
            add.seconds["ipam"] = (reserved - began) / count
            add.seconds["nft"] = (admitted - reserved) / count
        outcomes: list[Added | Exception] = []
        for request in requests:
            # One that is asked for twice is attached already when its second turn comes.
            first = group.pop(request.key, None)
            outcomes += self.add_all(kernel, (request,)) if first is None else (first.outcome(),)
        return outcomes

    def _reserve(self, kernel: Kernel, group: Iterable[_Add]) -> None:
        adds: list[_Add] = []
        wishes: list[Wish] = []
        for add in group:
            request = add.request
            key = request.key
            if key in self.ipam.store.records:
                try:
                    self._make_way(kernel, key)
                except Exception as error:  # noqa: BLE001 - it is told to whom it concerns
                    add.failure = error
                    continue
            wish = Wish(
                key, request.pools, request.netns, *names(key), request.mtu, request.pod, request.ports
            )
            adds += (add,)
            wishes += (wish,)
        for add, wish, found in zip(adds, wishes, self.ipam.reserve_all(wishes), strict=True):
            record: Record | Exception = found
            if isinstance(record, Exception):
                if isinstance(record, PortTakenError):
                    record = self._take_over(kernel, wish, record, {each.key for each in wishes})
                if isinstance(record, Exception):
                    add.failure = record
                    continue
            add.record = record
            try:
                add.plan = _attach_request(record, add.request)
            except CniError as error:
                self._give_up(kernel, add, error)
        if self._handover is not None:
            self._clean(kernel, self._handover, [add for add in group if add.plan is not None])

    def _clean(self, kernel: Kernel, handover: Handover, group: Sequence[_Add]) -> None:
        """Keep what former owners of addresses left from their next ones; mostly that is done long ago."""
        addresses: list[Address] = []
        pools: set[Range] = set()
        for add in group:
            assert add.plan is not None
            addresses += add.plan.addresses
            pools |= self._spans(add.request.pools)
        if not addresses:
            return
        try:
            handover.require_clean(addresses, pools, self._held)
        except DatapathError as error:
            for add in group:
                self._give_up(kernel, add, error)

    def _spans(self, pools: Sequence[Pool]) -> frozenset[Range]:
        # They are the same sequence for as long as the node keeps its CIDRs.
        known = self._spans_of
        if known[0] is not pools:
            self._spans_of = known = pools, frozenset(Range(*pool.span) for pool in pools if pool.size)
        return known[1]

    def _held(self) -> Iterable[Address]:
        return (address for record in self.ipam.records() for address in record.addresses)

    def clean(self, pools: Iterable[Pool]) -> None:
        """Have everything forgotten of pools' addresses that nobody holds, before the first ADD needs one.

        Raises:
            DatapathError: the kernel refused; an ADD will try again.
        """
        if self._handover is not None:
            self._handover.require_clean((), self._spans(tuple(pools)), self._held)

    def _take_over(
        self, kernel: Kernel, wish: Wish, taken: PortTakenError, busy: Collection[AttachmentKey]
    ) -> Record | Exception:
        """Take host ports from the dead whose DEL never came; those of `busy` are being attached."""
        found: Record | IpamError = taken
        try:
            while isinstance(found, PortTakenError) and found.holder.key not in busy:
                # Another ADD of the group may have taken it down already.
                if self.ipam.get(found.holder.key) is not None:
                    if self._judge(found.holder, aliases(kernel.links())) in ("", _BROKEN):
                        break
                    self._take_down(kernel, found.holder)
                (found,) = self.ipam.reserve_all((wish,))
        except (DatapathError, IpamError) as error:
            return error
        return found

    def _wire(self, kernel: Kernel, add: _Add) -> None:
        if add.plan is None:
            return
        try:
            attached = kernel.attach(add.plan)
        except Exception as error:  # noqa: BLE001 - it is told to whom it concerns
            self._give_up(kernel, add, error)
        else:
            add.seconds = {
                "create": attached.create_seconds,
                "pod": attached.pod_seconds,
                "host": attached.host_seconds,
            }
            add.record = self._confirm(add.request.key)

    def _confirm(self, key: AttachmentKey) -> Record:
        record = self.ipam.confirm(key)
        if record.ports:
            self._on_stale_flows(stale_flows(record, self.ipam.records()))
        return record

    def settle(self, kernel: Kernel) -> None:
        """Finish new attachments, and write them, all in one transaction; cheap when all is written.

        Raises:
            StoreError: the database can't be written. Nothing is lost: the next call or collection tries
                again, after a restart the links' aliases tell, and no ADD is served before it succeeds.
        """
        kernel.settle()
        self.ipam.settle()

    def _give_up(self, kernel: Kernel, add: _Add, failure: Exception) -> None:
        """Undo what was done for one; what can't be undone now is recorded, and collected later."""
        add.failure, add.plan = failure, None
        try:
            if add.record is not None:
                self._take_down(kernel, add.record)
        except (DatapathError, IpamError) as error:
            error.__context__ = failure
            add.failure = error

    def delete(self, kernel: Kernel, key: AttachmentKey) -> Record | None:
        """Detach a pod; return what was recorded, None when nothing was. Repeating it does no harm.

        Raises:
            DatapathError: the kernel refused; the addresses stay held, and a repetition goes on.
            StoreError: the database can't be written.
        """
        record = self.ipam.get(key)
        if record is not None:
            self._take_down(kernel, record)
        else:
            # An ADD that died with the database may have left a link behind.
            host_link, mac = names(key)
            kernel.detach(Attachment(host_link, "", key.ifname, mac, 0, ()))
        return record

    def check(self, kernel: Kernel, key: AttachmentKey, netns: str) -> tuple[Record, tuple[str, ...]]:
        """Return what is recorded of an attachment, and what differs from it in words.

        Raises:
            CniError: code 3, no such attachment.
            DatapathError: the kernel can't be read.
        """
        record = self.ipam.get(key)
        if record is None or record.state is not State.ATTACHED:
            raise CniError(
                Code.UNKNOWN_CONTAINER, f"there is no attachment {key}", "ADD it, or DEL what is left of it"
            )
        return record, kernel.inspect(_attachment(record, netns))

    def tell_flows(self) -> None:
        """Tell of all flows to host ports that may lead nowhere."""
        records = self.ipam.records()
        for record in records:
            if record.ports:
                self._on_stale_flows(stale_flows(record, records))

    def attached(self) -> tuple[Attachment, ...]:
        """Return every complete attachment, for the desired state."""
        return tuple(
            _attachment(record, record.netns)
            for record in self.ipam.records()
            if record.state is State.ATTACHED
        )

    def keep_only(
        self, kernel: Kernel, network: str, valid: frozenset[tuple[str, str]]
    ) -> tuple[list[Record], list[str]]:
        """Detach what a network has besides the attachments named by container id and interface.

        Returns:
            What was detached, and what could not be, in words.
        """
        gone: list[Record] = []
        problems: list[str] = []
        for record in self.ipam.records():
            key = record.key
            if key.network == network and (key.container_id, key.ifname) not in valid:
                try:
                    self._take_down(kernel, record)
                    gone.append(record)
                except (DatapathError, IpamError) as error:
                    problems.append(f"{key}: {error}")
        return gone, problems

    def adopt(self, kernel: Kernel) -> tuple[str, ...]:
        """Record what is attached and not on record, from the aliases of the host links and from nftables.

        To be called at a start, before anything else. That is where an ADD is found that died before it was
        written, and everything when the database was lost. The host ports are in nftables: an alias is too
        short for as many as a pod may have.

        Returns:
            What is strange about the links, in words.

        Raises:
            StoreError: the database can't be written.
            DatapathError: the links can't be listed.
        """
        store = self.ipam.store
        known = {record.host_link for record in store.records.values()}
        links = [link for link in kernel.links() if link.name not in known]
        found, problems = records_of(links, store.clock() / 1e9)
        if found:
            problems += self.ipam.restore(with_ports(found, kernel.host_ports()))
        return tuple(problems)

    def collect(self, kernel: Kernel) -> Collected:
        """Finish or undo what was half done, release what is dead, remove links that nobody knows.

        An attachment is dead when its link and its namespace are both gone. The kernel destroys the link with
        the namespace, so a link that exists belongs to a living pod, even where the namespace's path can't be
        seen.

        Raises:
            DatapathError: the links can't be listed.
        """
        found = Collected()
        links = aliases(kernel.links())
        for record in self.ipam.records():
            reason = self._judge(record, links)
            if not reason and record.state is State.PENDING:
                found.confirmed.append(self._confirm(record.key))
            elif reason == _BROKEN:
                found.broken.append(record)
            elif reason:
                try:
                    self._take_down(kernel, record)
                    found.released.append((record, reason))
                except (DatapathError, IpamError) as error:
                    found.problems.append(f"attachment {record.key} can't be released: {error}")
        self._inherited.clear()
        try:
            self.settle(kernel)
        except IpamError as error:
            found.problems.append(f"new attachments can't be written: {error}")
        known = {record.host_link for record in self.ipam.records()}
        for name in sorted(links.keys() - known):
            try:
                kernel.detach(Attachment(name, "", "", bytes(6), 0, ()))
                found.orphans.append(name)
            except DatapathError as error:
                found.problems.append(f"link {name} without an attachment can't be removed: {error}")
        return found

    def _judge(self, record: Record, links: Mapping[str, str]) -> str:
        """Say why an attachment is dead, "" when it lives; `links` are names and aliases."""
        if record.state is State.RELEASING:
            return "its DEL was interrupted"
        if record.state is State.PENDING and not (
            record.key in self._inherited and is_complete(record, links)
        ):
            return "its ADD was interrupted"
        if record.host_link in links:
            return ""
        return _BROKEN if self._lives(record.netns) else "its network namespace is gone"

    def _make_way(self, kernel: Kernel, key: AttachmentKey) -> None:
        """Clear a key for its repeated ADD: what an interrupted one left, or what died with its sandbox."""
        known = self.ipam.get(key)
        if known is None:
            return
        if not self._judge(known, aliases(kernel.links())):
            raise CniError(
                Code.ALREADY_ATTACHED,
                f"attachment {known.key} exists already",
                f"it is wired into {known.netns}; DEL it before another ADD",
            )
        self._take_down(kernel, known)

    def _take_down(self, kernel: Kernel, record: Record) -> None:
        self.ipam.begin_release(record.key)
        kernel.detach(_attachment(record, record.netns))
        self.ipam.release(record.key)
        if self._handover is not None:
            self._handover.give_back(record.addresses)
        if record.ports:
            self._on_stale_flows(stale_flows(record, self.ipam.records()))


_BROKEN = "its host link is gone"


def is_namespace(path: str) -> bool:
    """Whether there is a network namespace at a path; where that can't be told, there is."""
    if not path:
        return False
    try:
        os.close(open_namespace(path))
    except (NamespaceGoneError, NotANamespaceError):
        return False
    except NamespaceError:
        return True
    return True


def _attachment(record: Record, netns: str) -> Attachment:
    return Attachment(
        record.host_link,
        netns,
        record.key.ifname,
        record.mac,
        record.mtu,
        record.addresses,
        _host_ports(record) if record.ports else (),
    )


def _host_ports(record: Record) -> tuple[HostPort, ...]:
    return tuple(HostPort(*each) for each in record.ports)


def _attach_request(record: Record, request: Request) -> AttachRequest:
    try:
        text = alias.write(record)
    except AliasError as error:
        raise CniError(Code.INVALID_CONFIG, str(error)) from error
    return AttachRequest(
        netns=record.netns,
        ifname=record.key.ifname,
        host_link=record.host_link,
        mac=record.mac,
        mtu=record.mtu,
        addresses=record.addresses,
        sources=request.sources,
        alias=text,
        closed=request.closed,
        ports=_host_ports(record) if record.ports else (),
    )
