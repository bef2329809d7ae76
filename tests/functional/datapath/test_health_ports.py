"""Health check ports on a node's own addresses, of which one comes late."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import aiohttp
import pytest

from daemon import servicehealth
from daemon.findings import Findings
from daemon.servicehealth import HealthCheck, HealthCheckPorts
from datapath.text import parse_address
from tests.functional.datapath.conftest import NODE4, NODE6, run

if TYPE_CHECKING:
    from collections.abc import Collection

LATE = "192.0.2.9"
PORT = 32100


async def listening(ports: HealthCheckPorts, addresses: Collection[str]) -> None:
    wanted = {(parse_address(each), PORT) for each in addresses}
    async with asyncio.timeout(5):
        while set(ports.listening) != wanted:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.005)


async def status(session: aiohttp.ClientSession, host: str) -> int:
    async with session.get(f"http://{host}:{PORT}/healthz") as response:
        return response.status


@pytest.mark.usefixtures("node")
async def test_only_the_given_addresses_answer_and_a_late_one_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(servicehealth, "RETRY_SECONDS", 0.05)
    findings = Findings()
    ports = HealthCheckPorts(findings, lambda: True)
    addresses = [parse_address(each) for each in (NODE4, NODE6, LATE)]
    task = asyncio.ensure_future(ports.run())
    try:
        ports.set({PORT: HealthCheck("shop", "cart", 1)}, addresses)
        await listening(ports, (NODE4, NODE6))
        async with asyncio.timeout(5):
            while not findings.rows():  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.005)
        assert LATE in findings.rows()[0].message
        async with aiohttp.ClientSession() as session:
            assert await status(session, NODE4) == await status(session, f"[{NODE6}]") == 200
            with pytest.raises(aiohttp.ClientConnectorError):
                await status(session, "127.0.0.1")
            run(f"ip addr add {LATE}/32 dev lo")
            await listening(ports, (NODE4, NODE6, LATE))
            assert await status(session, LATE) == 200
            await asyncio.sleep(0.02)
            assert findings.rows() == ()
            ports.set({PORT: HealthCheck("shop", "cart", 1)}, addresses[:1])
            await listening(ports, (NODE4,))
        async with aiohttp.ClientSession() as stranger:
            assert await status(stranger, NODE4) == 200
            with pytest.raises(aiohttp.ClientConnectorError):
                await status(stranger, LATE)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
