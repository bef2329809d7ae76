"""Requests: credentials that are renewed, certificates, refusals, and what is left of the client library."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import yaml
from aiohttp import web

from daemon.cluster.connection import STRATEGIC_MERGE, ApiError, Connection, UnreachableError
from daemon.cluster.endpoint import Endpoint, EndpointError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.unit.daemon.cluster.conftest import FakeApi


@pytest.fixture
def place(tmp_path: object) -> str:
    return str(tmp_path)


@pytest.fixture
async def connect(place: str) -> AsyncIterator[Callable[[Endpoint], Connection]]:
    made: list[Connection] = []

    def make(endpoint: Endpoint) -> Connection:
        made.append(Connection(lambda: endpoint, scratch=f"{place}/scratch", connect_timeout=1))
        return made[-1]

    yield make
    for connection in made:
        await connection.close()


def write(path: str, content: str) -> None:
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write(content)
    os.replace(f"{path}.new", path)


def read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


async def test_a_rotated_service_account_token_is_used_at_once(
    api: FakeApi, place: str, connect: Callable[[Endpoint], Connection]
) -> None:
    write(f"{place}/token", "first\n")
    connection = connect(Endpoint(api.url, "a test", service_account=place))
    await connection.request("GET", "/api/v1/nodes")
    write(f"{place}/token", "second")
    await connection.request("GET", "/api/v1/nodes")
    assert api.seen_tokens == ["first", "second"]


async def test_a_rotation_does_not_cut_a_running_watch(
    api: FakeApi, place: str, connect: Callable[[Endpoint], Connection]
) -> None:
    write(f"{place}/token", "first")
    connection = connect(Endpoint(api.url, "a test", service_account=place))
    query: dict[str, str | int] = {"watch": "true", "resourceVersion": "100", "timeoutSeconds": 10}
    async with connection.stream("/api/v1/nodes", query, idle=5) as lines:
        write(f"{place}/token", "second")
        await connection.request("GET", "/api/v1/nodes")
        api.put("n0")
        event = json.loads(await anext(lines))
    assert event["object"]["metadata"]["name"] == "n0"
    assert api.seen_tokens == ["first", "second"]


async def test_the_kernel_watches_over_idle_watches(
    api: FakeApi, connect: Callable[[Endpoint], Connection]
) -> None:
    connection = connect(Endpoint(api.url, "a test"))
    query: dict[str, str | int] = {"watch": "true", "resourceVersion": "100", "timeoutSeconds": 10}
    options: list[tuple[int, int]] = []
    async with connection.stream("/api/v1/nodes", query, idle=5):
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(number))) as own:
                if own.getpeername()[:2] == ("127.0.0.1", api.port):
                    keepalive = own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                    options.append((keepalive, own.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)))
    assert options == [(1, 30_000)]


async def test_a_refused_token_is_read_again(
    api: FakeApi, place: str, connect: Callable[[Endpoint], Connection]
) -> None:
    write(f"{place}/token", "old")
    api.tokens = {"new"}
    connection = connect(Endpoint(api.url, "a test", service_account=place))
    with pytest.raises(ApiError) as caught:
        await connection.request("GET", "/api/v1/nodes")
    assert (caught.value.status, caught.value.reason) == (401, "Unauthorized")
    write(f"{place}/token", "new")
    await connection.request("GET", "/api/v1/nodes")


async def test_a_token_file_that_vanishes_for_a_moment_does_no_harm(
    api: FakeApi, place: str, connect: Callable[[Endpoint], Connection]
) -> None:
    write(f"{place}/token", "first")
    connection = connect(Endpoint(api.url, "a test", service_account=place))
    await connection.request("GET", "/api/v1/nodes")
    os.unlink(f"{place}/token")
    await connection.request("GET", "/api/v1/nodes")
    write(f"{place}/token", "second")
    await connection.request("GET", "/api/v1/nodes")
    assert api.seen_tokens == ["first", "first", "second"]


async def test_a_token_file_of_a_kubeconfig_is_followed(
    api: FakeApi, place: str, connect: Callable[[Endpoint], Connection]
) -> None:
    write(f"{place}/user.token", "first")
    document = {
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "http://elsewhere"}}],
        "users": [{"name": "u", "user": {"tokenFile": "user.token"}}],
    }
    write(f"{place}/kubeconfig", yaml.safe_dump(document))
    connection = connect(Endpoint(api.url, "a test", kubeconfig=f"{place}/kubeconfig"))
    await connection.request("GET", "/api/v1/nodes")
    write(f"{place}/user.token", "second")
    await connection.request("GET", "/api/v1/nodes")
    assert api.seen_tokens == ["first", "second"]


async def test_an_api_server_that_moves_is_followed(api: FakeApi, place: str) -> None:
    write(f"{place}/token", "t")
    write(f"{place}/kubelet.conf", "first")
    urls = iter(["http://127.0.0.1:1", api.url])

    def choose() -> Endpoint:
        return Endpoint(next(urls), "a test", service_account=place, address_file=f"{place}/kubelet.conf")

    connection = Connection(choose, scratch=place, connect_timeout=1)
    for _ in range(2):
        with pytest.raises(UnreachableError):
            await connection.request("GET", "/x")
    write(f"{place}/kubelet.conf", "second")
    await connection.request("GET", "/x")
    await connection.close()


async def test_a_patch_says_its_type(api: FakeApi, connect: Callable[[Endpoint], Connection]) -> None:
    connection = connect(Endpoint(api.url, "a test"))
    await connection.request(
        "PATCH", "/api/v1/nodes/a/status", body={"status": {}}, content_type=STRATEGIC_MERGE
    )
    assert api.bodies == [("/api/v1/nodes/a/status", STRATEGIC_MERGE, {"status": {}})]


async def test_a_refusal_carries_the_servers_words(
    api: FakeApi, connect: Callable[[Endpoint], Connection]
) -> None:
    connection = connect(Endpoint(api.url, "a test"))
    api.fail = [
        web.json_response({"reason": "Forbidden", "message": "no"}, status=403),
        web.Response(status=502, text="bad gateway"),
        web.Response(status=429, headers={"Retry-After": "7"}),
        web.Response(status=503, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
    ]
    found: list[ApiError] = []
    for _ in range(4):
        with pytest.raises(ApiError) as caught:
            await connection.request("GET", "/x")
        found.append(caught.value)
    assert [str(error) for error in found[:2]] == ["HTTP 403 Forbidden: no", "HTTP 502: bad gateway"]
    assert [error.retry_after for error in found] == [0, 0, 7, 0]


async def test_an_unreachable_server_is_named_with_where_it_comes_from(
    api: FakeApi, connect: Callable[[Endpoint], Connection]
) -> None:
    await api.stop()
    connection = connect(Endpoint(api.url, "apiServer of the configuration"))
    with pytest.raises(UnreachableError) as caught:
        await connection.request("GET", "/x")
    assert caught.value.kind == "connect"
    assert api.url in str(caught.value)
    assert "apiServer of the configuration" in str(caught.value)


async def test_a_slow_answer_times_out(connect: Callable[[Endpoint], Connection]) -> None:
    gone = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        gone.set()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connection = connect(Endpoint(f"http://127.0.0.1:{port}", "a test"))
    with pytest.raises(UnreachableError, match="does not answer in time") as caught:
        await connection.request("GET", "/x", timeout=0.1)
    assert caught.value.kind == "timeout"
    await asyncio.wait_for(gone.wait(), 5)
    server.close()
    await server.wait_closed()


async def test_no_endpoint_is_told_as_such(place: str) -> None:
    def choose() -> Endpoint:
        raise EndpointError("nothing found. Tried: everything")

    connection = Connection(choose, scratch=place)
    with pytest.raises(UnreachableError, match="Tried: everything") as caught:
        await connection.request("GET", "/x")
    assert caught.value.kind == "credentials"


def certificates(place: str) -> None:
    """A CA, a certificate of it for 127.0.0.1, one for a client."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=place, check=True, capture_output=True)

    openssl(
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-keyout",
        "ca.key",
        "-out",
        "ca.crt",
        "-subj",
        "/CN=ca",
        "-days",
        "2",
    )
    for name in ("server", "client"):
        openssl(
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.csr",
            "-subj",
            f"/O=system:nodes/CN={name}",
        )
        with open(f"{place}/{name}.ext", "w", encoding="ascii") as file:
            file.write("subjectAltName=IP:127.0.0.1\n")
        openssl(
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-out",
            f"{name}.crt",
            "-days",
            "2",
            "-extfile",
            f"{name}.ext",
        )


