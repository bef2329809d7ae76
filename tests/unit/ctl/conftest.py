"""Fixtures for weftctl: a daemon that answers what a test gives it, and a way to run the command."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from click.testing import CliRunner

from ctl.__main__ import cli
from weft_rpc import admin_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result
    from google.protobuf.message import Message

METHODS: dict[str, type[Message]] = {
    "Status": admin_pb2.StatusRequest,
    "ListAttachments": admin_pb2.ListAttachmentsRequest,
    "ShowIpam": admin_pb2.ShowIpamRequest,
    "CheckIpam": admin_pb2.CheckIpamRequest,
    "ListNodes": admin_pb2.ListNodesRequest,
    "Diff": admin_pb2.DiffRequest,
    "ListServices": admin_pb2.ListServicesRequest,
    "ListPolicies": admin_pb2.ListPoliciesRequest,
    "ExplainPolicy": admin_pb2.ExplainPolicyRequest,
}


class FakeDaemon:
    """Serves weft.admin.v1 on a socket; `answers` maps a method to its answer or to the error it raises."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.answers: dict[str, Message | Exception] = {}
        self.asked: list[str] = []
        self.refusals: dict[str, tuple[grpc.StatusCode, str]] = {}
        self.requests: list[Message] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                self._answer(name),
                request_deserializer=request.FromString,
                response_serializer=lambda answer: answer.SerializeToString(),
            )
            for name, request in METHODS.items()
        }
        self.denials: list[Message] = []
        methods["Monitor"] = grpc.unary_stream_rpc_method_handler(
            lambda _request, _context: iter(self.denials),
            request_deserializer=admin_pb2.MonitorRequest.FromString,
            response_serializer=lambda answer: answer.SerializeToString(),
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("weft.admin.v1.Admin", methods),)
        )
        self._server.add_insecure_port(f"unix:{path}")
        self._server.start()

    def _answer(self, name: str) -> Any:
        def answer(request: Message, context: grpc.ServicerContext) -> Message:
            self.asked.append(name)
            self.requests.append(request)
            if name in self.refusals:
                context.abort(*self.refusals[name])
            found = self.answers.get(name)
            if found is None:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
            if isinstance(found, Exception):
                context.abort(grpc.StatusCode.INTERNAL, str(found))
            assert found is not None
            return found

        return answer

    def stop(self) -> None:
        """Stops serving; the socket goes away."""
        self._server.stop(None).wait(5)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    fake = FakeDaemon(str(tmp_path / "admin.sock"))
    yield fake
    fake.stop()


@pytest.fixture
def weftctl(tmp_path: Path) -> Callable[..., Result]:
    """Runs weftctl against the socket of the fake daemon, whether that runs or not."""

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["--socket", str(tmp_path / "admin.sock"), *arguments])

    return run
