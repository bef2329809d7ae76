"""The gRPC server on the socket that the shim calls: owns the socket file, not what requests mean.

The socket belongs to root alone: mode 0600 in a directory of mode 0700 is the access control, as gRPC can't
tell who calls. A socket file of a daemon before us is replaced; that it is not a living one's is what the
daemon's lock is for. A socket that somebody removes is made anew.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from weft_rpc.cni_pb2 import DESCRIPTOR, ExecuteRequest, ExecuteResponse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = structlog.get_logger()

POLL_SECONDS = 1.0
_MESSAGE_LIMIT = 2 << 20
_OPTIONS = (
    ("grpc.max_receive_message_length", _MESSAGE_LIMIT),
    ("grpc.max_send_message_length", _MESSAGE_LIMIT),
    # One shim is one connection with one call: nothing to keep alive, much to accept.
    ("grpc.so_reuseport", 0),
)


class CniSocketError(Exception):
    """The socket can't be served; the message says why."""


class CniServer:
    """Serves `weft.cni.v1.Cni` by one function."""

    def __init__(self, execute: Callable[[ExecuteRequest], Awaitable[ExecuteResponse]], path: str) -> None:
        self._execute = execute
        self._path = path
        self._server: grpc.aio.Server | None = None
        self._identity: tuple[int, int] | None = None

    async def start(self) -> None:
        """Begin to serve.

        Raises:
            CniSocketError: the socket can't be made.
        """
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers((self._handler(),))
        try:
            directory = os.path.dirname(self._path)
            os.makedirs(directory, mode=0o700, exist_ok=True)
            os.chmod(directory, 0o700)
            with suppress(FileNotFoundError):
                os.unlink(self._path)
            server.add_insecure_port(f"unix:{self._path}")
            os.chmod(self._path, 0o600)
            self._identity = self._socket_identity()
        except (OSError, RuntimeError) as error:
            raise CniSocketError(
                f"{self._path} can't be served: {error}; its directory must be writable and its path short"
            ) from error
        await server.start()
        self._server = server

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
                # It would remove the socket file by its name when it stops, which is the new one's by now.
                await self._retire(old)

    async def stop(self, grace: float) -> None:
        """Take no more requests, finish those under way within `grace` seconds, remove the socket."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(grace)
        with suppress(FileNotFoundError):
            os.unlink(self._path)

    async def _retire(self, server: grpc.aio.Server) -> None:
        spare = f"{self._path}.kept"
        with suppress(FileNotFoundError):
            os.unlink(spare)
        os.link(self._path, spare)
        try:
            await server.stop(grace=5)
        finally:
            os.replace(spare, self._path)

    def _handler(self) -> Any:
        async def execute(
            request: ExecuteRequest, _context: grpc.aio.ServicerContext[Any, Any]
        ) -> ExecuteResponse:
            return await self._execute(request)

        method = grpc.unary_unary_rpc_method_handler(
            execute,
            request_deserializer=ExecuteRequest.FromString,
            response_serializer=ExecuteResponse.SerializeToString,
        )
        name = DESCRIPTOR.services_by_name["Cni"].full_name
        return grpc.method_handlers_generic_handler(name, {"Execute": method})

    def _socket_identity(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_dev, status.st_ino
