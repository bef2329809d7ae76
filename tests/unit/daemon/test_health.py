"""Health endpoints: alive is the loop, ready is what was promised; a taken port is a finding."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import TYPE_CHECKING

import aiohttp
import pytest

from daemon import health as module
from daemon.config import Config
from daemon.findings import Findings
from daemon.health import Health, metrics_routes, serve
from daemon.metrics import Metrics
from daemon.serviceprogress import Progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from aiohttp.typedefs import Handler


@pytest.fixture
def address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@contextlib.asynccontextmanager
async def serving(address: str, routes: Mapping[str, Handler], findings: Findings) -> AsyncIterator[None]:
    task = asyncio.ensure_future(serve(address, routes, findings, key="healthAddress"))
    await asyncio.sleep(0.05)
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def get(address: str, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}{path}") as response:
        return response.status, await response.text()


async def test_readiness_names_what_is_missing(address: str) -> None:
    health = Health(Metrics(), ("first", "second"))
    async with serving(address, health.routes(), Findings()):
        assert await get(address, "/readyz") == (503, "[-] first: not yet\n[-] second: not yet\n")
        health.set("first")
        health.set("second", "because")
        assert await get(address, "/readyz") == (503, "[+] first\n[-] second: because\n")
        health.set("second")
        assert health.ready
        assert await get(address, "/readyz") == (200, "[+] first\n[+] second\n")
        health.set("first", "stopping")
        assert (await get(address, "/readyz"))[0] == 503


async def test_liveness_is_the_heartbeat_and_nothing_else(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    health = Health(Metrics(), ("never",))
    async with serving(address, health.routes(), Findings()):
        assert await get(address, "/livez") == await get(address, "/healthz") == (200, "ok\n")
        monkeypatch.setattr(module, "_DEAD_SECONDS", 0.0)
        assert (await get(address, "/livez"))[0] == 503


async def test_services_that_wait_for_long_are_no_life_and_a_node_that_leaves_is_not_healthy(
    address: str,
) -> None:
    now = 0.0
    leaving = ""
    services = Progress(Metrics(), clock=lambda: now)
    health = Health(Metrics(), (), services=services, leaving=lambda: leaving)

    def proxying() -> bool:
        return health.proxying

    async with serving(address, health.routes(), Findings()):
        assert await get(address, "/livez") == (200, "ok\n")
        assert await get(address, "/healthz") == (503, "the Services are not in the kernel yet\n")
        assert not proxying()
        with services.round():
            pass
        assert await get(address, "/healthz") == (200, "ok\n")
        leaving = "the Node is being deleted"
        assert await get(address, "/healthz") == (503, "the Node is being deleted\n")
        assert (await get(address, "/livez"))[0] == 200
        assert proxying()
        services.service_changed()
        now = 59.0
        assert (await get(address, "/livez"))[0] == 200
        now = 61.0
        leaving = ""
        late = (503, "a change of a Service has waited for 61 s\n")
        assert await get(address, "/livez") == await get(address, "/healthz") == late
        assert not proxying()
        with services.round():
            pass
        assert await get(address, "/livez") == await get(address, "/healthz") == (200, "ok\n")


async def test_the_heartbeat_measures_how_late_the_loop_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BEAT_SECONDS", 0.01)
    metrics = Metrics()
    beating = asyncio.ensure_future(Health(metrics, ()).run())
    await asyncio.sleep(0.005)
    time.sleep(0.1)  # noqa: ASYNC251 - the loop is to be late
    await asyncio.sleep(0.05)
    beating.cancel()
    assert (metrics.registry.get_sample_value("weft_event_loop_lag_seconds_sum") or 0) > 0.05


async def test_metrics_are_served(address: str) -> None:
    metrics = Metrics()
    metrics.repairs.labels("route").inc(3)
    async with serving(address, metrics_routes(metrics), Findings()):
        status, body = await get(address, "/metrics")
    assert status == 200
    assert 'weft_repairs_total{kind="route"} 3.0' in body


async def test_a_taken_port_is_a_finding_until_it_is_free(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.05)
    findings = Findings()
    host, port = address.split(":")
    assert "kube-proxy" in module._USUAL_HOLDERS[int(Config().health_address.split(":")[1])]
    monkeypatch.setattr(module, "_USUAL_HOLDERS", {int(port): "somebody is known to be there; "})
    with socket.socket() as other:
        other.bind((host, int(port)))
        other.listen()
        async with serving(address, Health(Metrics(), ()).routes(), findings):
            (row,) = findings.rows()
            assert (row.name, row.level, row.key) == ("PortTaken", "warning", "healthAddress")
            assert f"healthAddress {address}" in row.message
            assert "somebody is known to be there" in row.message
            other.close()
            async with asyncio.timeout(5):
                while findings.rows():  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.01)
            assert (await get(address, "/livez"))[0] == 200


async def test_an_empty_address_serves_nothing() -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(serve("", {}, Findings(), key="healthAddress"), 0.05)
