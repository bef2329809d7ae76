"""The socket and the server on it."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import grpc
import pytest

from daemon.cni import server as module
from daemon.cni.server import CniServer, CniSocketError
from weft_rpc.cni_pb2 import ExecuteRequest, ExecuteResponse

if TYPE_CHECKING:
    from pathlib import Path


async def echo(request: ExecuteRequest) -> ExecuteResponse:
    if request.command == "sleep":
        await asyncio.sleep(0.2)
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
