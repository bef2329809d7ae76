"""Connections from everywhere to each kind of frontend: who answers, and the source address that it sees."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from datapath.nft.frontends import Balance, Snat
from tests.functional.services.calls import Fate, Met, backends
from tests.functional.services.site import (
    CLUSTER_IP,
    EXTERNAL,
    TCP,
    UDP,
    client_address,
    frontend,
    node_port,
)

if TYPE_CHECKING:
    from tests.functional.nft.spaces import Space
    from tests.functional.nft.world import Node
    from tests.functional.services.calls import Servers
    from tests.functional.services.site import Site

pytestmark = [pytest.mark.root, pytest.mark.parametrize("family", [4, 6])]

TRIES = 24
"""Of two backends one is missed by so many connections once in 10^7 times."""
CLIENTS = ("pod", "remote pod", "node", "other node", "outside")
protocols = pytest.mark.parametrize("protocol", [TCP, UDP])


def where(site: Site, family: int, client: str) -> tuple[Space, str]:
    """A client's namespace and its own address.

    This node's own is not the one that it speaks to pods by: what replaces it must show.
    """
    world = site.world
    return {
        "pod": (world.pod1.space, world.pod1.address(family)),
        "remote pod": (world.remote.space, world.remote.address(family)),
        "node": (world.a.space, world.a.secondary(family)),
        "other node": (world.b.space, world.b.underlay(family)),
        "outside": (world.outside, client_address(family, 0)),
    }[client]


@protocols
def test_pods_keep_their_address_towards_a_cluster_ip(
    site: Site, servers: Servers, family: int, protocol: int
) -> None:
    world = site.world
    for pod in (world.pod2, world.remote):
        (server,) = servers.start(pod, family, 8080, protocol=protocol)
        site.serve({frontend(family, protocol=protocol): Balance(backends([server]), Snat.FOREIGN)})
        found = servers.call(world.pod1.space, CLUSTER_IP[family], 80, protocol=protocol)
        assert found == Met(server, world.pod1.address(family))


@protocols
@pytest.mark.parametrize("client", ["node", "other node", "outside"])
def test_whoever_is_no_pod_meets_a_cluster_ip_with_the_nodes_address(
    site: Site, servers: Servers, family: int, client: str, protocol: int
) -> None:
    world = site.world
    space, source = where(site, family, client)
    # Into the overlay it is the tunnel's address: the answer must find back the same way.
    for pod, seen in (
        (world.pod2, world.a.underlay(family)),
        (world.remote, world.a.tunnel(family)),
    ):
        (server,) = servers.start(pod, family, 8080, protocol=protocol)
        site.serve({frontend(family, protocol=protocol): Balance(backends([server]), Snat.FOREIGN)})
        found = servers.call(space, CLUSTER_IP[family], 80, protocol=protocol, source=source)
        assert found == Met(server, seen)


@protocols
@pytest.mark.parametrize("client", CLIENTS)
def test_everybody_takes_the_nodes_address_towards_external_addresses(
    site: Site, servers: Servers, family: int, client: str, protocol: int
) -> None:
    (server,) = servers.start(site.world.pod2, family, 8080, protocol=protocol)
    balance = Balance(backends([server]), Snat.ALWAYS)
    site.serve(
        {
            frontend(family, 80, protocol, EXTERNAL[family]): balance,
            node_port(family, 30080, protocol): balance,
        }
    )
    space, source = where(site, family, client)
    node = site.node.underlay(family)
    for target, port in ((EXTERNAL[family], 80), (node, 30080)):
        found = servers.call(space, target, port, protocol=protocol, source=source)
        assert found == Met(server, node)


@pytest.mark.parametrize("client", CLIENTS)
def test_an_external_address_with_policy_local(
    site: Site, servers: Servers, family: int, client: str
) -> None:
    """Outsiders meet this node's backends with their own address; pods and this node meet all of them.

    Another node's pod, which may meet itself, takes this node's address, and so does this node.
    """
    world = site.world
    here, there = (servers.start(pod, family, 8080)[0] for pod in (world.pod2, world.remote))
    balance = Balance(backends([here, there]), Snat.NEVER, outside=backends([here]))
    site.serve({frontend(family, 80, TCP, EXTERNAL[family]): balance, node_port(family): balance})
    space, source = where(site, family, client)
    for target, port in ((EXTERNAL[family], 80), (world.a.underlay(family), 30080)):
        found = {servers.call(space, target, port, source=source) for _ in range(TRIES)}
        if client in ("outside", "other node"):
            assert found == {Met(here, source)}
        elif client in ("node", "remote pod"):
            assert found == {Met(here, world.a.underlay(family)), Met(there, world.a.tunnel(family))}
        else:
            assert found == {Met(here, source), Met(there, source)}


@pytest.mark.parametrize("client", CLIENTS)
def test_with_policy_local_outsiders_are_dropped_where_nobody_serves(
    site: Site, servers: Servers, family: int, client: str
) -> None:
    (there,) = servers.start(site.world.remote, family, 8080)
    balance = Balance(backends([there]), Snat.NEVER, outside=())
    site.serve({frontend(family, 80, TCP, EXTERNAL[family]): balance, node_port(family): balance})
    space, source = where(site, family, client)
    outsider = client in ("outside", "other node")
    for target, port in ((EXTERNAL[family], 80), (site.node.underlay(family), 30080)):
        found = servers.call(space, target, port, source=source, patience=0.3 if outsider else 2)
        if outsider:
            assert found == Fate.DROPPED
        else:
            assert isinstance(found, Met)
            assert found.server is there


@protocols
@pytest.mark.parametrize("snat", Snat)
def test_a_pod_that_meets_itself_sees_the_node(
    site: Site, servers: Servers, family: int, protocol: int, snat: Snat
) -> None:
    """Else the answer would not pass the node, and the pod would not know it."""
    pod = site.world.pod1
    (server,) = servers.start(pod, family, 8080, protocol=protocol)
    site.serve({frontend(family, protocol=protocol): Balance(backends([server]), snat)})
    found = servers.call(pod.space, CLUSTER_IP[family], 80, protocol=protocol)
    assert found == Met(server, site.node.underlay(family))


def test_a_pod_that_meets_itself_with_policy_local_or_affinity(
    site: Site, servers: Servers, family: int
) -> None:
    pod = site.world.pod1
    found = servers.start(pod, family, 8080)
    for balance in (
        Balance(backends(found), outside=backends(found)),
        Balance(backends(found), affinity_seconds=60),
        Balance(backends(found), outside=backends(found), affinity_seconds=60),
    ):
        site.serve({frontend(family, address=EXTERNAL[family]): balance})
        for _ in range(2):
            met = servers.call(pod.space, EXTERNAL[family], 80)
            assert met == Met(found[0], site.node.underlay(family))


def test_node_ports_are_served_at_chosen_addresses_only(site: Site, servers: Servers, family: int) -> None:
    (server,) = servers.start(site.world.pod2, family, 8080)
    site.serve({node_port(family): Balance(backends([server]), Snat.ALWAYS)})
    call = servers.call
    assert isinstance(call(site.world.outside, site.node.underlay(family), 30080), Met)
    # Nobody listens there, and the node says so itself.
    assert call(site.world.outside, site.node.secondary(family), 30080) == Fate.REFUSED
    loopback = {4: "127.0.0.1", 6: "::1"}[family]
    assert call(site.node.space, loopback, 30080) == Fate.REFUSED


def test_an_address_of_its_own_comes_before_a_node_port(site: Site, servers: Servers, family: int) -> None:
    """An external address may be one of the node's."""
    first, second = servers.start(site.world.pod2, family, 8080, 8081)
    site.serve(
        {
            frontend(family, 30080, TCP, site.node.underlay(family)): Balance(backends([first]), Snat.ALWAYS),
            node_port(family): Balance(backends([second]), Snat.ALWAYS),
        }
    )
    for _ in range(3):
        met = servers.call(site.world.outside, site.node.underlay(family), 30080)
        assert isinstance(met, Met)
        assert met.server is first


