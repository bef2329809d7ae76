"""Answers weftctl over weft.admin.v1. Reads what the agent handed in; changes nothing, never blocks the loop.

The socket belongs to root alone (mode 0600 in a directory of mode 0700): gRPC can't tell who calls.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from daemon.admin import answers, policy_answers, service_answers
from daemon.admin.explanation import Question, QuestionError
from datapath.errors import DatapathError, NamespaceError
from datapath.netns import open_namespace
from ipam import messages
from ipam.audit import audit
from ipam.errors import IpamError
from weft_rpc import admin_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from google.protobuf.message import Message

    from daemon.admin.sources import Sources
    from ipam.audit import Fault

log = structlog.get_logger()
_SERVICE = admin_pb2.DESCRIPTOR.services_by_name["Admin"]
_SECOND_LOOK = 0.25
"""Seconds between two looks for leaks: an ADD or DEL under way is through by then."""
_CONCURRENT = 8
"""Calls at once; weftctl is for people, and whoever loops over it must not slow down pods."""


class AdminSocketError(Exception):
    """The admin socket can't be served; the message says why."""


class AdminService:
    """The answers to weft.admin.v1.Admin, one method each."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._started = time.monotonic()

    async def status(self) -> admin_pb2.StatusResponse:
        """Says whether this node's network is well."""
        sources = self._sources
        answer = answers.status(
            sources.health(),
            sources.local(),
            sources.findings.rows(),
            uptime=time.monotonic() - self._started,
        )
        answer.version = sources.version
        answer.node_name = sources.node_name
        answer.overlay = sources.overlay
        answer.attachments = len(sources.leases.records())
        answer.nodes = len(sources.nodes)
        return answer

    async def attachments(self) -> admin_pb2.ListAttachmentsResponse:
        """Lists the pods' interfaces on this node."""
        return messages.attachments(self._sources.leases.records(), now=boottime())

    async def pools(self) -> admin_pb2.ShowIpamResponse:
        """Lists the address pools."""
        sources = self._sources
        return messages.usage(sources.leases.usage(answers.pools(sources.local())))

    async def leaks(self) -> admin_pb2.CheckIpamResponse:
        """Looks for leases without a pod and links without a lease.

        Raises:
            DatapathError: the kernel could not be read.
        """
        faults = await self._audit()
        if faults:
            # Pods come and go between reading links and reading records: only what stays is wrong.
            await asyncio.sleep(_SECOND_LOOK)
            again = {fault.host_link for fault in await self._audit()}
            faults = tuple(fault for fault in faults if fault.host_link in again)
        return messages.leaks(faults)

    async def _audit(self) -> tuple[Fault, ...]:
        links = await self._sources.links()
        records = self._sources.leases.records()
        return await asyncio.to_thread(audit, records, links=links, lives=is_namespace, now=boottime())

    async def nodes(self) -> admin_pb2.ListNodesResponse:
        """Lists all nodes and how each is reached."""
        values = sorted(self._sources.nodes.items())
        path = self._sources.path
        # Thousands of nodes take a while to describe, and the loop has pods to serve.
        return await asyncio.to_thread(
            lambda: admin_pb2.ListNodesResponse(
                nodes=[answers.node(value, path(value)) for _, value in values]
            )
        )

    async def difference(self) -> admin_pb2.DiffResponse:
        """Compares the kernel with the desired state.

        Raises:
            DatapathError: the kernel could not be read.
        """
        return answers.differences(await self._sources.difference(), age=0.0)

    async def services(self, name: str) -> admin_pb2.ListServicesResponse:
        """Lists Services as this node serves them, or one of them."""
        views = self._sources.services(name)
        return await asyncio.to_thread(
            lambda: admin_pb2.ListServicesResponse(services=[service_answers.service(view) for view in views])
        )

    async def policies(self) -> admin_pb2.ListPoliciesResponse:
        """Lists the policies in force on this node, and the pods that they isolate.

        Raises:
            DatapathError: the kernel's counters could not be read.
        """
        source = self._sources.policies
        await source.accounts.refresh()
        return policy_answers.listing(source)

    async def explain(self, request: admin_pb2.ExplainPolicyRequest) -> admin_pb2.ExplainPolicyResponse:
        """Says what policies make of a flow, and whether the kernel has it so.

        Raises:
            QuestionError: the question can't be answered here.
            DatapathError: the kernel could not be read.
        """
        sources = self._sources
        question = Question(sources.policies, sources.nodes, sources.node_name, request)
        return await question.answer()

    async def monitor(self) -> AsyncIterator[admin_pb2.Denial | None]:
        """Tells of denied packets as they come, for as long as the caller listens; first None, when it does.

        Raises:
            QuestionError: too many listen already.
        """
        denials = self._sources.policies.denials
        watch = denials.watch()
        if watch is None:
            raise QuestionError("too many run weftctl monitor on this node already: end one of them")
        try:
            yield None
            while True:
                yield policy_answers.denial(*await watch.next())
        finally:
            denials.leave(watch)


