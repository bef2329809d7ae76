"""The only one who changes the kernel: one thread, jobs for attachments before bulk, bulk in bounded pieces.

Coroutines hand in what they want and wait; the thread owns the sync state (`datapath.sync`). Of changes to
the same fragment only the latest is done. A job runs to its end even when its caller is cancelled. What the
kernel refuses is reported, and tried again after a new reading, ever more rarely. Requests of the container
runtime come to the thread by themselves (`attend`): two changes of threads would be a tenth of an ADD.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar, cast

from datapath.bell import Bell
from datapath.errors import DatapathError
from datapath.kernel import Kernel, readdressed
from datapath.netlink.transport import Socket
from datapath.netns import current_namespace, entered
from datapath.nft.connection import Nft
from datapath.reaper import Reaper
from datapath.sync import Sync
from datapath.underlay import read_links

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from datapath.describe import Difference
    from datapath.desired import Address, Fragment, FragmentKey, ObjectKey
    from datapath.underlay import HostLink

T = TypeVar("T")

RETRY_SECONDS = 0.5
"""Until what the kernel refused is tried again the first time; the time doubles up to RETRY_LIMIT_SECONDS."""
RETRY_LIMIT_SECONDS = 30.0
READING_RETRY_SECONDS = 0.1
READING_TRIES = 10
DRAIN_SECONDS = 5.0


class Applied(NamedTuple):
    """The outcome of `apply`: steps done, what the kernel refuses by now (object to error), and the time."""

    steps: int
    failures: Mapping[str, str]
    seconds: float


class Drift(NamedTuple):
    """The outcome of `resync`: what was different though nobody wanted it so, and what the kernel refuses."""

    reason: str
    differences: tuple[Difference, ...]
    failures: Mapping[str, str]
    seconds: float


class StoppedError(DatapathError):
    """The writer is stopping: nothing is changed any more."""


class _Waiter(NamedTuple):
    """Who waits for the kernel to be in line; `began` is a time.monotonic()."""

    future: asyncio.Future[object]
    began: float
    reason: str | None


class _Job(NamedTuple):
    """What is to be done, and who waits for it."""

    work: Callable[[Kernel], object]
    future: asyncio.Future[object]


class Intake(Protocol):
    """Where requests for attachments come in that are served on the writer's thread, ahead of bulk."""

    def fileno(self) -> int:
        """Return a descriptor that is readable while there is something to serve."""

    def serve(self, kernel: Kernel) -> bool:
        """Do a bounded part of what there is; returns whether there may be more. Must raise nothing."""

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""


