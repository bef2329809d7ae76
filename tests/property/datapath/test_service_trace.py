"""Whatever a frontend is to be: the rules make of a packet what the balance says, for every client."""

from __future__ import annotations

import struct
from collections import defaultdict
from fractions import Fraction
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from datapath.nft.elements import disjoint, intervals, key, prefix
from datapath.nft.evaluation import Packet
from datapath.nft.frontends import (
    ENDPOINTS,
    NODE_PORT_ADDRESSES,
    NODE_PORT_PREFIX,
    NODE_SOURCE,
    OUTSIDE_SLOT,
    POD_CIDRS,
    SERVICE_CIDRS,
    Absence,
    Backend,
    Balance,
    Frontend,
    Snat,
    need,
    service_elements,
)
from datapath.nft.rules import Family, Ruleset
from datapath.nft.services import ServiceOptions
from datapath.nft.tables import TABLE, TableOptions, node_tables, pod_sources
from datapath.trace import Fate, Host, Route, trace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datapath.nft.rules import SetKey
    from datapath.trace import Path


def packed(text: str) -> bytes:
    return ip_address(text).packed


OURS, TUNNEL = packed("172.31.1.10"), packed("10.244.0.0")
LOCAL = {packed(f"10.244.0.{number}"): f"weft{number:011x}" for number in (2, 3)}
REMOTE = tuple(packed(f"10.244.1.{number}") for number in (2, 3))
OUTSIDER, STRANGER = packed("192.0.2.1"), packed("198.51.100.7")
VIP, NODE_PORT = packed("10.96.0.10"), 30080
HOST = Host(
    frozenset({OURS, TUNNEL}),
    (
        *(Route(address, 32, link) for address, link in LOCAL.items()),
        Route(packed("10.244.1.0"), 24, "weft.vxlan"),
        Route(packed("0.0.0.0"), 0, "eth0"),
    ),
    {("eth0", 4): OURS, ("weft.vxlan", 4): TUNNEL},
)


class Sender(NamedTuple):
    """Who asks: an address, and the link by which its packets come (empty: this node)."""

    address: bytes
    iif: str

    @property
    def is_pod(self) -> bool:
        return self.address in LOCAL or self.address in REMOTE


SENDERS = (
    *(Sender(*each) for each in LOCAL.items()),
    Sender(REMOTE[0], "weft.vxlan"),
    Sender(OUTSIDER, "eth0"),
    Sender(STRANGER, "eth0"),
    Sender(OURS, ""),
)
backends = st.lists(
    st.builds(Backend, st.sampled_from([*LOCAL, *REMOTE]), st.sampled_from([8080, 9090])),
    unique=True,
    max_size=5,
).map(lambda found: tuple(sorted(found)))
ranges = st.lists(
    st.sampled_from([prefix(OUTSIDER, 24), prefix(OUTSIDER, 32), prefix(packed("10.0.0.0"), 8)]), min_size=1
).map(disjoint)
balances = st.builds(
    Balance,
    backends=backends,
    snat=st.sampled_from(Snat),
    outside=st.none() | backends,
    absence=st.sampled_from(Absence),
    affinity_seconds=st.sampled_from([0, 600]),
    sources=st.none() | ranges,
)
frontends = st.sampled_from([VIP, None]).map(
    lambda address: Frontend(Family.IPV4, address, 6, 80 if address else NODE_PORT)
)


def ruleset(frontend: Frontend, balance: Balance) -> Ruleset:
    needed = need([balance])
    options = ServiceOptions(tuple(needed.sizes), tuple(needed.timeouts), common=2)
    elements: dict[SetKey, Mapping[bytes, bytes]] = {
        (2, TABLE, POD_CIDRS): intervals([prefix(packed("10.244.0.0"), 16)]),
        (2, TABLE, SERVICE_CIDRS): intervals([prefix(packed("10.96.0.0"), 16)]),
        (2, TABLE, NODE_PORT_ADDRESSES): {OURS: b""},
        (2, TABLE, NODE_SOURCE): {key(b"\x02"): OURS},
    }
    sources: dict[bytes, bytes] = {}
    for address, link in LOCAL.items():
        for each in pod_sources(link, [address]):
            sources |= each.elements
            elements[each.key] = sources
    for each in service_elements({frontend: balance}, cluster_ips=[VIP]):
        elements[each.key] = each.elements
    return Ruleset(node_tables(TableOptions(services=options)), elements)


