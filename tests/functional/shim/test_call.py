"""The shim against a real grpc.aio server: what arrives, what is printed, how faults are named."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.functional.shim.program import ENVIRONMENT, Finished
from weft_rpc import cni_pb2, cni_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.functional.shim.program import Shim

Context = grpc.aio.ServicerContext[cni_pb2.ExecuteRequest, cni_pb2.ExecuteResponse]
Answer = Callable[[cni_pb2.ExecuteRequest, Context], Awaitable[cni_pb2.ExecuteResponse]]


class Recorder(cni_pb2_grpc.CniServicer):
    """Keeps the requests and answers as it was told."""

    def __init__(self, answer: Answer) -> None:
        self.requests: list[cni_pb2.ExecuteRequest] = []
        self.seconds_allowed: list[float] = []
        self.answer = answer

    async def Execute(  # noqa: N802 - the name in the contract
        self, request: cni_pb2.ExecuteRequest, context: Context
    ) -> cni_pb2.ExecuteResponse:
        self.requests.append(request)
        self.seconds_allowed.append(context.time_remaining())
        return await self.answer(request, context)


def saying(output: bytes = b"", exit_code: int = 0) -> Answer:
    async def answer(_: cni_pb2.ExecuteRequest, __: Context) -> cni_pb2.ExecuteResponse:
        return cni_pb2.ExecuteResponse(output=output, exit_code=exit_code)

    return answer


def refusing(code: grpc.StatusCode, text: str) -> Answer:
    async def answer(_: cni_pb2.ExecuteRequest, context: Context) -> cni_pb2.ExecuteResponse:
        await context.abort(code, text)
        raise AssertionError

    return answer


@contextlib.asynccontextmanager
async def serving(path: Path, answer: Answer) -> AsyncIterator[Recorder]:
    recorder = Recorder(answer)
    server = grpc.aio.server()
    cni_pb2_grpc.add_CniServicer_to_server(recorder, server)  # type: ignore[no-untyped-call]
    path.parent.mkdir(exist_ok=True)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        yield recorder
    finally:
        await server.stop(None)


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "GC", "STATUS", "FUTURE"])
async def test_environment_and_input_arrive_untouched(shim: Shim, command: str) -> None:
    config = b'{"cniVersion":"1.1.0",\n "name":"weft", "odd":"\xff\0"}'
    async with serving(shim.socket, saying(b'{"ok":true}\n')) as server:
        done = await shim.execute(command, config)
    assert done.exit_code == 0
    assert done.output == b'{"ok":true}\n'
    assert done.messages == ""
    assert server.requests == [
        cni_pb2.ExecuteRequest(
            command=command,
            container_id=ENVIRONMENT["CNI_CONTAINERID"],
            netns=ENVIRONMENT["CNI_NETNS"],
            ifname=ENVIRONMENT["CNI_IFNAME"],
            args=ENVIRONMENT["CNI_ARGS"],
            path=ENVIRONMENT["CNI_PATH"],
            config=config,
        )
    ]


async def test_missing_variables_arrive_empty(shim: Shim) -> None:
    variables = dict.fromkeys(ENVIRONMENT)
    async with serving(shim.socket, saying()) as server:
        done = await shim.execute("DEL", b"", **variables)
    assert (done.exit_code, done.output) == (0, b"")
    assert server.requests == [cni_pb2.ExecuteRequest(command="DEL")]


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=300)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    variables=st.fixed_dictionaries(dict.fromkeys(ENVIRONMENT, texts)),
    config=st.binary(max_size=70000),
    output=st.binary(min_size=1, max_size=70000),
    exit_code=st.integers(0, 255),
)
async def test_encoding_agrees_with_protobuf(
    sanitized: Shim, variables: dict[str, str], config: bytes, output: bytes, exit_code: int
) -> None:
    async with serving(sanitized.socket, saying(output, exit_code)) as server:
        done = await sanitized.execute("ADD", config, **variables)
    assert (done.exit_code, done.output) == (exit_code, output), done.messages
    (request,) = server.requests
    assert variables == {
        "CNI_CONTAINERID": request.container_id,
        "CNI_NETNS": request.netns,
        "CNI_IFNAME": request.ifname,
        "CNI_ARGS": request.args,
        "CNI_PATH": request.path,
    }
    assert request.config == config


async def test_the_largest_configuration_passes_and_a_larger_one_is_refused(shim: Shim) -> None:
    config = b'{"cniVersion":"0.4.0","pad":"' + b"x" * (1 << 20)
    async with serving(shim.socket, saying(b"ok")) as server:
        assert (await shim.execute("ADD", config[: 1 << 20])).output == b"ok"
        for command in ("ADD", "DEL"):
            refused = await shim.execute(command, config[: (1 << 20) + 1])
            assert refused.error["code"] == 7
            assert "1 MiB" in refused.error["msg"]
    assert [len(request.config) for request in server.requests] == [1 << 20]


async def test_a_large_answer_passes_whole(shim: Shim) -> None:
    output = os.urandom(3 << 20)
    async with serving(shim.socket, saying(output)):
        assert (await shim.execute("ADD")).output == output


@pytest.mark.parametrize(
    ("command", "seconds"), [("ADD", 90), ("DEL", 10), ("CHECK", 30), ("GC", 60), ("STATUS", 0.9)]
)
async def test_the_daemon_is_told_less_time_than_the_shim_has(
    shim: Shim, command: str, seconds: float
) -> None:
    async with serving(shim.socket, saying()) as server:
        await shim.execute(command)
    assert seconds * 0.5 < server.seconds_allowed[0] < seconds


@pytest.mark.parametrize(
    ("answered", "expected"), [(0, 0), (1, 1), (255, 255), (256, 1), (-1, 1), (512, 1), (-(2**31), 1)]
)
async def test_exit_codes_never_turn_a_failure_into_success(shim: Shim, answered: int, expected: int) -> None:
    async with serving(shim.socket, saying(b'{"code":7,"msg":"no"}', answered)):
        done = await shim.execute("ADD")
    assert done.exit_code == expected
    assert done.output == b'{"code":7,"msg":"no"}'


async def test_a_failure_without_words_gets_an_error_object(shim: Shim) -> None:
    async with serving(shim.socket, saying(b"", 7)):
        for command in ("ADD", "DEL", "STATUS"):
            assert (await shim.execute(command)).error["code"] == 100
    assert shim.tombstones == []


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (grpc.StatusCode.UNAVAILABLE, 11),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 11),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 11),
        (grpc.StatusCode.UNIMPLEMENTED, 11),
        (grpc.StatusCode.CANCELLED, 11),
        (grpc.StatusCode.UNKNOWN, 100),
        (grpc.StatusCode.INTERNAL, 100),
    ],
)
async def test_grpc_statuses_become_cni_codes(shim: Shim, status: grpc.StatusCode, code: int) -> None:
    text = 'storm "at" ütze\n100% \x01'
    async with serving(shim.socket, refusing(status, text)):
        for command, expected in (("ADD", code), ("CHECK", code), ("GC", code), ("STATUS", 50)):
            error = (await shim.execute(command)).error
            assert error["code"] == expected
            assert error["cniVersion"] == "1.0.0"
            assert text in error["details"]
        assert (await shim.execute("DEL")).exit_code == 0
    assert len(shim.tombstones) == 1


async def test_an_exception_in_the_daemon_is_a_fault_of_its_own(shim: Shim) -> None:
    async def crash(_: cni_pb2.ExecuteRequest, __: Context) -> cni_pb2.ExecuteResponse:
        raise ZeroDivisionError("surprise")

    async with serving(shim.socket, crash):
        error = (await shim.execute("ADD")).error
    assert error["code"] == 100
    assert "surprise" in error["details"]


async def test_a_server_without_the_service_is_named_as_an_upgrade(shim: Shim) -> None:
    shim.state.mkdir()
    server = grpc.aio.server()
    server.add_insecure_port(f"unix:{shim.socket}")
    await server.start()
    try:
        error = (await shim.execute("ADD")).error
    finally:
        await server.stop(None)
    assert error["code"] == 11
    assert "upgrade" in error["msg"]


async def test_fifty_at_once_are_all_answered(shim: Shim) -> None:
    async def echo(request: cni_pb2.ExecuteRequest, _: Context) -> cni_pb2.ExecuteResponse:
        await asyncio.sleep(0.05)
        return cni_pb2.ExecuteResponse(output=request.container_id.encode())

    async with serving(shim.socket, echo), asyncio.TaskGroup() as group:
        calls = [group.create_task(shim.execute("ADD", CNI_CONTAINERID=f"id{i}")) for i in range(50)]
    assert [call.result().output.decode() for call in calls] == [f"id{i}" for i in range(50)]


async def test_a_result_nobody_reads_is_a_failure(sanitized: Shim) -> None:
    async def run(stdout: int | None) -> Finished:
        closed = "exec >&-; " if stdout is None else ""
        process = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            f'{closed}exec "{sanitized.binary}"',
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            **sanitized.arguments("ADD", {}),
        )
        _, messages = await process.communicate()
        assert process.returncode is not None
        return Finished(process.returncode, b"", messages.decode(), 0)

    reader, writer = os.pipe()
    os.close(reader)
    try:
        async with serving(sanitized.socket, saying(b'{"ips":[]}')) as server:
            for done in (await run(writer), await run(None)):
                assert done.exit_code == 5, done
                assert "standard output" in done.messages
    finally:
        os.close(writer)
    assert len(server.requests) == 2
