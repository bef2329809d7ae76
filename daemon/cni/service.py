"""The CNI verbs: what a request of the shim means, what is done about it, and what the runtime is told.

All of it happens on the writer's thread, one request after the other: no lock is needed to keep two requests
for one attachment apart, and an ADD goes from the socket to the kernel and back without a change of threads.
ADDs in a row are one piece of work, so that a burst pays for records and elements once for several. What
nobody waits for follows the answer. Only what needs no kernel may be asked on any thread (`at_once`). Owns no
sockets and no kernel state.
"""

from __future__ import annotations

import time
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, Protocol

import structlog

from daemon.cni import answer, netconf
from daemon.cni import invocation as environment
from daemon.cni.accounts import Accounts, Trace
from daemon.cni.attachments import Request
from daemon.cni.deletions import CorruptTombstoneError
from daemon.cni.errors import CniError, Code
from daemon.cni.result import VERSIONS, Dns
from daemon.compile.local import IPV6_MINIMUM_MTU
from datapath.errors import DatapathError, InterfaceExistsError, NamespaceError, NamespaceGoneError
from datapath.writer import StoppedError
from ipam.errors import ExhaustedError, PortTakenError, StoreError
from ipam.pool import Pool
from ipam.record import AttachmentKey
from weft_rpc.cni_pb2 import ExecuteResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from daemon.cluster.model import Prefix
    from daemon.cni.attachments import Added, Attachments, Kernel
    from daemon.cni.deletions import Deletions, Drained
    from daemon.cni.invocation import Invocation
    from daemon.cni.netconf import NetConf, Wish
    from daemon.cni.server import Asked
    from daemon.config import Config
    from daemon.metrics import Metrics
    from datapath.desired import Address
    from datapath.policy import Direction
    from weft_rpc.cni_pb2 import ExecuteRequest

log = structlog.get_logger()

_AT_ONCE = frozenset({"STATUS", "VERSION"})
_CHANGING = frozenset({"ADD", "DEL", "GC"})
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


class _Prepared(NamedTuple):
    """An ADD that may be done, and what its answer needs."""

    request: Request
    wish: Wish
    version: str