def streams(service: AdminService) -> dict[str, Callable[[Any], AsyncIterator[Message | None]]]:
    """Maps each method of the contract with many answers to what answers its request.

    None among the answers says that no later one will be missed.
    """
    return {"Monitor": lambda _: service.monitor()}


def methods(service: AdminService) -> dict[str, Callable[[Any], Awaitable[Message]]]:
    """Maps each method of the contract with one answer to what answers its request."""
    return {
        "Status": lambda _: service.status(),
        "ListAttachments": lambda _: service.attachments(),
        "ShowIpam": lambda _: service.pools(),
        "CheckIpam": lambda _: service.leaks(),
        "ListNodes": lambda _: service.nodes(),
        "Diff": lambda _: service.difference(),
        "ListServices": lambda request: service.services(request.name),
        "ListPolicies": lambda _: service.policies(),
        "ExplainPolicy": lambda request: service.explain(request),
    }


async def serve(path: str, service: AdminService) -> grpc.aio.Server:
    """Starts serving on a unix socket; the caller stops the server.

    A socket that is left over is replaced: the daemon's lock tells that its owner is gone.

    Raises:
        AdminSocketError: the socket can't be made.
    """
    server = grpc.aio.server(maximum_concurrent_rpcs=_CONCURRENT)
    table = {}
    for method in _SERVICE.methods:
        coding = {
            "request_deserializer": getattr(admin_pb2, method.input_type.name).FromString,
            "response_serializer": _serialize,
        }
        if method.server_streaming:
            behaviour = _stream(streams(service)[method.name])
            table[method.name] = grpc.unary_stream_rpc_method_handler(behaviour, **coding)
        else:
            behaviour = _unary(method.name, methods(service)[method.name])
            table[method.name] = grpc.unary_unary_rpc_method_handler(behaviour, **coding)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE.full_name, table),))
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with suppress(FileNotFoundError):
            os.unlink(path)
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        os.chmod(path, 0o600)
    except (OSError, RuntimeError) as error:
        raise AdminSocketError(
            f"weftctl can't be served at {path}: {error}; the directory must exist and be writable"
        ) from error
    return server


def is_namespace(path: str) -> bool:
    """Whether there is a network namespace at a path."""
    try:
        os.close(open_namespace(path))
    except NamespaceError:
        return False
    return True


def boottime() -> float:
    """Returns seconds of CLOCK_BOOTTIME."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _unary(method: str, answer: Callable[[Any], Awaitable[Message]]) -> Any:
    """Makes a gRPC behaviour; a failure to read is INTERNAL with a message for the operator."""

    async def behaviour(request: Message, context: grpc.aio.ServicerContext[Message, Message]) -> Message:
        try:
            return await answer(request)
        except QuestionError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except (DatapathError, IpamError) as error:
            log.warning("weftctl could not be answered", method=method, error=str(error))
            await context.abort(grpc.StatusCode.INTERNAL, str(error))

    return behaviour


def _stream(answer: Callable[[Any], AsyncIterator[Message | None]]) -> Any:
    """Makes a gRPC behaviour with many answers; a slow reader holds up nobody but itself."""

    async def behaviour(request: Message, context: grpc.aio.ServicerContext[Message, Message]) -> None:
        try:
            async with aclosing(answer(request)) as answers:  # type: ignore[type-var]
                async for each in answers:
                    if each is None:
                        # The caller may know before the first answer, which may take long to come.
                        await context.send_initial_metadata(())
                    else:
                        await context.write(each)
        except QuestionError as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))

    return behaviour