async def test_tls_with_a_client_certificate_that_is_renewed(
    place: str, connect: Callable[[Endpoint], Connection]
) -> None:
    certificates(place)
    peers: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        certificate = request.transport.get_extra_info("peercert")
        peers.append(dict(pair[0] for pair in certificate["subject"])["commonName"])
        return web.json_response({})

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=f"{place}/ca.crt")
    context.load_cert_chain(f"{place}/server.crt", f"{place}/server.key")
    context.verify_mode = ssl.CERT_REQUIRED
    application = web.Application()
    application.router.add_get("/x", answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    port = runner.addresses[0][1]
    write(f"{place}/current.pem", read(f"{place}/client.crt") + read(f"{place}/client.key"))
    document = {
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [
            {"name": "c", "cluster": {"server": "https://wrong", "certificate-authority": "ca.crt"}}
        ],
        "users": [{"name": "u", "user": {"client-certificate": "current.pem", "client-key": "current.pem"}}],
    }
    write(f"{place}/kubelet.conf", yaml.safe_dump(document))
    connection = connect(Endpoint(f"https://127.0.0.1:{port}", "a test", kubeconfig=f"{place}/kubelet.conf"))
    await connection.request("GET", "/x")
    write(f"{place}/current.pem", read(f"{place}/server.crt") + read(f"{place}/server.key"))
    await connection.request("GET", "/x")
    assert peers == ["client", "server"]
    await runner.cleanup()


async def test_a_server_with_another_ca_is_refused(
    place: str, connect: Callable[[Endpoint], Connection]
) -> None:
    certificates(place)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(f"{place}/server.crt", f"{place}/server.key")
    runner = web.AppRunner(web.Application(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    connection = connect(Endpoint(f"https://127.0.0.1:{runner.addresses[0][1]}", "a test"))
    with pytest.raises(UnreachableError, match="certificate"):
        await connection.request("GET", "/x")
    await runner.cleanup()


def test_the_client_library_is_imported_without_its_models() -> None:
    code = (
        "import sys, daemon.cluster.connection\n"
        "names = [name for name in sys.modules if name.startswith('kubernetes_asyncio')]\n"
        "assert 'kubernetes_asyncio.config.kube_config' in names\n"
        "assert not [name for name in names if 'models' in name or '.api.' in name], names\n"
        "print(len(names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20


async def test_what_fails_in_the_users_hands_is_not_called_a_failure_of_the_network(
    api: FakeApi, connect: Callable[[Endpoint], Connection]
) -> None:
    connection = connect(Endpoint(api.url, "a test"))
    query: dict[str, str | int] = {"watch": "true", "resourceVersion": "100", "timeoutSeconds": 10}
    with pytest.raises(ValueError, match="a fault of the user"):
        async with connection.stream("/api/v1/nodes", query, idle=5):
            raise ValueError("a fault of the user")


async def test_a_watch_that_breaks_in_the_middle_is_told_with_its_server(
    api: FakeApi, connect: Callable[[Endpoint], Connection]
) -> None:
    connection = connect(Endpoint(api.url, "a test"))
    query: dict[str, str | int] = {"watch": "true", "resourceVersion": "100", "timeoutSeconds": 10}
    async with connection.stream("/api/v1/nodes", query, idle=5) as lines:
        api.drop()
        with pytest.raises(UnreachableError, match=api.url) as caught:
            await anext(lines)
    assert caught.value.kind == "protocol"


async def test_lines_are_put_together_from_pieces(connect: Callable[[Endpoint], Connection]) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in (b'{"a"', b": 1}\n\n{", b'"b": 2}\n{"c": 3}', b"\n  \n", b'{"last": 4}'):
            await response.write(piece)
            await asyncio.sleep(0.01)
        return response

    application = web.Application()
    application.router.add_get("/x", answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    connection = connect(Endpoint(f"http://127.0.0.1:{runner.addresses[0][1]}", "a test"))
    async with connection.stream("/x", {}, idle=5) as lines:
        assert [line async for line in lines] == [b'{"a": 1}', b'{"b": 2}', b'{"c": 3}', b'{"last": 4}']
    await runner.cleanup()


async def test_a_watch_whose_own_address_went_is_broken(
    api: FakeApi, connect: Callable[[Endpoint], Connection]
) -> None:
    connection = connect(Endpoint(api.url, "a test"))
    query: dict[str, str | int] = {"watch": "true", "resourceVersion": "100", "timeoutSeconds": 10}
    async with connection.stream("/api/v1/nodes", query, idle=5) as lines:
        connection.forsake({bytes((10, 0, 0, 1))})
        api.put("n0")
        assert json.loads(await anext(lines))["type"] == "ADDED"
        connection.forsake({bytes((127, 0, 0, 1))})
        with pytest.raises(UnreachableError):
            await anext(lines)