class Host:
    """A node as a place for servers, as pods in the host's network are."""

    def __init__(self, node: Node) -> None:
        self.space = node.space
        self.address = node.underlay


def test_a_backend_may_have_the_address_of_its_frontend(site: Site, servers: Servers, family: int) -> None:
    """An external address that is a node's, and a server there at the same port: nothing to translate."""
    world = site.world
    (server,) = servers.start(Host(world.b), family, 8443)
    at = frontend(family, 8443, TCP, world.b.underlay(family))
    for outside in (None, (), backends([server])):
        site.serve({at: Balance(backends([server]), outside=outside)})
        met = servers.call(world.pod1.space, world.b.underlay(family), 8443)
        assert met == Met(server, world.a.underlay(family))


def test_a_backend_may_have_the_number_of_its_node_port(site: Site, servers: Servers, family: int) -> None:
    world = site.world
    (server,) = servers.start(Host(world.a), family, 30080)
    site.serve({node_port(family): Balance(backends([server]), Snat.ALWAYS)})
    for client in ("outside", "pod", "node"):
        space, source = where(site, family, client)
        met = servers.call(space, world.a.underlay(family), 30080, source=source)
        # What comes in for the node itself never leaves it, so no source is replaced.
        assert met == Met(server, world.a.underlay(family) if client == "node" else source)


