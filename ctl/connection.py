"""The way to the daemon: one gRPC call over its admin socket, and errors an operator understands.

grpc is imported by the first call only: asking the socket first is enough to say that the daemon is down.
"""

from __future__ import annotations

import os
import socket
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ctl.exits import FailedError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import grpc
    from google.protobuf.message import Message

SOCKET = "/run/weft/admin.sock"
TIMEOUT_SECONDS = 10.0
_SERVICE = "weft.admin.v1.Admin"
_CHANNEL_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", 64 << 20))

Answer = TypeVar("Answer", bound="Message")


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the daemon listens and how long to wait for its answer.

    Attributes:
        path: of the admin socket.
        timeout: seconds for one call, connecting included.
    """

    path: str = SOCKET
    timeout: float = TIMEOUT_SECONDS

    def call(self, method: str, request: Message, answer: type[Answer]) -> Answer:
        """Asks the daemon once.

        Raises:
            UnreachableError: nothing listens there, or it does not answer in time.
            FailedError: the daemon answered with an error.
        """
        with self._channel() as channel:
            import grpc

            ask = channel.unary_unary(
                f"/{_SERVICE}/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=answer.FromString,
            )
            try:
                reply: Answer = ask(request, timeout=self.timeout)
            except grpc.RpcError as error:
                raise self._explain(method, error.code().name, error.details() or "") from error
        return reply

    def stream(self, method: str, request: Message, answer: type[Answer]) -> Iterator[Answer]:
        """Asks the daemon once and yields answers for as long as it gives any; `timeout` is for connecting.

        Raises:
            UnreachableError: nothing listens there, or the daemon stopped.
            FailedError: the daemon answered with an error.
        """
        with self._channel() as channel:
            import grpc

            ask = channel.unary_stream(
                f"/{_SERVICE}/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=answer.FromString,
            )
            try:
                yield from ask(request)
            except grpc.RpcError as error:
                raise self._explain(method, error.code().name, error.details() or "") from error

    def _channel(self) -> grpc.Channel:
        self._probe()
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
        import grpc

        return grpc.insecure_channel(f"unix:{os.path.abspath(self.path)}", options=_CHANNEL_OPTIONS)

    def _probe(self) -> None:
        """Connects once and hangs up, so that the usual reasons are told apart without gRPC."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(self.timeout)
                probe.connect(self.path)
        except OSError as error:
            raise UnreachableError(f"weftd is not reachable at {self.path}: {self._reason(error)}") from error

    def _reason(self, error: OSError) -> str:
        if isinstance(error, PermissionError):
            return "permission denied; only root may ask, try again with sudo"
        if isinstance(error, FileNotFoundError):
            return (
                "there is no such socket; is the daemon running on this node? "
                "(kubectl -n kube-system get pods -o wide, or --socket when it listens elsewhere)"
            )
        if isinstance(error, ConnectionRefusedError):
            if not stat.S_ISSOCK(os.stat(self.path).st_mode):
                return "this is no socket; give the path of the admin socket"
            return "the socket is left over from a daemon that is gone; is it restarting? look at its log"
        if isinstance(error, (TimeoutError, BlockingIOError)):
            return f"it did not accept a connection within {self.timeout:g} s; it may hang, look at its log"
        return error.strerror or str(error)

    def _explain(self, method: str, code: str, details: str) -> UnreachableError | FailedError:
        if code == "DEADLINE_EXCEEDED":
            return UnreachableError(
                f"weftd at {self.path} did not answer within {self.timeout:g} s; "
                "it may be busy or hang: look at its log, or allow more time with --timeout"
            )
        if code == "UNAVAILABLE":
            return UnreachableError(
                f"weftd is not reachable at {self.path}: it hung up ({details}); is it restarting?"
            )
        if code == "UNIMPLEMENTED":
            return FailedError(
                f"weftd does not know {method}: it is older than this weftctl; upgrade the node's daemon"
            )
        if code in {"FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"}:
            return FailedError(details)
        return FailedError(f"weftd could not answer {method}: {details or code}")
