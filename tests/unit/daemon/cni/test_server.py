"""The socket and the server on it."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from hpack import Encoder

from daemon.cni import http2
from daemon.cni import server as module
from daemon.cni.connections import Client
from daemon.cni.server import GROUP, CniServer, CniSocketError
from weft_rpc.cni_pb2 import ExecuteRequest, ExecuteResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from daemon.cni.server import Asked


class Echo:
    """A service that says what it was asked for; `command` is what it does besides."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.done: list[str] = []

    def at_once(self, request: ExecuteRequest) -> ExecuteResponse | None:
        if request.command == "defect":
            raise ValueError("out of \N{SNOWMAN}")
        return ExecuteResponse(output=b"at once") if request.command == "STATUS" else None

    def execute(self, kernel: object, asked: Sequence[Asked]) -> Iterator[list[ExecuteResponse]]:
        assert kernel == "kernel"
        assert len(asked) <= GROUP
        for request, _ in asked:
            self.begun.set()
            if request.command == "sleep":
                time.sleep(0.2)
            if request.command == "hang":
                self.go_on.wait(10)
            if request.command == "fail":
                raise ValueError("out of \N{SNOWMAN}")
            self.done.append(request.command)
            yield [ExecuteResponse(output=request.config, exit_code=len(request.command))]


class Thread:
    """A thread that serves as the writer's does."""

    def __init__(self) -> None:
        self._intake: CniServer | None = None
        self._ended = False
        self._awake = os.eventfd(0, os.EFD_NONBLOCK)
        self._poll = select.epoll()
        self._poll.register(self._awake)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def attend(self, intake: CniServer | None) -> None:
        if self._intake is not None:
            self._poll.unregister(self._intake.fileno())
        if intake is not None:
            self._poll.register(intake.fileno(), select.EPOLLIN)
        self._intake = intake
        self.wake()

    def wake(self) -> None:
        os.eventfd_write(self._awake, 1)

    def end(self) -> None:
        self._ended = True
        self.wake()
        self._thread.join()
        os.close(self._awake)

    def _run(self) -> None:
        while not self._ended:
            self._poll.poll()
            with suppress(BlockingIOError):
                os.eventfd_read(self._awake)
            while (intake := self._intake) is not None and intake.serve("kernel"):  # type: ignore[arg-type]
                pass


@pytest.fixture
def thread() -> Iterator[Thread]:
    thread = Thread()
    yield thread
    thread.end()


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def server(path: str, echo: Echo, thread: Thread) -> AsyncIterator[CniServer]:
    server = CniServer(echo, path, writer=thread)
    await server.start()
    yield server
    echo.go_on.set()
    await server.stop(0)


@pytest.fixture
async def watched(server: CniServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CniServer]:
    """The server, and the event loop looks after it."""
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    watch = asyncio.ensure_future(server.run())
    yield server
    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watch


async def call(path: str, request: ExecuteRequest) -> ExecuteResponse:
    # As a shim does, on a connection of its own: else one that the server has just closed may be taken again.
    own = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"unix:{path}", options=own) as channel:
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
def path(tmp_path: Path) -> str:
    return str(tmp_path / "run" / "cni.sock")


async def test_it_serves_on_a_socket_of_roots_alone(path: str, server: CniServer) -> None:
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
    config = b"x" * (1 << 20)
    response = await call(path, ExecuteRequest(command="ADD", config=config))
    assert (response.output, response.exit_code) == (config, 3)
    await server.stop(0)
    assert not os.path.exists(path)


async def test_a_directory_that_others_could_enter_is_closed(path: str, thread: Thread) -> None:
    os.mkdir(os.path.dirname(path), 0o755)
    server = CniServer(Echo(), path, writer=thread)
    await server.start()
    assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
    await server.stop(0)


async def test_a_socket_left_by_a_dead_daemon_is_replaced(path: str, thread: Thread) -> None:
    os.mkdir(os.path.dirname(path))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    server = CniServer(Echo(), path, writer=thread)
    await server.start()
    assert (await call(path, ExecuteRequest(command="DEL"))).exit_code == 3
    await server.stop(0)