class Writer:
    """Changes the kernel of one network namespace.

    Until `adopt` and an `apply` with `complete` nothing is deleted that no change named, and nftables is not
    touched: what an earlier process left stays as it is while it is not known what is still wanted.

    Args:
        namespace: descriptor of it; None is that of the thread that calls `run`.
        report: called on the event loop with what the kernel refuses (object to error) whenever that changes.
    """

    def __init__(
        self,
        *,
        namespace: int | None = None,
        report: Callable[[Mapping[str, str]], None] | None = None,
    ) -> None:
        self._namespace = namespace
        self._report = report
        self._lock = threading.Lock()
        self._bell = Bell()
        self._asleep = False
        self._intake: Intake | None = None
        self._jobs: deque[_Job] = deque()
        self._queries: deque[tuple[Callable[[Sync], object], asyncio.Future[object]]] = deque()
        self._changes: dict[FragmentKey, Fragment | None] = {}
        self._waiters: list[_Waiter] = []
        self._sources: tuple[Address, ...] | None = None
        self._resync = False
        self._stopping = False
        self._adopted = self._complete = False
        self._pace = _Pace()
        self._reported: Mapping[str, str] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bulk = 0
        self.port = 0
        """Netlink port of the writer's socket, by which a watcher tells its changes from others'."""

    @property
    def queued(self) -> tuple[int, int]:
        """Waiting attachment jobs and bulk objects."""
        intake = self._intake
        return len(self._jobs) + (intake.waiting if intake else 0), self._bulk + len(self._changes)

    async def run(self) -> None:
        """Serve until cancelled; then finish what was asked for (DRAIN_SECONDS at most) and return.

        Raises:
            DatapathError: the sockets could not be opened.
        """
        self._loop = asyncio.get_running_loop()
        ended = _promise()
        thread = threading.Thread(target=self._thread, args=(ended,), name="weft-writer", daemon=True)
        thread.start()
        try:
            await asyncio.shield(ended)
        except asyncio.CancelledError:
            with self._lock:
                self._stopping = True
                self._wake()
            await ended
            raise

    async def attachment(self, job: Callable[[Kernel], T]) -> T:
        """Run a job on the writer's thread, ahead of bulk; it finishes even when the caller is cancelled.

        Raises:
            StoppedError: the writer is stopping; the job was not run.
            Exception: whatever the job raised.
        """
        future = _promise()
        self._put(lambda: self._jobs.append(_Job(job, future)))
        return cast("T", await future)

    def attend(self, intake: Intake | None) -> None:
        """Serve what comes in there from now on, instead of where it came in before; None serves nobody."""
        with self._lock:
            self._bell.listen(None if intake is None else intake.fileno())
            self._intake = intake
            self._wake()

    def wake(self) -> None:
        """Have the intake looked at: it took something in that its descriptor does not show any more."""
        with self._lock:
            self._wake()

    def overhear(self, descriptor: int, heard: Callable[[], None]) -> None:
        """Have `heard` called on the running loop, once, when the descriptor is readable and the thread free.

        Whoever would wake up by himself during an ADD takes the processor and the interpreter from it.
        """
        told = partial(asyncio.get_running_loop().call_soon_threadsafe, heard)
        with self._lock:
            self._bell.overhear(descriptor, told)

    def ignore(self, descriptor: int) -> None:
        """Forget a descriptor that was to be overheard, before it is closed."""
        with self._lock:
            self._bell.ignore(descriptor)

    async def adopt(self, fragments: Mapping[FragmentKey, Fragment]) -> None:
        """Say what attachments exist (`datapath.kernel.attachment_fragment`), before the first resync."""

        def put() -> None:
            self._changes.update(fragments)
            self._adopted = self._resync = True

        self._put(put)

    def offer(self, changes: Mapping[FragmentKey, Fragment | None]) -> None:
        """Take changes without waiting; an `apply` has to follow. Raises StoppedError."""
        self._put(lambda: self._changes.update(changes))

    async def apply(
        self,
        changes: Mapping[FragmentKey, Fragment | None],
        *,
        complete: bool = False,
        sources: tuple[Address, ...] | None = None,
    ) -> Applied:
        """Take changes into the desired state and return when the kernel was brought in line.

        Args:
            changes: fragments by key; None removes one.
            complete: the desired state is whole with these: what nobody asked for may go from now on.
            sources: the node's address per family, preferred source towards pods, for all attachments there
                are; None leaves them as they are.

        Raises:
            DatapathError: the kernel could not be read.
        """
        future = _promise()

        def put() -> None:
            self._changes.update(changes)
            self._complete |= complete
            self._sources = sources if sources is not None else self._sources
            self._waiters.append(_Waiter(future, time.monotonic(), None))

        self._put(put)
        return cast("Applied", await future)

    async def resync(self, reason: str) -> Drift:
        """Read the kernel, repair what differs from the desired state, delete what is ours and not desired.

        Raises:
            DatapathError: the kernel could not be read.
        """
        future = _promise()

        def put() -> None:
            self._resync = True
            self._waiters.append(_Waiter(future, time.monotonic(), reason))

        self._put(put)
        return cast("Drift", await future)

    async def difference(self) -> tuple[Difference, ...]:
        """Return how the kernel differs from the desired state now; changes nothing. Raises DatapathError."""
        return await self.query(Sync.difference)

    async def underlay(self) -> tuple[HostLink, ...]:
        """Return the links of the machine that are not ours. Raises DatapathError."""
        return await self.query(lambda sync: read_links(sync.route))

    async def wants(self, keys: Iterable[ObjectKey]) -> bool:
        """Whether any of these objects is desired: a notification about others is none of ours."""
        return await self.query(lambda sync: sync.wants(keys))

    async def disturbed(self) -> bool:
        """Whether somebody else changed nftables since our last commit. Raises DatapathError."""
        return await self.query(lambda sync: sync.ruleset.disturbed())

    async def query(self, question: Callable[[Sync], T]) -> T:
        """Ask the sync state something, on its thread; the question must change nothing."""
        future = _promise()
        self._put(lambda: self._queries.append((question, future)))
        return cast("T", await future)

    def _put(self, put: Callable[[], None]) -> None:
        with self._lock:
            if self._stopping:
                raise StoppedError("the daemon is stopping; try again when it is back")
            put()
            self._wake()

    def _wake(self) -> None:
        """Wake the thread; the caller holds the lock."""
        if self._asleep:
            self._asleep = False
            self._bell.ring()

    # All below runs on the thread.

    def _thread(self, ended: asyncio.Future[object]) -> None:
        assert self._loop is not None
        failure: BaseException | None = None
        try:
            with ExitStack() as stack:
                if self._namespace is not None:
                    stack.enter_context(entered(self._namespace))
                reaper = Reaper()
                reaper.start()
                stack.callback(reaper.stop)
                sync = Sync(stack.enter_context(Socket()), stack.enter_context(Nft()), reaper.wake)
                self.port = sync.route.port
                home = current_namespace()
                stack.callback(os.close, home)
                self._serve(sync, Kernel(sync, reaper.wake, home))
        except BaseException as error:  # noqa: BLE001 - it reaches the task that runs the writer
            failure = error
        with self._lock:
            self._stopping = True
        self._abandon()
        _tell(ended, failure=failure)

    def _serve(self, sync: Sync, kernel: Kernel) -> None:
        deadline = float("inf")
        while True:
            with self._lock:
                self._asleep = asleep = not self._has_work(sync)
                if self._stopping:
                    if asleep:
                        return
                    deadline = min(deadline, time.monotonic() + DRAIN_SECONDS)
                changes, self._changes = self._changes, {}
                job = self._jobs.popleft() if self._jobs else None
            if asleep:
                self._bell.wait(self._pace.wait())
                with self._lock:
                    self._asleep = False
                    changes, self._changes = self._changes, {}
            # Before any job: one that detaches must find what `adopt` was given.
            sync.change(changes)
            if job is not None:
                _run(job.future, job.work, kernel)
                kernel.settle()
                self._bell.tell()
                continue
            intake = self._intake
            more = intake is not None and intake.serve(kernel)
            kernel.settle()
            self._bell.tell()
            if more or asleep:
                continue
            with self._lock:
                query = self._queries.popleft() if self._queries else None
            if query is not None:
                _run(query[1], query[0], sync)
            elif time.monotonic() > deadline:
                return
            else:
                self._advance(sync)

    def _has_work(self, sync: Sync) -> bool:
        if self._jobs or self._queries or self._changes or self._resync or self._pace.due():
            return True
        # A reading that failed waits for its next try; only then is there anything to do.
        return not self._pace.pausing and (not sync.idle or bool(self._waiters))

    def _advance(self, sync: Sync) -> None:
        """Do one piece of bulk work."""
        with self._lock:
            sources, self._sources = self._sources, None
            resync, self._resync = self._resync or self._pace.due(), False
            sync.complete = self._adopted and self._complete
        try:
            if sources is not None:
                sync.change(readdressed(sync, sources))
            if resync:
                self._pace.begin()
                sync.read_again(prune=sync.complete)
            if not sync.idle:
                sync.step()
        except DatapathError as error:
            self._pace.reading_failed()
            if self._pace.hopeless:
                self._fail_waiters(error)
        self._bulk = sync.waiting
        if sync.idle and not self._pace.pausing:
            self._settle(sync)

    def _settle(self, sync: Sync) -> None:
        """Tell everybody who waits that all was done that can be done now."""
        failures = sync.failures
        self._pace.settled(failed=bool(failures))
        with self._lock:
            if self._changes or self._resync:
                return
        done = sync.take_round()
        now = time.monotonic()

        def tell(waiter: _Waiter) -> None:
            seconds = now - waiter.began
            outcome: Applied | Drift = Applied(done.steps, failures, seconds)
            if waiter.reason is not None:
                outcome = Drift(waiter.reason, tuple(done.drift), failures, seconds)
            _tell(waiter.future, outcome)

        if failures != self._reported and self._report is not None and self._loop is not None:
            self._reported = failures
            self._loop.call_soon_threadsafe(self._report, failures)
        self._settle_waiters(tell)

    def _settle_waiters(self, tell: Callable[[_Waiter], None]) -> None:
        with self._lock:
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            tell(waiter)

    def _fail_waiters(self, error: DatapathError) -> None:
        self._settle_waiters(lambda waiter: _tell(waiter.future, failure=error))

    def _abandon(self) -> None:
        """Tell everybody who still waits that nothing more will be done."""
        error = StoppedError("the daemon stopped before this was done")
        for future in [*(job.future for job in self._jobs), *(future for _, future in self._queries)]:
            _tell(future, failure=error)
        self._fail_waiters(error)