def ask(rules: Ruleset, frontend: Frontend, sender: Sender, memory: object = None) -> tuple[Path, ...]:
    address = frontend.address or OURS
    packet = Packet(Family.IPV4, 6, sender.address, address, frontend.port, sender.iif)
    return trace(rules, packet, HOST, memory)  # type: ignore[arg-type]


def expected(frontend: Frontend, balance: Balance, sender: Sender) -> Fate | dict[Backend, bytes]:
    """The fate, or the source that each possible backend sees."""
    if not balance.backends:
        return Fate.REFUSED if balance.absence is Absence.REFUSE else Fate.DROPPED
    admitted = balance.sources is None or any(
        first <= sender.address <= last for first, last in balance.sources
    )
    if frontend.address is not None and not admitted:
        return Fate.DROPPED
    chosen, replaced = balance.backends, balance.snat is Snat.ALWAYS
    if balance.outside is not None:
        inside = sender.is_pod or sender.address == OURS
        replaced = inside and sender.address not in LOCAL
        if not inside:
            chosen = balance.outside
    elif balance.snat is Snat.FOREIGN:
        replaced = not sender.is_pod
    if not chosen:
        return Fate.DROPPED
    return {backend: _seen(backend, sender, replaced=replaced) for backend in chosen}


def _seen(backend: Backend, sender: Sender, *, replaced: bool) -> bytes:
    """A pod that meets itself sees its node; that is the business of its own node."""
    meets_itself = backend.address == sender.address and sender.address in LOCAL
    if not replaced and not meets_itself:
        return sender.address
    return OURS if backend.address in LOCAL else TUNNEL


@settings(deadline=None)
@given(frontends, balances, st.sampled_from(SENDERS))
def test_rules_do_what_the_balance_says(frontend: Frontend, balance: Balance, sender: Sender) -> None:
    paths = ask(ruleset(frontend, balance), frontend, sender)
    due = expected(frontend, balance, sender)
    if isinstance(due, Fate):
        assert {path.fate for path in paths} == {due}
        return
    chances: dict[tuple[Backend, bytes], Fraction] = defaultdict(Fraction)
    for path in paths:
        assert path.fate is Fate.SENT
        backend = Backend(path.packet.destination, path.packet.destination_port)
        chances[backend, path.packet.source] += path.chance
    assert chances == dict.fromkeys(due.items(), Fraction(1, len(due)))
    if balance.affinity_seconds:
        for path in paths:
            again = ask(ruleset(frontend, balance), frontend, sender, path.memory)
            assert {each.packet.destination for each in again} == {path.packet.destination}


@settings(deadline=None)
@given(frontends, balances, st.sampled_from(SENDERS), st.data())
def test_a_packet_between_two_states_goes_to_a_backend(
    frontend: Frontend, balance: Balance, sender: Sender, data: st.DataObject
) -> None:
    """While backends change, a packet may find their old number and the new slots; slot 0 is always there."""
    rules = ruleset(frontend, balance)
    due = expected(frontend, balance, sender)
    if isinstance(due, Fate):
        return
    name = ("" if frontend.address else NODE_PORT_PREFIX) + ENDPOINTS
    slots = rules.elements[2, TABLE, name]
    kept = data.draw(st.sets(st.sampled_from(sorted(slots))))
    first = {each for each in slots if each[-4:] in (struct.pack("=I", 0), struct.pack("=I", OUTSIDE_SLOT))}
    elements = {
        **rules.elements,
        (2, TABLE, name): {each: to for each, to in slots.items() if each in kept | first},
    }
    for path in ask(Ruleset(rules.tables, elements), frontend, sender):
        assert path.fate is Fate.SENT
        assert Backend(path.packet.destination, path.packet.destination_port) in due
