"""What clients meet where nobody serves them: a refusal at once, or nothing at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from datapath.nft.elements import prefix
from datapath.nft.frontends import Absence, Balance, Snat
from datapath.text import parse_address
from tests.functional.services.calls import SILENCE, Fate, Met, backends
from tests.functional.services.site import (
    CLUSTER_IP,
    EXTERNAL,
    TCP,
    UDP,
    UNALLOCATED,
    client_address,
    frontend,
    node_port,
)

if TYPE_CHECKING:
    from datapath.nft.elements import Range
    from tests.functional.nft.spaces import Space
    from tests.functional.services.calls import Servers
    from tests.functional.services.site import Site

pytestmark = [pytest.mark.root, pytest.mark.parametrize("family", [4, 6])]
protocols = pytest.mark.parametrize("protocol", [TCP, UDP])
clients = pytest.mark.parametrize("client", ["pod", "node", "outside"])


def where(site: Site, client: str) -> Space:
    world = site.world
    return {"pod": world.pod1.space, "node": world.a.space, "outside": world.outside}[client]


@protocols
@clients
@pytest.mark.parametrize("affinity", [0, 60])
def test_nobody_serves(
    site: Site, servers: Servers, family: int, protocol: int, client: str, affinity: int
) -> None:
    refused = Balance((), Snat.ALWAYS, affinity_seconds=affinity)
    dropped = Balance((), Snat.ALWAYS, absence=Absence.DROP, affinity_seconds=affinity)
    node = site.node.underlay(family)
    site.serve(
        {
            **{frontend(family, 80, protocol, each[family]): refused for each in (CLUSTER_IP, EXTERNAL)},
            **{frontend(family, 81, protocol, each[family]): dropped for each in (CLUSTER_IP, EXTERNAL)},
            node_port(family, 30080, protocol): refused,
            node_port(family, 30081, protocol): dropped,
        },
        cluster_ips=[CLUSTER_IP[family]],
    )
    space = where(site, client)
    for address, port in ((CLUSTER_IP[family], 80), (EXTERNAL[family], 80), (node, 30080)):
        assert servers.call(space, address, port, protocol=protocol) == Fate.REFUSED
        found = servers.call(space, address, port + 1, protocol=protocol, patience=SILENCE)
        assert found == Fate.DROPPED


@protocols
@clients
def test_an_undefined_port_of_a_cluster_ip_is_refused(
    site: Site, servers: Servers, family: int, protocol: int, client: str
) -> None:
    (server,) = servers.start(site.world.pod2, family, 8080, protocol=protocol)
    site.serve(
        {frontend(family, protocol=protocol): Balance(backends([server]), Snat.FOREIGN)},
        cluster_ips=[CLUSTER_IP[family]],
    )
    space = where(site, client)
    assert servers.call(space, CLUSTER_IP[family], 81, protocol=protocol) == Fate.REFUSED
    other = UDP if protocol == TCP else TCP
    assert servers.call(space, CLUSTER_IP[family], 80, protocol=other) == Fate.REFUSED
    assert isinstance(servers.call(space, CLUSTER_IP[family], 80, protocol=protocol), Met)


@protocols
@clients
def test_an_unallocated_address_of_the_service_network_is_silent(
    site: Site, servers: Servers, family: int, protocol: int, client: str
) -> None:
    """A route out of the node would be there: `site` looks whether anything took it."""
    found = servers.call(where(site, client), UNALLOCATED[family], 80, protocol=protocol, patience=SILENCE)
    assert found == Fate.DROPPED


def test_backends_come_and_go(site: Site, servers: Servers, family: int) -> None:
    (server,) = servers.start(site.world.pod2, family, 8080)
    at, space = frontend(family), site.world.pod1.space
    for _ in range(3):
        site.serve({at: Balance(())}, cluster_ips=[CLUSTER_IP[family]])
        assert servers.call(space, CLUSTER_IP[family], 80) == Fate.REFUSED
        site.serve({at: Balance(backends([server]))}, cluster_ips=[CLUSTER_IP[family]])
        assert isinstance(servers.call(space, CLUSTER_IP[family], 80), Met)


def ranges(*addresses: str) -> tuple[Range, ...]:
    return tuple(prefix(parse_address(each), 32 if "." in each else 128) for each in sorted(addresses))


@protocols
def test_clients_come_from_where_the_service_says(
    site: Site, servers: Servers, family: int, protocol: int
) -> None:
    world, node = site.world, site.node
    (server,) = servers.start(world.pod2, family, 8080, protocol=protocol)
    allowed = ranges(client_address(family, 1), node.secondary(family), world.pod1.address(family))
    balance = Balance(backends([server]), Snat.ALWAYS)
    site.serve(
        {
            frontend(family, 80, protocol, EXTERNAL[family]): Balance(
                backends([server]), Snat.ALWAYS, sources=allowed
            ),
            frontend(family, 80, protocol): balance,
            node_port(family, 30080, protocol): balance,
        }
    )

    def call(
        space: Space, source: str, patience: float, target: str = EXTERNAL[family], port: int = 80
    ) -> bool:
        found = servers.call(space, target, port, protocol=protocol, source=source, patience=patience)
        return isinstance(found, Met)

    good = [
        (world.outside, client_address(family, 1)),
        (node.space, node.secondary(family)),
        (world.pod1.space, ""),
    ]
    bad = [
        (world.outside, client_address(family, 0)),
        (world.outside, client_address(family, 2)),
        (node.space, node.underlay(family)),
        (world.remote.space, ""),
    ]
    assert all(call(space, source, 2) for space, source in good)
    assert not any(call(space, source, SILENCE) for space, source in bad)
    # Other ways to the same service know no ranges.
    assert call(world.outside, client_address(family, 0), 2, CLUSTER_IP[family])
    assert call(world.outside, client_address(family, 0), 2, node.underlay(family), 30080)


def test_ranges_change_live(site: Site, servers: Servers, family: int) -> None:
    (server,) = servers.start(site.world.pod2, family, 8080)
    at = frontend(family, address=EXTERNAL[family])
    one, other = client_address(family, 1), client_address(family, 2)

    def met() -> list[bool]:
        return [
            isinstance(
                servers.call(site.world.outside, EXTERNAL[family], 80, source=each, patience=SILENCE), Met
            )
            for each in (one, other)
        ]

    for sources, expected in (
        (ranges(one), [True, False]),
        (ranges(one, other), [True, True]),
        (ranges(other), [False, True]),
        ((), [False, False]),
        (None, [True, True]),
    ):
        site.serve({at: Balance(backends([server]), sources=sources)})
        assert met() == expected


def test_a_connection_outlives_the_range_that_let_it_in(site: Site, servers: Servers, family: int) -> None:
    """Only new connections are judged."""
    (server,) = servers.start(site.world.pod2, family, 8080)
    at, outside = frontend(family, address=EXTERNAL[family]), site.world.outside
    site.serve({at: Balance(backends([server]))})
    with outside.socket(server.socket.family, server.socket.type) as caller:
        caller.settimeout(2)
        caller.connect((EXTERNAL[family], 80))
        connection, _ = server.socket.accept()
        with connection:
            site.serve({at: Balance(backends([server]), sources=())})
            assert servers.call(outside, EXTERNAL[family], 80, patience=SILENCE) == Fate.DROPPED
            caller.sendall(b"still here")
            connection.settimeout(2)
            assert connection.recv(100) == b"still here"
