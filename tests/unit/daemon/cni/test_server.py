"""The socket and the server on it."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from hpack import Encoder

from daemon.cni import http2
from daemon.cni import server as module
from daemon.cni.server import CniServer, CniSocketError
from weft_rpc.cni_pb2 import ExecuteRequest, ExecuteResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


async def echo(request: ExecuteRequest) -> ExecuteResponse:
    if request.command == "sleep":
        await asyncio.sleep(0.2)
    if request.command == "fail":
        raise ValueError("out of \N{SNOWMAN}")
    return ExecuteResponse(output=request.config, exit_code=len(request.command))


async def call(path: str, request: ExecuteRequest) -> ExecuteResponse:
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        method = channel.unary_unary(
            "/weft.cni.v1.Cni/Execute",
            request_serializer=ExecuteRequest.SerializeToString,
            response_deserializer=ExecuteResponse.FromString,
        )
        response: ExecuteResponse = await method(request, timeout=5)
        return response


def raw(channel: grpc.aio.Channel, method: str = "/weft.cni.v1.Cni/Execute") -> Any:
    """Calls that send and return bytes."""
    unary: Any = channel.unary_unary
    return unary(method)


async def status(path: str, body: bytes, method: str = "/weft.cni.v1.Cni/Execute") -> grpc.StatusCode:
    """What a call ends with that gets no answer."""
    async with grpc.aio.insecure_channel(
        f"unix:{path}", options=[("grpc.max_send_message_length", -1)]
    ) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await raw(channel, method)(body, timeout=5)
        return failed.value.code()


@pytest.fixture
async def server(path: str) -> AsyncIterator[CniServer]:
    server = CniServer(echo, path)
    await server.start()
    yield server
    await server.stop(0)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "run" / "cni.sock")


async def test_it_serves_on_a_socket_of_roots_alone(path: str) -> None:
    server = CniServer(echo, path)
    await server.start()
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
    config = b"x" * (1 << 20)
    response = await call(path, ExecuteRequest(command="ADD", config=config))
    assert (response.output, response.exit_code) == (config, 3)
    await server.stop(0)
    assert not os.path.exists(path)


async def test_a_directory_that_others_could_enter_is_closed(path: str) -> None:
    os.mkdir(os.path.dirname(path), 0o755)
    server = CniServer(echo, path)
    await server.start()
    assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
    await server.stop(0)


async def test_a_socket_left_by_a_dead_daemon_is_replaced(path: str) -> None:
    os.mkdir(os.path.dirname(path))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    server = CniServer(echo, path)
    await server.start()
    assert (await call(path, ExecuteRequest(command="DEL"))).exit_code == 3
    await server.stop(0)


async def test_what_is_under_way_is_finished_when_it_stops(path: str) -> None:
    server = CniServer(echo, path)
    await server.start()
    pending = asyncio.ensure_future(call(path, ExecuteRequest(command="sleep")))
    await asyncio.sleep(0.05)
    await server.stop(5)
    assert (await pending).exit_code == 5


async def test_a_removed_socket_is_made_anew(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    server = CniServer(echo, path)
    await server.start()
    watch = asyncio.ensure_future(server.run())
    for _ in range(3):
        os.unlink(path)
        if _ == 1:
            os.rmdir(os.path.dirname(path))
        for _ in range(300):
            await asyncio.sleep(0.01)
            if os.path.exists(path):
                break
        await asyncio.sleep(0.1)
        assert (await call(path, ExecuteRequest(command="DEL"))).exit_code == 3
        assert os.listdir(os.path.dirname(path)) == ["cni.sock"]
    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watch
    await server.stop(0)


async def test_a_path_that_cannot_be_served_is_named(tmp_path: Path) -> None:
    with pytest.raises(CniSocketError, match="short"):
        await CniServer(echo, str(tmp_path / ("x" * 200) / "cni.sock")).start()
    (tmp_path / "file").touch()
    with pytest.raises(CniSocketError):
        await CniServer(echo, str(tmp_path / "file" / "cni.sock")).start()


@pytest.mark.usefixtures("server")
async def test_calls_share_a_connection(path: str) -> None:
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        method = raw(channel)

        async def ask(number: int) -> None:
            config = bytes([number]) * 9000
            request = ExecuteRequest(command="sleep" if number % 3 == 0 else "ADD", config=config)
            answer = ExecuteResponse.FromString(await method(request.SerializeToString(), timeout=10))
            assert answer.output == config

        for _ in range(3):
            await asyncio.gather(*(ask(number) for number in range(200)))


@pytest.mark.usefixtures("server")
async def test_what_cannot_be_served_is_refused_by_status(path: str) -> None:
    assert await status(path, b"", "/weft.cni.v1.Cni/Other") is grpc.StatusCode.UNIMPLEMENTED
    assert await status(path, b"\xff\xff") is grpc.StatusCode.INTERNAL
    assert await status(path, bytes(3 << 20)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await call(path, ExecuteRequest(command="DEL"))).exit_code == 3


@pytest.mark.usefixtures("server")
async def test_a_defect_ends_the_call_with_its_text(path: str) -> None:
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await raw(channel)(ExecuteRequest(command="fail").SerializeToString())
    assert failed.value.code() is grpc.StatusCode.UNKNOWN
    assert failed.value.details() == "ValueError: out of \N{SNOWMAN}"


class Endless:
    """Serves nothing, and says what became of the calls."""

    def __init__(self) -> None:
        self.begun, self.cancelled = asyncio.Event(), asyncio.Event()

    async def __call__(self, _request: ExecuteRequest) -> ExecuteResponse:
        self.begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        raise AssertionError


@pytest.mark.parametrize("how", ["deadline", "cancel", "close", "stop"])
async def test_a_call_that_nobody_waits_for_is_cancelled(path: str, how: str) -> None:
    endless = Endless()
    server = CniServer(endless, path)
    await server.start()
    async with asyncio.timeout(5), grpc.aio.insecure_channel(f"unix:{path}") as channel:
        method = raw(channel)
        pending = method(ExecuteRequest().SerializeToString(), timeout=0.3 if how == "deadline" else None)
        waiting = asyncio.ensure_future(pending.code())
        await endless.begun.wait()
        if how == "cancel":
            pending.cancel()
        if how == "close":
            await channel.close(None)
        if how == "stop":
            await server.stop(0.05)
        await endless.cancelled.wait()
        expected = {"deadline": grpc.StatusCode.DEADLINE_EXCEEDED, "stop": grpc.StatusCode.UNAVAILABLE}
        assert await waiting is expected.get(how, grpc.StatusCode.CANCELLED)
    await server.stop(0)


async def test_the_server_tells_the_deadline_by_itself(path: str) -> None:
    endless = Endless()
    server = CniServer(endless, path)
    await server.start()
    reader, writer = await asyncio.open_unix_connection(path)
    fields = [
        (":method", "POST"),
        (":path", "/weft.cni.v1.Cni/Execute"),
        ("content-type", "application/grpc"),
    ]
    block = Encoder().encode([*fields, ("grpc-timeout", "100m")])
    request = http2.frame(http2.HEADERS, http2.END_HEADERS, 1, block)
    writer.write(http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0) + request)
    writer.write(http2.frame(http2.DATA, http2.END_STREAM, 1, bytes(5)))
    async with asyncio.timeout(5):
        said = b""
        while b"grpc-status\x014" not in said:
            said += await reader.read(65536)
        await endless.cancelled.wait()
    writer.close()
    await writer.wait_closed()
    await server.stop(0)


@pytest.mark.usefixtures("server")
async def test_who_speaks_something_else_is_cut_off(path: str) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    async with asyncio.timeout(5):
        said = await reader.read()
    assert said.startswith(http2.frame(http2.GOAWAY, 0, 0, bytes(8))[:5])
    writer.close()
    await writer.wait_closed()
    assert (await call(path, ExecuteRequest(command="DEL"))).exit_code == 3


@pytest.mark.usefixtures("server")
async def test_who_does_not_read_is_not_listened_to(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as rude:
        rude.connect(path)
        rude.settimeout(0.5)
        rude.sendall(http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0))
        pings = http2.frame(http2.PING, 0, 0, bytes(8)) * 1000

        def send_much() -> None:
            for _ in range(5000):
                rude.sendall(pings)

        with pytest.raises(TimeoutError):
            await asyncio.to_thread(send_much)
        assert (await call(path, ExecuteRequest(command="DEL"))).exit_code == 3
