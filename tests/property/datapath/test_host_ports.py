"""Whatever host ports and node ports there are: a packet goes to the one that is meant, or is let be."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from datapath.nft.elements import key
from datapath.nft.evaluation import Packet
from datapath.nft.frontends import (
    NODE_PORT_ADDRESSES,
    NODE_SOURCE,
    Backend,
    Balance,
    Frontend,
    service_elements,
)
from datapath.nft.hostports import HostPort, host_port_elements
from datapath.nft.rules import Family, Protocol, Ruleset
from datapath.nft.tables import TableOptions, node_tables, pod_sources
from datapath.trace import Fate, Host, Route, trace

TABLES = node_tables(TableOptions())
NODE, SECOND, FAR = bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2)), bytes((198, 51, 100, 1))
LOOPBACK = bytes((127, 0, 0, 1))
CLIENT = bytes((203, 0, 113, 7))
PODS = {number: bytes((10, 0, 0, number)) for number in range(2, 6)}
LINKS = {number: f"weft{number:011x}" for number in PODS}
HOST = Host(
    frozenset({NODE, SECOND, LOOPBACK}),
    (Route(bytes(4), 0, "eth0"), *(Route(PODS[each], 32, LINKS[each]) for each in PODS)),
    {("eth0", 4): NODE},
)
PORTS = (80, 81)
PROTOCOLS = (Protocol.TCP, Protocol.UDP)

places = st.tuples(st.sampled_from((b"", bytes(4), NODE, SECOND, FAR, LOOPBACK)), st.sampled_from(PROTOCOLS),
                   st.sampled_from(PORTS))  # fmt: skip


@st.composite
def exposures(draw: st.DrawFn) -> dict[tuple[bytes, int, int], tuple[int, int]]:
    """By address (zeros for all), protocol and port: the pod that has it, and its port there."""
    found: dict[tuple[bytes, int, int], tuple[int, int]] = {}
    for number in PODS:
        for host, protocol, port in draw(st.lists(places, max_size=3)):
            found.setdefault((host or bytes(4), protocol, port), (number, draw(st.integers(1, 65535))))
    return found


@given(
    exposed=exposures(),
    node_ports=st.sets(st.tuples(st.sampled_from(PROTOCOLS), st.sampled_from(PORTS))),
    source=st.sampled_from(("outside", "node", *PODS)),
    target=st.sampled_from((NODE, SECOND, FAR, LOOPBACK)),
    protocol=st.sampled_from(PROTOCOLS),
    port=st.sampled_from(PORTS),
)
def test_the_nearest_port_gets_the_packet(
    exposed: dict[tuple[bytes, int, int], tuple[int, int]],
    node_ports: set[tuple[Protocol, int]],
    source: str | int,
    target: bytes,
    protocol: Protocol,
    port: int,
) -> None:
    elements: dict[tuple[int, str, str], dict[bytes, bytes]] = {
        (2, "weft", NODE_PORT_ADDRESSES): {NODE: b""},
        (2, "weft", NODE_SOURCE): {key(b"\2"): NODE},
    }
    served = Backend(bytes((10, 0, 1, 9)), 9999)
    balances = {Frontend(Family.IPV4, None, *each): Balance((served,)) for each in node_ports}
    parts = list(service_elements(balances))
    for number, address in PODS.items():
        mine = [HostPort(*place, to) for place, (pod, to) in exposed.items() if pod == number]
        parts += [*pod_sources(LINKS[number], [address]), *host_port_elements([address], mine)]
    for each in parts:
        elements.setdefault(each.key, {}).update(each.elements)
    if isinstance(source, int):
        sender, link = PODS[source], LINKS[source]
    elif source == "outside":
        sender, link = CLIENT, "eth0"
    else:
        sender, link = (NODE if target == FAR else target), ""
    packet = Packet(Family.IPV4, protocol, sender, target, destination_port=port, iif=link)
    (path,) = trace(Ruleset(TABLES, elements), packet, HOST)
    if target == LOOPBACK and link:
        assert path.fate is Fate.DROPPED
        return
    meant = None
    if target != FAR:
        meant = exposed.get((target, protocol, port), exposed.get((bytes(4), protocol, port)))
    if meant is not None:
        pod, to = meant
        assert (path.fate, path.packet.oif) == (Fate.SENT, LINKS[pod])
        assert (path.packet.destination, path.packet.destination_port) == (PODS[pod], to)
        # Kept but for what can't be answered: the pod itself, and the node's loopback.
        masked = sender in (PODS[pod], LOOPBACK)
        assert path.packet.source == (NODE if masked else sender)
    elif target == NODE and (protocol, port) in node_ports:
        assert path.packet.destination == served.address
    else:
        assert (path.packet.destination, path.packet.destination_port) == (target, port)
