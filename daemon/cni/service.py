"""The CNI verbs: what a request of the shim means, which job of the writer does it, what the runtime is told.

An ADD costs one hop to the writer's thread, where everything about attachments happens, one job after the
other: no lock is needed to keep two requests for one attachment apart. ADDs that wait in a row are one job,
so that a burst pays for records and elements once for several. The writer finishes a job that it has begun
even when the caller goes away; one that still waits is dropped with its caller. Owns no sockets and no kernel
state.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

import structlog

from daemon.cni import invocation as environment
from daemon.cni import netconf
from daemon.cni.accounts import Accounts, Trace
from daemon.cni.attachments import Request
from daemon.cni.deletions import CorruptTombstoneError
from daemon.cni.errors import CniError, Code
from daemon.cni.result import VERSIONS, Dns, Interface, Ip, Result, Route
from daemon.compile.local import IPV6_MINIMUM_MTU
from datapath import text
from datapath.attachment import GATEWAYS, HOST_MAC
from datapath.errors import DatapathError, InterfaceExistsError, NamespaceError, NamespaceGoneError
from datapath.writer import StoppedError
from ipam.errors import ExhaustedError, PortTakenError, StoreError
from ipam.pool import Pool
from ipam.record import AttachmentKey
from weft_rpc.cni_pb2 import ExecuteResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from daemon.cluster.model import Prefix
    from daemon.cni.attachments import Added, Attachments, Kernel
    from daemon.cni.deletions import Deletions, Drained
    from daemon.cni.invocation import Invocation
    from daemon.cni.netconf import NetConf
    from daemon.config import Config
    from daemon.metrics import Metrics
    from datapath.desired import Address
    from datapath.policy import Direction
    from ipam.record import Record
    from weft_rpc.cni_pb2 import ExecuteRequest

T = TypeVar("T")
Q = TypeVar("Q")
log = structlog.get_logger()

_GATEWAYS = {size: text.address(address) for size, address in GATEWAYS.items()}
_DEFAULT_ROUTES = {4: "0.0.0.0/0", 16: "::/0"}
STUCK_SECONDS = 30.0
"""A request that takes longer shows that the writer hangs: no ADD can be promised then."""


class Local(Protocol):
    """What is read of this node's network (daemon.compile.local.LocalNetwork)."""

    @property
    def pod_cidrs(self) -> tuple[Prefix, ...]:
        """Where pods' addresses come from."""

    @property
    def sources(self) -> tuple[Address, ...]:
        """The node's address per family."""

    @property
    def mtu(self) -> int:
        """Of pods' interfaces."""


class Writer(Protocol):
    """What is used of the writer (datapath.writer.Writer)."""

    async def attachment(self, job: Callable[[Kernel], T]) -> T:
        """Run a job on the writer's thread; it finishes even when the caller is cancelled."""

    async def together(self, work: Callable[[Kernel, Sequence[Q]], Sequence[T | Exception]], item: Q) -> T:
        """Run a job that may be done together with others like it."""


@dataclass(slots=True)
class _Ticket:
    """A job's way to learn that nobody waits for it any more, and to say when it began."""

    abandoned: bool = False
    began: float = 0.0