async def test_what_is_under_way_is_finished_when_it_stops(path: str, server: CniServer) -> None:
    pending = asyncio.ensure_future(call(path, ExecuteRequest(command="sleep")))
    await asyncio.sleep(0.05)
    await server.stop(5)
    assert (await pending).exit_code == 5


async def test_a_shim_comes_before_what_follows_its_answer_unless_others_wait(
    path: str, watched: CniServer, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[int] = []
    monkeypatch.setattr(os, "sched_yield", lambda: answered.append(len(echo.done)))
    await call(path, ExecuteRequest(command="ADD"))
    assert answered == [1]
    echo.begun.clear()
    calls = [asyncio.ensure_future(call(path, ExecuteRequest(command="hang")))]
    await asyncio.to_thread(echo.begun.wait, 5)
    calls += [asyncio.ensure_future(call(path, ExecuteRequest(command="ADD"))) for _ in range(3)]
    async with asyncio.timeout(5):
        while watched.waiting < 3:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    echo.go_on.set()
    await asyncio.gather(*calls)
    assert len(echo.done) == 5
    assert answered == [1]


async def test_a_removed_socket_is_made_anew(path: str, watched: CniServer) -> None:
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
    assert watched.waiting == 0


async def test_a_path_that_cannot_be_served_is_named(tmp_path: Path, thread: Thread) -> None:
    with pytest.raises(CniSocketError, match="short"):
        await CniServer(Echo(), str(tmp_path / ("x" * 200) / "cni.sock"), writer=thread).start()
    (tmp_path / "file").touch()
    with pytest.raises(CniSocketError):
        await CniServer(Echo(), str(tmp_path / "file" / "cni.sock"), writer=thread).start()


@pytest.mark.usefixtures("server")
async def test_calls_share_a_connection(path: str) -> None:
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        method = raw(channel)

        async def ask(number: int) -> None:
            config = bytes([number]) * 9000
            request = ExecuteRequest(command="DEL" if number % 3 == 0 else "ADD", config=config)
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


@pytest.mark.parametrize("how", ["deadline", "cancel", "close"])
async def test_a_call_that_nobody_waits_for_is_dropped_while_it_waits(
    path: str, echo: Echo, watched: CniServer, how: str
) -> None:
    hanging = asyncio.ensure_future(call(path, ExecuteRequest(command="hang")))
    await asyncio.to_thread(echo.begun.wait, 5)
    async with asyncio.timeout(5), grpc.aio.insecure_channel(f"unix:{path}") as channel:
        pending = raw(channel)(
            ExecuteRequest(command="DEL").SerializeToString(), timeout=0.3 if how == "deadline" else None
        )
        code = asyncio.ensure_future(pending.code())
        while watched.waiting == 0:  # noqa: ASYNC110 - a thread takes it in
            await asyncio.sleep(0.01)
        if how == "cancel":
            pending.cancel()
        if how == "close":
            await channel.close(None)
        expected = grpc.StatusCode.DEADLINE_EXCEEDED if how == "deadline" else grpc.StatusCode.CANCELLED
        assert await code is expected
        await asyncio.sleep(0.1)
    echo.go_on.set()
    assert (await hanging).exit_code == 4
    assert (await call(path, ExecuteRequest(command="CHECK"))).exit_code == 5
    assert echo.done == ["hang", "CHECK"]


@pytest.mark.usefixtures("watched")
async def test_a_call_under_way_is_finished_when_its_client_goes(path: str, echo: Echo) -> None:
    hanging = asyncio.ensure_future(call(path, ExecuteRequest(command="hang")))
    await asyncio.to_thread(echo.begun.wait, 5)
    hanging.cancel()
    await asyncio.sleep(0.1)
    echo.go_on.set()
    assert (await call(path, ExecuteRequest(command="DEL"))).exit_code == 3
    assert echo.done == ["hang", "DEL"]


TOO_LATE = b"grpc-status\x014"
SETTINGS_TAKEN = http2.frame(http2.SETTINGS, http2.ACK, 0)


@asynccontextmanager
async def connected(path: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection on which a test says what it likes."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


def opening(*more: tuple[str, str]) -> bytes:
    """What a client begins with, up to its call's headers."""
    fields = [
        (":method", "POST"),
        (":path", "/weft.cni.v1.Cni/Execute"),
        ("content-type", "application/grpc"),
    ]
    headers = http2.frame(http2.HEADERS, http2.END_HEADERS, 1, Encoder().encode([*fields, *more]))
    return http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0) + headers


def body(request: ExecuteRequest) -> bytes:
    """The rest of the call."""
    message = request.SerializeToString()
    return http2.frame(http2.DATA, http2.END_STREAM, 1, bytes(4) + bytes([len(message)]) + message)


async def heard(reader: asyncio.StreamReader, words: bytes) -> None:
    """Read until the server has said so."""
    said = b""
    while words not in said:
        said += await reader.read(65536)


@pytest.mark.usefixtures("watched")
async def test_while_the_kernel_hangs_status_is_answered_and_deadlines_are_told(
    path: str, echo: Echo
) -> None:
    async with asyncio.timeout(5), connected(path) as (reader, writer):
        writer.write(opening(("grpc-timeout", "100m")) + body(ExecuteRequest(command="hang")))
        await asyncio.to_thread(echo.begun.wait, 5)
        assert (await call(path, ExecuteRequest(command="STATUS"))).output == b"at once"
        await heard(reader, TOO_LATE)


@pytest.mark.usefixtures("server")
async def test_a_deadline_counts_from_the_headers(path: str, echo: Echo) -> None:
    """As the client counts it, whose request may follow them by long."""
    async with asyncio.timeout(5), connected(path) as (reader, writer):
        writer.write(opening(("grpc-timeout", "200m")))
        await asyncio.sleep(0.3)
        writer.write(body(ExecuteRequest(command="ADD")))
        await heard(reader, TOO_LATE)
    assert echo.done == []


@pytest.mark.usefixtures("server")
async def test_a_request_that_needs_a_larger_window_gets_it_at_once(path: str) -> None:
    for _ in range(2):  # the second opening is a known one
        async with asyncio.timeout(5), connected(path) as (reader, writer):
            writer.write(opening() + http2.frame(http2.DATA, 0, 1, bytes(16384)) * 3)
            assert SETTINGS_TAKEN in await reader.read(65536)


async def test_who_waits_for_the_opening_before_the_body_gets_it(path: str, server: CniServer) -> None:
    async with asyncio.timeout(5), connected(path) as (reader, writer), asyncio.TaskGroup() as group:
        writer.write(opening())
        watching = group.create_task(server.run())
        assert SETTINGS_TAKEN in await reader.read(65536)
        watching.cancel()


@pytest.mark.usefixtures("server")
async def test_a_defect_in_reading_ends_one_connection(path: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(path, ExecuteRequest(command="defect"))
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert (await call(path, ExecuteRequest(command="DEL"))).exit_code == 3


async def test_one_who_sends_without_end_holds_nobody_up(
    path: str, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nobody:
        def attend(self, intake: CniServer | None) -> None:
            pass

        def wake(self) -> None:
            pass

    server = CniServer(echo, path, writer=Nobody())
    await server.start()
    # What is there is never all read.
    monkeypatch.setattr(Client, "receive", lambda _: [])
    with socket.socket(socket.AF_UNIX) as rude:
        rude.connect(path)
        rude.sendall(b"more")
        serving = threading.Thread(target=server.serve, args=("kernel",), daemon=True)
        serving.start()
        await asyncio.to_thread(serving.join, 5)
        assert not serving.is_alive()
    await server.stop(0)


async def test_calls_that_are_under_way_too_long_are_left_alone_when_it_stops(
    path: str, echo: Echo, server: CniServer
) -> None:
    hanging = asyncio.ensure_future(call(path, ExecuteRequest(command="hang")))
    await asyncio.to_thread(echo.begun.wait, 5)
    await server.stop(0.05)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await hanging
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_more_calls_than_the_limit_wait_at_the_socket(path: str, echo: Echo, thread: Thread) -> None:
    server = CniServer(echo, path, writer=thread, limit=2)
    await server.start()
    calls = [asyncio.ensure_future(call(path, ExecuteRequest(command="hang"))) for _ in range(10)]
    await asyncio.sleep(0.3)
    assert server.waiting <= 2
    echo.go_on.set()
    assert [each.exit_code for each in await asyncio.gather(*calls)] == [4] * 10
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