class _Pace:
    """When to try again: after refusals ever more rarely, soon after a reading that failed."""

    def __init__(self) -> None:
        self._seconds = RETRY_SECONDS
        self._at = float("inf")
        self._failures = 0
        self._paused = False

    @property
    def pausing(self) -> bool:
        """Whether a reading failed and its next try is not due."""
        return self._paused

    @property
    def hopeless(self) -> bool:
        """Whether so many readings failed that who waits should be told."""
        return self._failures >= READING_TRIES

    def due(self) -> bool:
        """Whether a reading should be begun now."""
        return time.monotonic() >= self._at

    def wait(self) -> float | None:
        """Return for how many seconds there is nothing to do; None when for ever."""
        return max(0.0, self._at - time.monotonic()) if self._at != float("inf") else None

    def begin(self) -> None:
        """Note that a reading begins."""
        self._at = float("inf")
        self._paused = False

    def reading_failed(self) -> None:
        """Note that a reading failed."""
        self._failures += 1
        self._paused = True
        self._at = time.monotonic() + READING_RETRY_SECONDS * self._failures

    def settled(self, *, failed: bool) -> None:
        """Note that all was done that could be."""
        self._failures = 0
        if not failed:
            self._seconds, self._at = RETRY_SECONDS, float("inf")
        elif self._at == float("inf"):
            self._at = time.monotonic() + self._seconds
            self._seconds = min(2 * self._seconds, RETRY_LIMIT_SECONDS)


def _run(future: asyncio.Future[object], function: Callable[[T], object], argument: T) -> None:
    try:
        result = function(argument)
    except BaseException as error:  # noqa: BLE001 - it belongs to the caller
        _tell(future, failure=error)
    else:
        _tell(future, result)


def _promise() -> asyncio.Future[object]:
    """Return a future of the running loop. What it stands for goes on when who awaits it is cancelled."""
    return asyncio.get_running_loop().create_future()


def _tell(
    future: asyncio.Future[object], result: object = None, *, failure: BaseException | None = None
) -> None:
    """Give a future its outcome, from the thread."""
    outcome = result if failure is None else failure
    future.get_loop().call_soon_threadsafe(_settle, future, outcome, failure is not None)


def _settle(future: asyncio.Future[object], outcome: object, failed: bool) -> None:
    if future.done():
        return
    if failed:
        future.set_exception(cast("BaseException", outcome))
    else:
        future.set_result(outcome)