def test_protocols_share_a_port(site: Site, servers: Servers, family: int) -> None:
    world = site.world
    (tcp,) = servers.start(world.pod2, family, 8080, protocol=TCP)
    (udp,) = servers.start(world.pod2, family, 5353, protocol=UDP)
    site.serve(
        {
            frontend(family, 53, TCP): Balance(backends([tcp])),
            frontend(family, 53, UDP): Balance(backends([udp])),
        }
    )
    for protocol, server in ((TCP, tcp), (UDP, udp)):
        met = servers.call(world.pod1.space, CLUSTER_IP[family], 53, protocol=protocol)
        assert met == Met(server, world.pod1.address(family))


def test_sctp(site: Site, servers: Servers, family: int) -> None:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError as error:
        pytest.skip(f"this kernel has no SCTP sockets: {error}")
    pytest.fail("this kernel has SCTP sockets: write the test")


def test_all_backends_are_met(site: Site, servers: Servers, family: int) -> None:
    world = site.world
    made = [
        *servers.start(world.pod1, family, 8080, 8081, protocol=UDP),
        *servers.start(world.pod2, family, 8080, protocol=UDP),
        *servers.start(world.remote, family, 8080, 8081, protocol=UDP),
    ]
    site.serve({frontend(family, protocol=UDP): Balance(backends(made), Snat.FOREIGN)})
    met = [servers.call(world.outside, CLUSTER_IP[family], 80, protocol=UDP) for _ in range(200)]
    shares = {each: sum(isinstance(one, Met) and one.server is each for one in met) for each in made}
    assert sum(shares.values()) == 200
    # Expected are 40 for each; fewer than 12 come once in 10^8 times.
    assert min(shares.values()) > 12


@pytest.mark.parametrize("affinity", [0, 60])
def test_bits_of_others_in_the_mark_survive(site: Site, servers: Servers, family: int, affinity: int) -> None:
    """The bit of ours is gone when the packet leaves; `site` looks for it after every test."""
    world = site.world
    (server,) = servers.start(world.pod2, family, 8080)
    site.serve({frontend(family): Balance(backends([server]), Snat.FOREIGN, affinity_seconds=affinity)})
    site.node.space.nft(
        "table inet marker { chain c { type filter hook prerouting priority -150;"
        " iifname eth0 meta mark set 0x00010008; }; }"
    )
    try:
        assert isinstance(servers.call(world.outside, CLUSTER_IP[family], 80), Met)
        assert site.count("foreign") > 0
    finally:
        site.node.space.nft("delete table inet marker")
    before = site.count("foreign")
    assert isinstance(servers.call(site.node.space, CLUSTER_IP[family], 80, mark=0x10008), Met)
    assert site.count("foreign") > before


def test_the_watcher_sees_a_mark_that_is_left(site: Site, servers: Servers, family: int) -> None:
    """What the other tests rely on."""
    (server,) = servers.start(site.world.pod2, family, 8080)
    site.serve({frontend(family): Balance(backends([server]))})
    space = site.node.space
    space.nft(
        "table inet marker { chain c { type filter hook postrouting priority 150;"
        " ct status dnat meta mark set 0x4000 meta priority set 1; }; }"
    )
    try:
        assert isinstance(servers.call(site.world.pod1.space, CLUSTER_IP[family], 80), Met)
    finally:
        space.nft("delete table inet marker")
    assert site.count("marked") > 0
    assert site.count("prioritized") > 0
    site.forget_counts()
