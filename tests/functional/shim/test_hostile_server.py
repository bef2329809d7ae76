"""Bytes that no decent server sends, and servers that say nothing: no crash, no hang, no lie."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.functional.shim import http2
from tests.functional.shim.http2 import frame, header
from tests.functional.shim.program import SANITIZER_EXIT, Shim
from weft_rpc import cni_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.functional.shim.program import Finished

fuzzed = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

streams = st.sampled_from([0, 1, 1, 1, 2, 3, 2**31 - 1])
fields = st.builds(
    header,
    st.sampled_from([":status", "grpc-status", "grpc-message", "content-type", "x", ""]),
    st.binary(max_size=40)
    | st.sampled_from([b"0", b"13", b"200", b"99999999999", b"%", b"%zz%e2%82", b"%00"]),
)
payloads = st.one_of(
    st.binary(max_size=64),
    st.lists(fields, max_size=4).map(b"".join),
    st.binary(max_size=40).map(lambda body: b"\0" + len(body).to_bytes(4, "big") + body),
    st.sampled_from([b"\0\xff\xff\xff\xff", b"\1\0\0\0\0", b"\0\0\0\0\0", b"\0" * 8]),
)
frames = st.builds(
    frame,
    st.integers(0, 11),
    st.integers(0, 255) | st.sampled_from([0, 4, 5]),
    streams,
    payloads,
    st.none() | st.none() | st.none() | st.sampled_from([0, 1, 16384, 16385, 2**24 - 1]),
)
proper = st.sampled_from(
    [
        http2.preamble(),
        http2.response_headers(),
        http2.message(b""),
        http2.trailers(),
        http2.trailers(b"14", b"gone"),
    ]
)


def judge(done: Finished) -> None:
    """An error object, or a proper success; never a crash, a sanitizer's finding, or silence."""
    assert done.exit_code != SANITIZER_EXIT, done.messages
    assert 0 <= done.exit_code <= 255, done
    if done.exit_code:
        assert json.loads(done.output)["code"] in (11, 100)