class CniService:
    """Answers `weft.cni.v1.Execute`."""

    def __init__(
        self,
        *,
        attachments: Attachments,
        deletions: Deletions,
        local: Callable[[], Local | None],
        config: Config,
        metrics: Metrics,
        soon: Callable[..., object],
        degraded: Callable[[], str] = lambda: "",
        birth: Callable[[str, str, str], tuple[Direction, ...]] = lambda *_: (),
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """Make the service.

        Args:
            attachments: what is done.
            deletions: tombstones, worked off before an ADD.
            local: this node's network, None while it is not known.
            config: the daemon's configuration.
            metrics: where figures go.
            soon: has the event loop call a function, from any thread (call_soon_threadsafe).
            degraded: says in words why pods of this node may lack connectivity, "" when they don't.
            birth: in which directions a pod, by namespace, name and UID, is closed from its first packet on;
                asked on the writer's thread.
            changed: called on the event loop when attachments may have come or gone.
        """
        self._attachments = attachments
        self._deletions = deletions
        self._local = local
        self._soon = soon
        self._degraded = degraded
        self._birth = birth
        self._changed = changed
        self._dns = Dns(
            tuple(config.dns.get("nameservers", ())),
            "".join(config.dns.get("domain", ())),
            tuple(config.dns.get("search", ())),
            tuple(config.dns.get("options", ())),
        )
        self._began = 0.0
        self._accounts = Accounts(
            metrics,
            busy=lambda: bool(self._began),
            attachments=lambda: len(attachments.ipam.store.records),
        )
        self._pools_of: tuple[tuple[Prefix, ...], tuple[Pool, ...]] = ((), ())

    def at_once(self, request: ExecuteRequest) -> ExecuteResponse | None:
        """Answer what needs no kernel, on any thread and never taking long; None for everything else."""
        if request.command not in _AT_ONCE:
            return None
        trace = Trace(request.command, time.perf_counter())
        response = self._answered(trace, request, lambda: self._say(request))
        self._conclude((trace,))
        return response

    def execute(self, kernel: Kernel, asked: Sequence[Asked]) -> Iterator[list[ExecuteResponse]]:
        """Answer requests, on the writer's thread; every failure is a CNI error object in the answer.

        Yields:
            The answers in order, one or several at a time. What is left to be done for them is done when the
            next ones are asked for, so it has to be iterated to its end.
        """
        self._began = time.perf_counter()
        for adds, group in groupby(asked, lambda each: each.request.command == "ADD"):
            for piece in [list(group)] if adds else [[each] for each in group]:
                traces = [Trace(each.request.command, each.arrived) for each in piece]
                if adds:
                    try:
                        yield self._add(kernel, piece, traces)
                    finally:
                        self._settle(kernel)
                else:
                    yield [self._run(kernel, piece[0], traces[0])]
                self._conclude(traces)
        self._began = 0.0

    def _settle(self, kernel: Kernel) -> None:
        """Write what was attached. Who dies before finds it in the kernel."""
        try:
            self._attachments.settle(kernel)
        except StoreError as error:
            log.warning(
                "new attachments can't be written, it is tried again before the next one", error=str(error)
            )

    def _conclude(self, traces: Sequence[Trace]) -> None:
        """Do what nobody waits for."""
        changed = any(trace.command in _CHANGING for trace in traces)
        self._soon(self._note, traces, changed)

    def _note(self, traces: Sequence[Trace], changed: bool) -> None:
        for trace in traces:
            self._accounts.note(trace)
        if changed:
            self._changed()

    def _answered(self, trace: Trace, request: ExecuteRequest, work: Callable[[], bytes]) -> ExecuteResponse:
        """Return the answer that work comes to."""
        try:
            output = work()
        except Exception as error:  # noqa: BLE001 - whatever happens, the runtime gets an error object
            trace.failure = _explain(error)
            output = trace.failure.to_json(netconf.requested_version(request.config))
        trace.total = time.perf_counter() - trace.start
        return ExecuteResponse(output=output, exit_code=0 if trace.failure is None else 1)

    def _say(self, request: ExecuteRequest) -> bytes:
        invocation = environment.read(request)
        if invocation.command == "VERSION":
            return _versions(request.config)
        netconf.read(request.config, invocation.command)
        self._status()
        return b""

    def _run(self, kernel: Kernel, asked: Asked, trace: Trace) -> ExecuteResponse:
        trace.seconds["wait"] = time.perf_counter() - asked.arrived
        return self._answered(trace, asked.request, lambda: self._dispatch(kernel, asked.request, trace))

    def _dispatch(self, kernel: Kernel, request: ExecuteRequest, trace: Trace) -> bytes:
        invocation = environment.read(request)
        conf = netconf.read(request.config, invocation.command)
        if invocation.command == "GC":
            self._collect(kernel, conf)
            return b""
        key = AttachmentKey(conf.name, invocation.container_id, invocation.ifname)
        trace.attachment = str(key)
        if invocation.command == "DEL":
            trace.record = self._attachments.delete(kernel, key)
        else:
            self._check(kernel, key, invocation, conf, trace)
        return b""

    def _add(self, kernel: Kernel, asked: Sequence[Asked], traces: Sequence[Trace]) -> list[ExecuteResponse]:
        now = time.perf_counter()
        prepared: list[_Prepared | Exception] = []
        for each, trace in zip(asked, traces, strict=True):
            trace.seconds["wait"] = now - each.arrived
            try:
                prepared.append(self._prepare(each.request, trace))
            except Exception as error:  # noqa: BLE001 - it is told to whom it concerns
                prepared.append(error)
        # A DEL of one of these attachments may wait in there, and must not come after its ADD.
        if self._deletions.waiting():
            self.drain_job(kernel)
        requests = [each.request for each in prepared if not isinstance(each, Exception)]
        outcomes = iter(self._attachments.add_all(kernel, requests) if requests else ())
        return [
            self._answered(trace, each.request, partial(self._tell, trace, plan, outcomes))
            for each, trace, plan in zip(asked, traces, prepared, strict=True)
        ]

    def _tell(
        self, trace: Trace, plan: _Prepared | Exception, outcomes: Iterator[Added | Exception]
    ) -> bytes:
        if isinstance(plan, Exception):
            raise plan
        added = next(outcomes)
        if isinstance(added, Exception):
            raise added
        trace.record = added.record
        trace.seconds.update(added.seconds)
        dns = plan.wish.dns or self._dns
        if plan.wish.previous is None:
            return answer.encode(added.record, dns, plan.version)
        return plan.wish.previous.followed_by(answer.result(added.record, dns)).to_json(plan.version)

    def _prepare(self, request: ExecuteRequest, trace: Trace) -> _Prepared:
        invocation = environment.read(request)
        conf = netconf.read(request.config, invocation.command)
        key = AttachmentKey(conf.name, invocation.container_id, invocation.ifname)
        trace.attachment = str(key)
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
        wanted = Request(
            key,
            invocation.netns,
            self._pools(local.pod_cidrs),
            local.sources,
            local.mtu,
            pod,
            closed=self._birth(*pod),
            ports=wish.ports,
        )
        return _Prepared(wanted, wish, conf.version)

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

    def _check(
        self, kernel: Kernel, key: AttachmentKey, invocation: Invocation, conf: NetConf, trace: Trace
    ) -> None:
        previous = conf.previous_result()
        if previous is None:
            raise CniError(Code.INVALID_CONFIG, "CHECK needs prevResult", "the result of the ADD")
        trace.record, faults = self._attachments.check(kernel, key, invocation.netns)
        faults = (*answer.differences(trace.record, previous), *faults)
        if faults:
            raise CniError(
                Code.FAULTY_ATTACHMENT, f"attachment {key} is not as ADD made it", "; ".join(faults)
            )

    def _collect(self, kernel: Kernel, conf: NetConf) -> None:
        valid = conf.valid_attachments()
        if valid is None:
            return
        gone, problems = self._attachments.keep_only(kernel, conf.name, valid)
        for record in gone:
            log.info("collected: the runtime does not list it", attachment=str(record.key))
        if problems:
            raise CniError(Code.WIRING_FAILED, f"{len(problems)} attachments remain", "; ".join(problems))

    def _status(self) -> None:
        """Say whether an ADD can be served now.

        An exhausted pool is no reason to fail: the node would become NotReady, and its pods be evicted.
        """
        local = self._local()
        why = "weftd does not know this node's pod CIDRs yet; see weftctl status"
        if local is not None:
            why = _unfit(local)
        began = self._began
        if began and (waited := time.perf_counter() - began) > STUCK_SECONDS:
            why = f"a request takes {waited:.0f} s by now: the kernel does not answer; see weftd's log"
        degraded = self._degraded()
        if degraded:
            raise CniError(Code.LIMITED_CONNECTIVITY, degraded, why)
        if why:
            raise CniError(Code.NOT_AVAILABLE, why)

    def _pools(self, prefixes: tuple[Prefix, ...]) -> tuple[Pool, ...]:
        if self._pools_of[0] != prefixes:
            self._pools_of = prefixes, tuple(Pool(prefix.address, prefix.length) for prefix in prefixes)
        return self._pools_of[1]


def _unfit(local: Local) -> str:
    """Say why no pod can be wired, "" when it can: the kernel would only call an address invalid."""
    if local.mtu < IPV6_MINIMUM_MTU and any(len(cidr.address) == 16 for cidr in local.pod_cidrs):
        return f"pods would get MTU {local.mtu}, and IPv6 needs {IPV6_MINIMUM_MTU}"
    return ""


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


def _versions(config: bytes) -> bytes:
    names = ",".join(f'"{version}"' for version in VERSIONS)
    return f'{{"cniVersion":"{netconf.requested_version(config)}","supportedVersions":[{names}]}}\n'.encode()
