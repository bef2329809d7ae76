"""Health check ports: what they answer, that they come and go alone, and what a taken one means."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import aiohttp
import pytest

from daemon import servicehealth as module
from daemon.findings import Findings
from daemon.servicehealth import HealthCheck, HealthCheckPorts
from datapath.text import address as shown
from datapath.text import parse_address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

V4, OTHER, V6 = parse_address("127.0.0.1"), parse_address("127.0.0.2"), parse_address("::1")


class Node:
    """Ports served by a task, and a health that the test sets."""

    def __init__(self) -> None:
        self.healthy = True
        self.findings = Findings()
        self.ports = HealthCheckPorts(self.findings, lambda: self.healthy)

    async def settle(self, where: Collection[tuple[bytes, int]]) -> None:
        async with asyncio.timeout(5):
            while set(self.ports.listening) != set(where):  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Node]:
    node = Node()
    task = asyncio.ensure_future(node.ports.run())
    yield node
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.fixture
def free() -> list[int]:
    """Three ports that nobody has."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket(socket.AF_INET6)) for _ in range(3)]
        for probe in probes:
            probe.bind(("::", 0))
        return [probe.getsockname()[1] for probe in probes]


async def ask(
    address: bytes, port: int, path: str = "/", method: str = "GET"
) -> tuple[int, dict[str, str], str]:
    host = f"[{shown(address)}]" if len(address) == 16 else shown(address)
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"http://{host}:{port}{path}") as response,
    ):
        return response.status, dict(response.headers), await response.text()


@pytest.mark.parametrize("address", [V4, V6], ids=["IPv4", "IPv6"])
async def test_the_answer_is_kube_proxys(address: bytes, free: list[int]) -> None:
    async with serving() as node:
        node.ports.set({free[0]: HealthCheck("shop", "cart", 3)}, [V4, V6])
        await node.settle([(V4, free[0]), (V6, free[0])])
        for path, method in (("/", "GET"), ("/healthz", "GET"), ("/any/path?at=all", "HEAD"), ("/", "POST")):
            status, headers, body = await ask(address, free[0], path, method)
            assert status == 200
            assert headers["Content-Type"] == "application/json"
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["X-Load-Balancing-Endpoint-Weight"] == "3"
            if method != "HEAD":
                assert body == (
                    '{"service": {"namespace": "shop", "name": "cart"}, "localEndpoints": 3, '
                    '"serviceProxyHealthy": true}'
                )


async def test_no_endpoint_here_or_a_proxy_behind_is_503(free: list[int]) -> None:
    async with serving() as node:
        node.ports.set({free[0]: HealthCheck("shop", "cart", 1)}, [V4])
        await node.settle([(V4, free[0])])
        assert (await ask(V4, free[0]))[0] == 200
        node.healthy = False
        status, headers, body = await ask(V4, free[0])
        assert (status, headers["X-Load-Balancing-Endpoint-Weight"]) == (503, "1")
        assert '"serviceProxyHealthy": false' in body
        node.healthy = True
        node.ports.set({free[0]: HealthCheck("shop", "cart", 0)}, [V4])
        status, headers, body = await ask(V4, free[0])
        assert (status, headers["X-Load-Balancing-Endpoint-Weight"]) == (503, "0")
        assert '"localEndpoints": 0' in body


async def test_ports_and_addresses_come_and_go_without_disturbing_others(free: list[int]) -> None:
    first, second, third = free
    cart, till, stock = (HealthCheck("shop", name, 1) for name in ("cart", "till", "stock"))
    async with serving() as node:
        node.ports.set({first: cart, second: till}, [V4])
        await node.settle([(V4, first), (V4, second)])
        async with aiohttp.ClientSession() as session:
            kept, given_up = f"http://127.0.0.1:{first}/", f"http://127.0.0.1:{second}/"
            async with session.get(kept), session.get(given_up):
                pass
            node.ports.set({first: till, third: stock}, [V4, OTHER])
            await node.settle([(V4, first), (V4, third), (OTHER, first), (OTHER, third)])
            async with session.get(kept) as response:
                assert '"till"' in await response.text()
            # A connection that was kept learns that the port is no longer anybody's; a new one is refused.
            async with session.get(given_up) as response:
                assert response.status == 503
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.get(given_up)
        assert (await ask(OTHER, third))[0] == 200
        node.ports.set({}, [V4, OTHER])
        await node.settle([])
        with pytest.raises(aiohttp.ClientConnectorError):
            await ask(V4, first)
        assert node.findings.rows() == ()


async def test_a_taken_port_is_a_finding_until_it_is_free_and_others_are_served(
    free: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.05)
    taken, other, _ = free
    with socket.socket() as rival:
        rival.bind(("127.0.0.1", taken))
        rival.listen()
        async with serving() as node:
            wanted = {taken: HealthCheck("shop", "cart", 1), other: HealthCheck("shop", "till", 1)}
            node.ports.set(wanted, [V4])
            await node.settle([(V4, other)])
            await asyncio.sleep(0.1)
            (row,) = node.findings.rows()
            assert (row.name, row.level, row.key) == ("HealthCheckPortTaken", "warning", str(taken))
            assert f"health check port {taken} of Service shop/cart" in row.message
            rival.close()
            await node.settle([(V4, taken), (V4, other)])
            await asyncio.sleep(0.02)
            assert node.findings.rows() == ()


async def test_a_service_that_gives_up_a_taken_port_takes_the_finding_with_it(free: list[int]) -> None:
    with socket.socket() as rival:
        rival.bind(("127.0.0.1", free[0]))
        rival.listen()
        async with serving() as node:
            node.ports.set({free[0]: HealthCheck("shop", "cart", 1)}, [V4])
            await asyncio.sleep(0.05)
            assert len(node.findings.rows()) == 1
            node.ports.set({}, [V4])
            await asyncio.sleep(0.05)
            assert node.findings.rows() == ()