class CniService:
    """Answers `weft.cni.v1.Execute`; `execute` may be called any number of times at once."""

    def __init__(
        self,
        *,
        writer: Writer,
        attachments: Attachments,
        deletions: Deletions,
        local: Callable[[], Local | None],
        config: Config,
        metrics: Metrics,
        degraded: Callable[[], str] = lambda: "",
        birth: Callable[[str, str, str], tuple[Direction, ...]] = lambda *_: (),
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """Make the service.

        Args:
            writer: runs the jobs.
            attachments: what the jobs do.
            deletions: tombstones, worked off before an ADD.
            local: this node's network, None while it is not known.
            config: the daemon's configuration.
            metrics: where figures go.
            degraded: says in words why pods of this node may lack connectivity, "" when they don't.
            birth: in which directions a pod, by namespace, name and UID, is closed from its first packet on.
            changed: called when attachments may have come or gone.
        """
        self._writer = writer
        self._attachments = attachments
        self._deletions = deletions
        self._local = local
        self._degraded = degraded
        self._birth = birth
        self._changed = changed
        self._dns = Dns(
            tuple(config.dns.get("nameservers", ())),
            "".join(config.dns.get("domain", ())),
            tuple(config.dns.get("search", ())),
            tuple(config.dns.get("options", ())),
        )
        self._adds = asyncio.Semaphore(config.max_concurrent_adds)
        self._in_flight: dict[int, float] = {}
        self._accounts = Accounts(
            metrics,
            busy=lambda: bool(self._in_flight),
            attachments=lambda: len(attachments.ipam.store.records),
        )
        self._serial = 0
        self._pools_of: tuple[tuple[Prefix, ...], tuple[Pool, ...]] = ((), ())

    async def execute(self, request: ExecuteRequest) -> ExecuteResponse:
        """Answer one request; every failure is a CNI error object in the answer."""
        trace = Trace(request.command, time.perf_counter())
        self._serial += 1
        serial = self._serial
        self._in_flight[serial] = trace.start
        try:
            output = await self._dispatch(request, trace)
        except Exception as error:  # noqa: BLE001 - whatever happens, the runtime gets an error object
            trace.failure = failure = _explain(error)
            output = failure.to_json(netconf.requested_version(request.config))
        finally:
            del self._in_flight[serial]
            if request.command in ("ADD", "DEL", "GC"):
                self._changed()
        trace.total = time.perf_counter() - trace.start
        self._accounts.note(trace)
        return ExecuteResponse(output=output, exit_code=0 if trace.failure is None else 1)

    async def _dispatch(self, request: ExecuteRequest, trace: Trace) -> bytes:
        invocation = environment.read(request)
        if invocation.command == "VERSION":
            return _versions(request.config)
        conf = netconf.read(request.config, invocation.command)
        if invocation.command in ("GC", "STATUS"):
            await (self._collect(conf) if invocation.command == "GC" else self._status())
            return b""
        key = AttachmentKey(conf.name, invocation.container_id, invocation.ifname)
        trace.attachment = str(key)
        match invocation.command:
            case "ADD":
                return await self._add(key, invocation, conf, trace)
            case "DEL":
                trace.record = await self._job(trace, partial(self._attachments.delete, key=key))
            case "CHECK":
                await self._check(key, invocation, conf, trace)
        return b""

    async def _add(self, key: AttachmentKey, invocation: Invocation, conf: NetConf, trace: Trace) -> bytes:
        wish = netconf.wish(conf)
        args = conf.args(invocation.args)
        local = self._local()
        if local is None:
            raise CniError(
                Code.TRY_AGAIN_LATER,
                "weftd does not know this node's pod CIDRs yet",
                "it waits for the API server, or for the Node's spec.podCIDRs; see weftctl status",
            )
        if unfit := _unfit(local):
            raise CniError(Code.WIRING_FAILED, unfit, "raise the MTU of the underlay or of the configuration")
        pod = (
            args.get("K8S_POD_NAMESPACE", ""),
            args.get("K8S_POD_NAME", ""),
            args.get("K8S_POD_UID", ""),
        )
        request = Request(
            key,
            invocation.netns,
            self._pools(local.pod_cidrs),
            local.sources,
            local.mtu,
            pod,
            closed=self._birth(*pod),
            ports=wish.ports,
        )
        async with self._adds:
            added = await self._add_together(trace, request)
        trace.record = added.record
        trace.seconds.update(added.seconds)
        result = result_of(added.record, wish.dns or self._dns)
        if wish.previous is not None:
            result = wish.previous.followed_by(result)
        return result.to_json(conf.version)

    async def _add_together(self, trace: Trace, request: Request) -> Added:
        ticket = _Ticket()
        asked = time.perf_counter()
        try:
            return await self._writer.together(self._add_job, (ticket, request))
        except asyncio.CancelledError:
            ticket.abandoned = True
            raise
        finally:
            if ticket.began:
                trace.seconds["wait"] = ticket.began - asked

    def _add_job(self, kernel: Kernel, asked: Sequence[tuple[_Ticket, Request]]) -> list[Added | Exception]:
        # A DEL of one of these attachments may wait in there, and must not come after its ADD.
        if self._deletions.waiting():
            self.drain_job(kernel)
        now = time.perf_counter()
        for ticket, _ in asked:
            ticket.began = now
        outcomes = iter(
            self._attachments.add_all(kernel, [request for ticket, request in asked if not ticket.abandoned])
        )
        return [_abandoned() if ticket.abandoned else next(outcomes) for ticket, _ in asked]

    def drain_job(self, kernel: Kernel) -> Drained:
        """Work off the tombstones; a job for the writer."""
        return self._deletions.drain(lambda request: self._delete_tombstone(kernel, request))

    def _delete_tombstone(self, kernel: Kernel, request: ExecuteRequest) -> None:
        try:
            invocation = environment.read(request)
            conf = netconf.read(request.config, invocation.command)
        except CniError as error:
            raise CorruptTombstoneError(f"{error}; {error.details}") from error
        if invocation.command != "DEL":
            raise CorruptTombstoneError(f"it is no DEL but {invocation.command}")
        key = AttachmentKey(conf.name, invocation.container_id, invocation.ifname)
        record = self._attachments.delete(kernel, key)
        log.info("deleted what was recorded while away", attachment=str(key), known=record is not None)

    async def _check(self, key: AttachmentKey, invocation: Invocation, conf: NetConf, trace: Trace) -> None:
        previous = conf.previous_result()
        if previous is None:
            raise CniError(Code.INVALID_CONFIG, "CHECK needs prevResult", "the result of the ADD")
        record, faults = await self._job(
            trace, partial(self._attachments.check, key=key, netns=invocation.netns)
        )
        trace.record = record
        faults = (*_differences(record, previous), *faults)
        if faults:
            raise CniError(
                Code.FAULTY_ATTACHMENT, f"attachment {key} is not as ADD made it", "; ".join(faults)
            )

    async def _collect(self, conf: NetConf) -> None:
        valid = conf.valid_attachments()
        if valid is None:
            return
        gone, problems = await self._writer.attachment(
            lambda kernel: self._attachments.keep_only(kernel, conf.name, valid)
        )
        for record in gone:
            log.info("collected: the runtime does not list it", attachment=str(record.key))
        if problems:
            raise CniError(Code.WIRING_FAILED, f"{len(problems)} attachments remain", "; ".join(problems))

    async def _status(self) -> None:
        """Say whether an ADD can be served now, without a thread's help: it must never take long.

        An exhausted pool is no reason to fail: the node would become NotReady, and its pods be evicted.
        """
        local = self._local()
        why = "weftd does not know this node's pod CIDRs yet; see weftctl status"
        if local is not None:
            why = _unfit(local)
        oldest = next(iter(self._in_flight.values()))
        waited = time.perf_counter() - oldest
        if waited > STUCK_SECONDS:
            why = (
                f"a request has been waiting for {waited:.0f} s: the kernel does not answer; see weftd's log"
            )
        degraded = self._degraded()
        if degraded:
            raise CniError(Code.LIMITED_CONNECTIVITY, degraded, why)
        if why:
            raise CniError(Code.NOT_AVAILABLE, why)

    async def _job(self, trace: Trace, job: Callable[[Kernel], T]) -> T:
        ticket = _Ticket()
        asked = time.perf_counter()

        def run(kernel: Kernel) -> T:
            ticket.began = time.perf_counter()
            if ticket.abandoned:
                raise _abandoned()
            return job(kernel)

        try:
            return await self._writer.attachment(run)
        except asyncio.CancelledError:
            ticket.abandoned = True
            raise
        finally:
            if ticket.began:
                trace.seconds["wait"] = ticket.began - asked

    def _pools(self, prefixes: tuple[Prefix, ...]) -> tuple[Pool, ...]:
        if self._pools_of[0] != prefixes:
            self._pools_of = prefixes, tuple(Pool(prefix.address, prefix.length) for prefix in prefixes)
        return self._pools_of[1]


def _unfit(local: Local) -> str:
    """Say why no pod can be wired, "" when it can: the kernel would only call an address invalid."""
    if local.mtu < IPV6_MINIMUM_MTU and any(len(cidr.address) == 16 for cidr in local.pod_cidrs):
        return f"pods would get MTU {local.mtu}, and IPv6 needs {IPV6_MINIMUM_MTU}"
    return ""


def _abandoned() -> CniError:
    return CniError(Code.TRY_AGAIN_LATER, "the caller went away while this waited for its turn")


def result_of(record: Record, dns: Dns) -> Result:
    """Return what an ADD tells the runtime about an attachment."""
    mtu = record.mtu
    return Result(
        (
            Interface(record.host_link, text.mac(HOST_MAC), mtu),
            Interface(record.key.ifname, text.mac(record.mac), mtu, record.netns),
        ),
        tuple(
            Ip(text.prefix(address, 8 * len(address)), _GATEWAYS[len(address)], 1)
            for address in record.addresses
        ),
        tuple(Route(_DEFAULT_ROUTES[len(address)], _GATEWAYS[len(address)]) for address in record.addresses),
        dns,
    )


def _differences(record: Record, previous: Result) -> list[str]:
    """Say in what a prevResult contradicts the record; what other plugins added to it does not matter."""
    faults = []
    if not any(interface.name == record.key.ifname for interface in previous.interfaces):
        faults.append(f"prevResult has no interface {record.key.ifname}")
    told = {text.parse_address(ip.address.partition("/")[0]) for ip in previous.ips}
    faults += [
        f"prevResult lacks address {text.address(address)}"
        for address in record.addresses
        if address not in told
    ]
    return faults


def _versions(config: bytes) -> bytes:
    names = ",".join(f'"{version}"' for version in VERSIONS)
    return f'{{"cniVersion":"{netconf.requested_version(config)}","supportedVersions":[{names}]}}\n'.encode()


def _explain(error: Exception) -> CniError:
    """Turn whatever failed into the error that the runtime is told."""
    if isinstance(error, CniError):
        return error
    explained = CniError(_code(error), str(error))
    explained.__cause__ = error
    if explained.code is Code.INTERNAL:
        log.error("defect while serving a request", exc_info=error)
        explained = CniError(
            Code.INTERNAL, f"defect of Weft: {type(error).__name__}: {error}", "see the log of weftd"
        )
    return explained


def _code(error: Exception) -> Code:
    kinds: tuple[tuple[type[Exception], Code], ...] = (
        (ExhaustedError, Code.EXHAUSTED),
        (PortTakenError, Code.HOST_PORT_TAKEN),
        (StoreError, Code.STATE_UNWRITABLE),
        (InterfaceExistsError, Code.INTERFACE_EXISTS),
        (NamespaceGoneError, Code.UNKNOWN_CONTAINER),
        (NamespaceError, Code.NAMESPACE_UNUSABLE),
        (StoppedError, Code.TRY_AGAIN_LATER),
        (DatapathError, Code.WIRING_FAILED),
    )
    return next((code for kind, code in kinds if isinstance(error, kind)), Code.INTERNAL)
