"""The gRPC server on the socket that the shim calls: owns socket, connections and calls, not what they mean.

It is served on the writer's thread, where the calls are worked on: from the socket to the kernel and back
there is no change of threads. While that thread is away for long, be it that the kernel does not answer, the
event loop looks after the socket: what needs no kernel is answered, and who waits in vain is told so.

The socket belongs to root alone: mode 0600 in a directory of mode 0700 is the access control. A socket file
of a daemon before us is replaced; that it is not a living one's is what the daemon's lock is for. A socket
that somebody removes is made anew.

A call whose client goes away, or whose deadline passes, is dropped while it waits; one that has begun is
finished as one piece.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import structlog
from google.protobuf.message import DecodeError

from daemon.cni import unary
from daemon.cni.connections import Client, Listening
from daemon.cni.http2 import Request
from daemon.cni.unary import RefusedError, Status
from weft_rpc.cni_pb2 import DESCRIPTOR, ExecuteRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from daemon.cni.attachments import Kernel
    from daemon.cni.http2 import Reset
    from daemon.cni.unary import Answer
    from weft_rpc.cni_pb2 import ExecuteResponse

log = structlog.get_logger()

POLL_SECONDS = 0.25
"""How often the event loop sees whether the socket is there, and whether anybody looks after it."""
GROUP = 8
"""Calls that are worked on in a row: bulk work and the end of clients are looked at in between."""
_LOOKS = 256
"""How often in a row the socket is looked at: each time it gives one connection."""
_BACKLOG = 4096
_PATH = f"/{DESCRIPTOR.services_by_name['Cni'].full_name}/Execute".encode()


class CniSocketError(Exception):
    """The socket can't be served; the message says why."""


class Asked(NamedTuple):
    """A request, and when it came (time.perf_counter())."""

    request: ExecuteRequest
    arrived: float


class Service(Protocol):
    """What answers (daemon.cni.service.CniService)."""

    def at_once(self, request: ExecuteRequest) -> ExecuteResponse | None:
        """Answer what needs no kernel, on any thread; None for anything else."""

    def execute(self, kernel: Kernel, asked: Sequence[Asked]) -> Iterator[Sequence[ExecuteResponse]]:
        """Answer requests in order, some at a time; what is left to be done follows each time."""


class Writer(Protocol):
    """Whose thread serves (datapath.writer.Writer)."""

    def attend(self, intake: CniServer | None) -> None:
        """Serve this from now on."""

    def wake(self) -> None:
        """Have it looked at now."""


@dataclass(slots=True, eq=False)
class _Call:
    """A call that is not answered; `deadline` is a time.perf_counter() too."""

    client: Client
    stream: int
    asked: Asked
    deadline: float
    dropped: bool = False


