"""A service outgrows the chains that are there from the start and shrinks again: all its backends are met."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from datapath.nft.frontends import Balance, Need, Snat
from datapath.nft.services import COMMON_SIZES
from tests.functional.services.calls import Met, backends
from tests.functional.services.site import CLUSTER_IP, UDP, client_address, frontend, node_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.functional.services.calls import Server, Servers
    from tests.functional.services.site import Site

pytestmark = [pytest.mark.root, pytest.mark.parametrize("family", [4, 6])]

SIZES = (5, 40, 70, 33, 5)
DRAWS = 3_000
"""By so many draws one of 70 backends is missed once in 10^17 times."""
PORT = 9000


def meet_all(draw: Callable[[], Server], wanted: list[Server]) -> None:
    met: set[Server] = set()
    for _ in range(DRAWS):
        met.add(draw())
        if len(met) == len(wanted):
            break
    assert met == set(wanted)


@pytest.fixture
def readings(site: Site, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One entry for each time that the node's tables are read from now on."""
    found: list[object] = []
    read = site.node.nft.read

    def note() -> object:
        found.append(None)
        return read()

    monkeypatch.setattr(site.node.nft, "read", note)
    return found


@pytest.mark.parametrize("at", ["cluster IP", "node port"])
def test_every_backend_of_a_growing_service_is_met(
    site: Site, servers: Servers, family: int, at: str, readings: list[object]
) -> None:
    assert max(SIZES) > COMMON_SIZES > min(SIZES)
    made = servers.start(site.world.pod2, family, *range(PORT, PORT + max(SIZES)), protocol=UDP)
    where, target = (
        (frontend(family, protocol=UDP), (CLUSTER_IP[family], 80))
        if at == "cluster IP"
        else (node_port(family, protocol=UDP), (site.node.underlay(family), 30080))
    )

    def draw() -> Server:
        met = servers.call(site.world.outside, *target, protocol=UDP)
        assert isinstance(met, Met)
        return met.server

    for size in SIZES:
        site.serve({where: Balance(backends(made[:size]), Snat.ALWAYS)})
        site.forget_flows()
        meet_all(draw, made[:size])
    assert readings == []
    assert site.need == Need(frozenset(SIZES))


def test_a_growing_service_with_affinity_spreads_its_clients(
    site: Site, servers: Servers, family: int, readings: list[object]
) -> None:
    """Who was never there draws from all; who was stays."""
    made = servers.start(site.world.pod2, family, *range(PORT, PORT + 40), protocol=UDP)
    at = frontend(family, protocol=UDP)

    def draw(client: int) -> Server:
        source = client_address(family, client)
        met = servers.call(site.world.outside, CLUSTER_IP[family], 80, protocol=UDP, source=source)
        assert isinstance(met, Met)
        return met.server

    site.serve({at: Balance(backends(made[:2]), affinity_seconds=3600)})
    first = [draw(client) for client in range(10)]
    site.serve({at: Balance(backends(made), affinity_seconds=3600)})
    assert [draw(client) for client in range(10)] == first
    others = {draw(client) for client in range(10, 40)}
    # 30 clients of 40 backends: fewer than ten different ones come once in 10^9 times.
    assert len(others) >= 10
    site.serve({at: Balance(backends(made[:2]), affinity_seconds=3600)})
    site.forget_flows()
    assert [draw(client) for client in range(10)] == first
    assert {draw(client) for client in range(10, 40)} <= set(made[:2])
    assert readings == []


def test_growing_disturbs_no_connection(site: Site, servers: Servers, family: int) -> None:
    made = servers.start(site.world.pod2, family, *range(PORT, PORT + 40))
    at = frontend(family)
    site.serve({at: Balance(backends(made[:1]))})
    with site.world.outside.socket(made[0].socket.family, made[0].socket.type) as caller:
        caller.settimeout(2)
        caller.connect((CLUSTER_IP[family], 80))
        connection, _ = made[0].socket.accept()
        with connection:
            connection.settimeout(2)
            for size in (40, 2, 40):
                site.serve({at: Balance(backends(made[:size]))})
                caller.sendall(b"still here")
                assert connection.recv(100) == b"still here"