@fuzzed
@given(answer=st.lists(frames | proper, max_size=8).map(b"".join) | st.binary(max_size=200))
@example(answer=http2.reply(b""))
@example(answer=http2.preamble() + frame(http2.PING, 0, 0, b"12345678") * 5000)
@example(answer=http2.preamble() + frame(http2.SETTINGS, 0, 0, b"") * 5000)
@example(answer=http2.preamble() + frame(http2.GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\0"))
@example(answer=http2.preamble() + frame(http2.RST_STREAM, 0, 1, b"\0\0\0\x08"))
@example(answer=http2.preamble() + frame(http2.HEADERS, 4, 1, b"\x3f\xff\xff\xff\xff\xff\x0f"))
def test_no_bytes_of_a_server_break_it(sanitized: Shim, answer: bytes) -> None:
    with http2.answering(sanitized.socket, http2.saying(answer, wait_for_end=False)):
        judge(sanitized.run("ADD"))


@fuzzed
@given(
    answer=st.binary(max_size=60)
    | st.builds(
        lambda output, code, extra: (
            cni_pb2.ExecuteResponse(output=output, exit_code=code).SerializeToString() + extra
        ),
        st.binary(max_size=30),
        st.integers(-(2**31), 2**31 - 1),
        st.sampled_from(
            [b"", b"\x1a\x03abc", b"\x20\xff\xff\x01", b"\x29" + b"x" * 8, b"\x35abcd", b"\x0a\x7f", b"\x0b"]
        ),
    )
)
def test_messages_decode_as_protobuf_decodes_them(sanitized: Shim, answer: bytes) -> None:
    """What protobuf accepts is printed, what it refuses is refused; groups aside, which proto3 has not."""
    with http2.answering(sanitized.socket, http2.saying(http2.reply(answer))):
        done = sanitized.run("ADD")
    assert done.exit_code != SANITIZER_EXIT, done.messages
    try:
        expected = cni_pb2.ExecuteResponse.FromString(answer)
    except Exception:  # noqa: BLE001 - protobuf's own type differs between its implementations
        assert done.error["code"] == 100
        return
    if done.output != expected.output or (done.exit_code == 0) != (expected.exit_code == 0):
        assert done.error["code"] == 100
        assert not expected.output or any(byte & 7 in (3, 4) for byte in answer)


@pytest.mark.parametrize(
    "answer",
    [
        http2.preamble() + http2.response_headers() + http2.message(b"") * 2 + http2.trailers(),
        http2.preamble() + http2.response_headers() + http2.trailers(),
        http2.preamble()
        + http2.response_headers()
        + frame(http2.DATA, 0, 1, b"\1\0\0\0\0")
        + http2.trailers(),
        http2.preamble()
        + http2.response_headers()
        + frame(http2.DATA, 0, 1, b"\0\0\0\0\5abc")
        + http2.trailers(),
        http2.preamble()
        + http2.response_headers()
        + http2.message(b"\x0a\xff\xff\xff\xff\x0f")
        + http2.trailers(),
        http2.preamble() + http2.response_headers() + http2.message(b"x" * (9 << 20)) + http2.trailers(),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
    ids=["two messages", "none", "compressed", "short", "huge field", "huge message", "http/1.1"],
)
def test_an_answer_that_is_none_is_a_fault(sanitized: Shim, answer: bytes) -> None:
    with http2.answering(sanitized.socket, http2.saying(answer)):
        assert sanitized.run("ADD").error["code"] == 100
        assert sanitized.run("STATUS").error["code"] == 50
        assert sanitized.run("DEL").exit_code == 0
    assert len(sanitized.tombstones) == 1


@pytest.mark.parametrize("spoken", [0, 9, 40, 60])
def test_a_server_that_dies_during_the_call_is_tried_again_later(sanitized: Shim, spoken: int) -> None:
    with http2.answering(
        sanitized.socket, http2.saying(http2.reply(b"\x0a\x02{}")[:spoken], wait_for_end=False)
    ):
        error = sanitized.run("ADD", b'{"pad":"' + b"x" * 500_000 + b'"}').error
        assert error["code"] == 11
        assert "went away" in error["msg"]


def test_an_answer_before_the_request_was_read_is_heard(sanitized: Shim) -> None:
    """A daemon that refuses early does not read a large request to its end."""
    with http2.answering(sanitized.socket, http2.saying(http2.reply(b"\x0a\x02{}"))):
        done = sanitized.run("ADD", b'{"pad":"' + b"x" * 1_000_000 + b'"}')
    assert (done.exit_code, done.output) == (0, b"{}")


def test_an_answer_byte_by_byte_is_put_together(sanitized: Shim) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(1)
        for byte in http2.reply(b"\x0a\x02{}"):
            connection.sendall(bytes([byte]))
            time.sleep(0.0005)
        connection.recv(65536)

    with http2.answering(sanitized.socket, talk):
        assert sanitized.run("ADD").output == b"{}"


@contextlib.contextmanager
def full_backlog(path: Path) -> Iterator[socket.socket]:
    """A listener whose backlog has no room left."""
    with http2.listening(path, backlog=1) as server, contextlib.ExitStack() as clients:
        while True:
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            try:
                client.connect(str(path))
            except BlockingIOError:
                break
        yield server


def test_room_in_a_full_backlog_is_waited_for(shim: Shim) -> None:
    def accept_later() -> None:
        time.sleep(0.3)
        for answered in range(100):
            connection, _ = server.accept()
            with connection:
                connection.settimeout(0.01)
                with contextlib.suppress(TimeoutError):  # those that fill the backlog never speak
                    connection.recv(1)
                    http2.saying(http2.reply(b"\x0a\x02{}"))(connection)
                    assert answered > 0
                    return

    with full_backlog(shim.socket) as server:
        thread = threading.Thread(target=accept_later)
        thread.start()
        done = shim.run("STATUS")
        thread.join(5)
    assert (done.exit_code, done.output) == (0, b"{}")
    assert done.seconds > 0.25


def opening(connection: socket.socket) -> bytes:
    """What the shim says until its request's headers are whole, and not a byte more."""
    said = connection.recv(len(http2.PREFACE), socket.MSG_WAITALL)
    while True:
        head = connection.recv(9, socket.MSG_WAITALL)
        said += head + connection.recv(int.from_bytes(head[:3], "big"), socket.MSG_WAITALL)
        if head[3] == http2.HEADERS:
            return said


async def test_the_daemon_is_told_of_a_call_before_the_configuration_is_there(shim: Shim) -> None:
    called = asyncio.Event()
    loop = asyncio.get_running_loop()

    def talk(connection: socket.socket) -> None:
        opening(connection)
        loop.call_soon_threadsafe(called.set)
        said = b""
        while b"the configuration" not in said:
            said += connection.recv(65536)
        connection.sendall(http2.reply(b"\x0a\x02{}"))
        connection.recv(65536)

    with http2.answering(shim.socket, talk):
        process = await started(shim, "ADD")
        async with asyncio.timeout(5):
            await called.wait()
        output, _ = await process.communicate(b'{"a":"the configuration"}')
    assert (process.returncode, output) == (0, b"{}")


@pytest.mark.parametrize("command", ["ADD", "DEL"])
async def test_a_daemon_that_goes_before_the_configuration_comes_did_nothing(
    shim: Shim, command: str
) -> None:
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()

    def talk(connection: socket.socket) -> None:
        opening(connection)
        connection.close()
        loop.call_soon_threadsafe(gone.set)

    with http2.answering(shim.socket, talk):
        process = await started(shim, command)
        async with asyncio.timeout(5):
            await gone.wait()
    shim.socket.unlink()
    output, _ = await process.communicate(b'{"cniVersion":"1.0.0","name":"weft"}')
    if command == "DEL":
        assert (process.returncode, len(shim.tombstones)) == (0, 1)
    else:
        assert json.loads(output)["code"] == 11


async def started(shim: Shim, command: str) -> asyncio.subprocess.Process:
    """The shim while its configuration is not there yet."""
    return await asyncio.create_subprocess_exec(
        shim.binary, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **shim.arguments(command, {})
    )


@pytest.mark.parametrize("command", ["VERSION", ""])
async def test_what_needs_no_daemon_does_not_call_it(shim: Shim, command: str) -> None:
    with http2.listening(shim.socket) as server:
        server.settimeout(0.2)
        shim.run(command)
        shim.run("ADD", name="/opt/cni/bin/loopback", CNI_NETNS="/absent")
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_status_never_waits_long(shim: Shim) -> None:
    with full_backlog(shim.socket):
        done = shim.run("STATUS")
        assert done.error["code"] == 50
        assert 0.5 < done.seconds < 1.5
    with http2.listening(shim.socket):
        done = shim.run("STATUS")
        assert done.error["code"] == 50
        assert 0.5 < done.seconds < 1.5


STOPPABLE = """
import socket, sys
server = socket.socket(socket.AF_UNIX); server.bind("state/cni.sock"); server.listen(8); print(flush=True)
while True:
    connection, _ = server.accept()
    connection.recv(1); connection.sendall(bytes.fromhex(sys.argv[1]))
    connection.recv(1 << 20); connection.close()
"""


async def test_patience_has_an_end(shim: Shim, built: Path, tmp_path: Path) -> None:
    """A stopped daemon, a lock that is never given, an input that never ends: ten seconds at the most."""
    apart = {name: Shim(shim.binary, tmp_path / name) for name in ("stopped", "locked", "unclosed")}
    for case in apart.values():
        case.state.mkdir(parents=True)
    stopped = apart["stopped"]
    with (
        subprocess.Popen(  # noqa: ASYNC220 - starting it is quick
            [sys.executable, "-c", STOPPABLE, http2.reply(b"").hex()],
            cwd=stopped.directory,
            stdout=subprocess.PIPE,
        ) as server,
        (apart["locked"].state / "deletions.lock").open("w") as lock,
    ):
        try:
            assert server.stdout
            server.stdout.readline()
            assert stopped.run("DEL").exit_code == 0
            os.kill(server.pid, signal.SIGSTOP)
            fcntl.flock(lock, fcntl.LOCK_EX)
            open_input, writer = os.pipe()
            waiting = await asyncio.create_subprocess_exec(
                shim.binary,
                stdin=open_input,
                stdout=subprocess.PIPE,
                **apart["unclosed"].arguments("DEL", {}),
            )
            started = time.monotonic()
            hung, unlocked, (unclosed, _) = await asyncio.gather(
                stopped.execute("DEL"), apart["locked"].execute("DEL"), waiting.communicate()
            )
            elapsed = time.monotonic() - started
            os.close(writer)
            os.close(open_input)
        finally:
            server.kill()
    assert 9 < elapsed < 12
    assert hung.exit_code == 0
    assert len(stopped.tombstones) == 1, "a hung daemon's deletion is recorded"
    assert unlocked.exit_code == 0
    assert "without the lock" in unlocked.messages
    assert len(apart["locked"].tombstones) == 1
    assert waiting.returncode == 1
    assert json.loads(unclosed)["code"] == 5
