"""The gRPC server on the socket that the shim calls: owns socket and calls, not what requests mean.

The socket belongs to root alone: mode 0600 in a directory of mode 0700 is the access control. A socket file
of a daemon before us is replaced; that it is not a living one's is what the daemon's lock is for. A socket
that somebody removes is made anew.

A call whose client goes away, or whose deadline passes, is cancelled.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import structlog
from google.protobuf.message import DecodeError

from daemon.cni import unary
from daemon.cni.http2 import Connection, Request
from daemon.cni.unary import RefusedError, Status
from weft_rpc.cni_pb2 import DESCRIPTOR, ExecuteRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from daemon.cni.unary import Answer
    from weft_rpc.cni_pb2 import ExecuteResponse

log = structlog.get_logger()

POLL_SECONDS = 1.0
_MESSAGE_LIMIT = 2 << 20
_BACKLOG = 4096
_PATH = f"/{DESCRIPTOR.services_by_name['Cni'].full_name}/Execute".encode()


class CniSocketError(Exception):
    """The socket can't be served; the message says why."""


class CniServer:
    """Serves `weft.cni.v1.Cni` by one function."""

    def __init__(self, execute: Callable[[ExecuteRequest], Awaitable[ExecuteResponse]], path: str) -> None:
        self._execute = execute
        self._path = path
        self._server: asyncio.AbstractServer | None = None
        self._identity: tuple[int, int] | None = None
        self._clients: set[_Client] = set()

    async def start(self) -> None:
        """Begin to serve.

        Raises:
            CniSocketError: the socket can't be made.
        """
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            directory = os.path.dirname(self._path)
            os.makedirs(directory, mode=0o700, exist_ok=True)
            os.chmod(directory, 0o700)
            with suppress(FileNotFoundError):
                os.unlink(self._path)
            listening.bind(self._path)
            os.chmod(self._path, 0o600)
            self._identity = self._socket_identity()
            self._server = await asyncio.get_running_loop().create_unix_server(
                lambda: _Client(self._execute, self._clients), sock=listening, backlog=_BACKLOG
            )
        except OSError as error:
            listening.close()
            raise CniSocketError(
                f"{self._path} can't be served: {error}; its directory must be writable and its path short"
            ) from error

    async def run(self) -> None:
        """Watch over the socket for ever: one that somebody removed is made anew."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if self._socket_identity() == self._identity:
                continue
            log.warning("the socket was removed and is made anew", path=self._path)
            old = self._server
            await self.start()
            if old is not None:
                old.close()

    async def stop(self, grace: float) -> None:
        """Take no more requests, finish those under way within `grace` seconds, remove the socket."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for client in self._clients:
            client.leave()
        calls = [call for client in self._clients for call in client.calls]
        if calls:
            _, late = await asyncio.wait(calls, timeout=grace)
            for call in late:
                call.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for client in list(self._clients):
            client.close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)

    def _socket_identity(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_dev, status.st_ino


class _Client(asyncio.Protocol):
    """One connection and its calls. `clients` is the set that it is in while it is open."""

    def __init__(
        self, execute: Callable[[ExecuteRequest], Awaitable[ExecuteResponse]], clients: set[_Client]
    ) -> None:
        self._execute = execute
        self._clients = clients
        self._connection = Connection(_MESSAGE_LIMIT)
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport

    @property
    def calls(self) -> list[asyncio.Task[None]]:
        """Those under way."""
        return list(self._calls.values())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._clients.add(self)

    def data_received(self, data: bytes) -> None:
        for event in self._connection.receive(data):
            if isinstance(event, Request):
                self._begin(event)
            elif event.stream in self._calls:
                self._calls.pop(event.stream).cancel()
        self._flush()
        if self._connection.fault:
            log.warning("a client of the CNI socket was cut off", reason=self._connection.fault)
            self._transport.close()

    def connection_lost(self, _error: Exception | None) -> None:
        self._clients.discard(self)
        for call in self._calls.values():
            call.cancel()

    def pause_writing(self) -> None:
        # Who does not read its answers is not listened to.
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()

    def leave(self) -> None:
        """Take no more calls."""
        self._connection.leave()
        self._flush()

    def close(self) -> None:
        """Close the connection after what is still to be sent."""
        self._transport.close()

    def _begin(self, request: Request) -> None:
        try:
            call = unary.read(request, _PATH)
            message = ExecuteRequest.FromString(call.message)
        except DecodeError:
            self._answer(
                request.stream, unary.failure(RefusedError(Status.INTERNAL, "the message can't be decoded"))
            )
        except RefusedError as error:
            self._answer(request.stream, unary.failure(error))
        else:
            self._calls[request.stream] = self._loop.create_task(
                self._serve(request.stream, message, call.timeout)
            )

    async def _serve(self, stream: int, message: ExecuteRequest, timeout: float | None) -> None:  # noqa: ASYNC109
        expiry = None if timeout is None else self._loop.call_later(timeout, self._expire, stream)
        try:
            response = await self._execute(message)
            answer = unary.answer(response.SerializeToString())
        except Exception as error:
            log.exception("a call failed inside")
            answer = unary.failure(RefusedError(Status.UNKNOWN, f"{type(error).__name__}: {error}"))
        finally:
            self._calls.pop(stream, None)
            if expiry is not None:
                expiry.cancel()
        self._answer(stream, answer)
        self._flush()

    def _expire(self, stream: int) -> None:
        self._answer(stream, unary.failure(RefusedError(Status.DEADLINE_EXCEEDED, "the deadline has passed")))
        self._flush()
        self._calls.pop(stream).cancel()

    def _answer(self, stream: int, answer: Answer) -> None:
        self._connection.respond(stream, *answer)

    def _flush(self) -> None:
        data = self._connection.take()
        if data and not self._transport.is_closing():
            self._transport.write(data)