class CniServer:
    """Serves `weft.cni.v1.Cni`.

    Args:
        service: answers.
        path: of the socket.
        writer: its thread serves.
        limit: calls that are taken in at a time; more wait at the socket.
    """

    def __init__(self, service: Service, path: str, *, writer: Writer, limit: int = 1000) -> None:
        self._service = service
        self._path = path
        self._writer = writer
        self._limit = limit
        # All below is looked at and changed with the lock held; nobody waits for anything meanwhile.
        self._lock = threading.Lock()
        self._poll = select.epoll()
        self._listening: Listening | None = None
        self._accepting = False
        self._identity: tuple[int, int] | None = None
        self._clients: dict[int, Client] = {}
        self._waiting: deque[_Call] = deque()
        self._under_way: list[_Call] = []
        self._looked = time.monotonic()

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn."""
        return len(self._waiting)

    async def start(self) -> None:
        """Begin to serve.

        Raises:
            CniSocketError: the socket can't be made.
        """
        self._listen()
        self._writer.attend(self)

    async def run(self) -> None:
        """Watch over the socket for ever: one that somebody removed is made anew."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if self._socket_identity() != self._identity:
                log.warning("the socket was removed and is made anew", path=self._path)
                self._listen()
            with self._lock:
                self._accept_again()
                if time.monotonic() - self._looked > POLL_SECONDS:
                    self._look()
                self._drop_late((*self._waiting, *self._under_way))
                for client in list(self._clients.values()):
                    self._flush(client)
                waiting = bool(self._waiting)
            if waiting:
                self._writer.wake()

    async def stop(self, grace: float) -> None:
        """Take no more calls, finish those under way within `grace` seconds, remove the socket."""
        with self._lock:
            if self._listening is not None:
                self._listening.close()
                self._listening = None
            for client in list(self._clients.values()):
                client.leave()
                self._flush(client)
        end = time.monotonic() + grace
        while (self._waiting or self._under_way) and time.monotonic() < end:  # noqa: ASYNC110 - a thread ends it
            await asyncio.sleep(0.01)
        with self._lock:
            for client in list(self._clients.values()):
                self._close(client)
            self._waiting.clear()
        self._writer.attend(None)
        with suppress(FileNotFoundError):
            os.unlink(self._path)

    def fileno(self) -> int:
        """Return a descriptor that is readable while there is something to serve."""
        return self._poll.fileno()

    def serve(self, kernel: Kernel) -> bool:
        """Take in what came and work on some of the calls, on the writer's thread.

        Returns:
            Whether there may be more.
        """
        with self._lock:
            self._looked = time.monotonic()
            self._accept_again()
            self._look()
            group = self._under_way = self._take()
        if not group:
            return False
        try:
            self._work_on(kernel, group)
        except Exception as error:
            log.exception("a call failed inside")
            defect = RefusedError(Status.UNKNOWN, f"{type(error).__name__}: {error}")
            self._answer(group, unary.failure(defect))
        with self._lock:
            self._under_way = []
        return True

    def _work_on(self, kernel: Kernel, group: Sequence[_Call]) -> None:
        left = iter(group)
        for responses in self._service.execute(kernel, [call.asked for call in group]):
            with self._lock:
                answered = set()
                for response, call in zip(responses, left, strict=False):
                    if self._settle(call, unary.answer(response.SerializeToString())):
                        answered.add(call.client)
                for client in answered:
                    self._flush(client)
                alone = len(group) == 1 and not self._waiting
            if alone:
                # The kernel may have put the shim, which it woke, behind this thread, which has more to do.
                os.sched_yield()

    def _answer(self, calls: Iterable[_Call], answer: Answer) -> None:
        with self._lock:
            for call in calls:
                if self._settle(call, answer):
                    self._flush(call.client)

    # All below is called with the lock held.

    def _settle(self, call: _Call, answer: Answer) -> bool:
        """Answer a call unless nobody waits for it any more; returns whether that was so."""
        if call.dropped:
            return False
        call.dropped = True
        call.client.connection.respond(call.stream, *answer)
        return True

    def _take(self) -> list[_Call]:
        """Return the calls that are to be worked on next."""
        group: list[_Call] = []
        now = time.perf_counter()
        while self._waiting and len(group) < GROUP:
            call = self._waiting.popleft()
            if call.deadline < now:
                self._drop_late((call,))
            elif not call.dropped:
                group.append(call)
        return group

    def _drop_late(self, calls: Iterable[_Call]) -> None:
        """Tell who waits for too long; what has begun is finished nevertheless."""
        now = time.perf_counter()
        late = unary.failure(RefusedError(Status.DEADLINE_EXCEEDED, "the deadline has passed"))
        for call in calls:
            if call.deadline < now and self._settle(call, late):
                self._flush(call.client)

    def _look(self) -> None:
        """Take in what came; one who sends without end holds nobody up."""
        for _ in range(_LOOKS):
            events = self._poll.poll(0)
            if not events:
                return
            for descriptor, what in events:
                client = self._clients.get(descriptor)
                if client is not None:
                    self._serve(client, what)
                elif self._listening is not None:
                    self._accept(self._listening)

    def _accept(self, listening: Listening) -> None:
        try:
            opened, _ = listening.accept()
        except BlockingIOError:
            return
        except OSError as error:
            log.warning("no connection of a shim can be accepted for a moment", error=error.strerror)
            self._accept_no_more(listening)
            return
        client = Client(opened)
        self._clients[client.descriptor] = client
        self._poll.register(client.descriptor, select.EPOLLIN)
        self._serve(client, select.EPOLLIN)
        if len(self._waiting) >= self._limit:
            self._accept_no_more(listening)

    def _accept_no_more(self, listening: Listening) -> None:
        self._poll.modify(listening.fileno(), 0)
        self._accepting = False

    def _accept_again(self) -> None:
        if self._listening is not None and not self._accepting and len(self._waiting) < self._limit:
            self._poll.modify(self._listening.fileno(), select.EPOLLIN)
            self._accepting = True

    def _serve(self, client: Client, events: int) -> None:
        waiting = len(self._waiting)
        try:
            if events & ~select.EPOLLOUT:
                for event in client.receive():
                    if isinstance(event, Request):
                        self._begin(client, event)
                    else:
                        self._reset(client, event)
        except Exception:
            # A defect ends one connection, not the writer's thread.
            log.exception("a client of the CNI socket can't be served")
            self._close(client)
            return
        # What belongs to the connection goes with the answer, which comes soon: the shim is woken once.
        # A client that wants to see it before it goes on gets it from `run`.
        soon = len(self._waiting) > waiting or client.connection.patient
        if not soon or client.gone or client.connection.fault:
            self._flush(client)

    def _begin(self, client: Client, request: Request) -> None:
        arrived = time.perf_counter()
        try:
            call = unary.read(request, _PATH)
            message = ExecuteRequest.FromString(call.message)
        except DecodeError:
            refused = RefusedError(Status.INTERNAL, "the message can't be decoded")
            client.connection.respond(request.stream, *unary.failure(refused))
            return
        except RefusedError as error:
            client.connection.respond(request.stream, *unary.failure(error))
            return
        response = self._service.at_once(message)
        if response is not None:
            client.connection.respond(request.stream, *unary.answer(response.SerializeToString()))
            return
        deadline = float("inf") if call.timeout is None else request.began + call.timeout
        self._waiting.append(_Call(client, request.stream, Asked(message, arrived), deadline))

    def _reset(self, client: Client, event: Reset) -> None:
        for call in (*self._waiting, *self._under_way):
            if call.client is client and call.stream == event.stream:
                call.dropped = True

    def _flush(self, client: Client) -> None:
        """Send what a client can take; a client that is gone, or that was cut off, is closed."""
        blocked = client.blocked
        if client.flush():
            self._close(client)
        elif client.blocked is not blocked:
            # Who does not read its answers is not listened to.
            self._poll.modify(client.descriptor, select.EPOLLOUT if client.blocked else select.EPOLLIN)

    def _close(self, client: Client) -> None:
        if self._clients.pop(client.descriptor, None) is None:
            return
        for call in (*self._waiting, *self._under_way):
            if call.client is client:
                call.dropped = True
        client.close()

    def _listen(self) -> None:
        listening = Listening(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listening.setblocking(False)
        try:
            directory = os.path.dirname(self._path)
            os.makedirs(directory, mode=0o700, exist_ok=True)
            os.chmod(directory, 0o700)
            with suppress(FileNotFoundError):
                os.unlink(self._path)
            listening.bind(self._path)
            os.chmod(self._path, 0o600)
            listening.listen(_BACKLOG)
        except OSError as error:
            listening.close()
            raise CniSocketError(
                f"{self._path} can't be served: {error}; its directory must be writable and its path short"
            ) from error
        with self._lock:
            if self._listening is not None:
                self._listening.close()
            self._listening, self._identity = listening, self._socket_identity()
            self._poll.register(listening.fileno(), select.EPOLLIN)
            self._accepting = True

    def _socket_identity(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_dev, status.st_ino
