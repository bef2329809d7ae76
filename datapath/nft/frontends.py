"""The service frontends of the skeleton: what their elements mean, and their encoding. Pure.

A frontend is where clients connect to, a balance what becomes of their new connections. `services` has the
chains that read these elements.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from datapath.desired import SetElements

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from datapath.nft.elements import Range
    from datapath.nft.rules import Family

TABLE = "weft"

SERVICES = "services"
"""(address . protocol . port) to a word: flags and, in its lower half, the number of backends."""
ENDPOINTS = "endpoints"
"""(address . protocol . port . slot) to a backend; slots count from 0, outsiders' from OUTSIDE_SLOT."""
OUTSIDE = "outside"
"""As SERVICES, for who is neither a pod nor this node, where such are treated apart."""
TIMEOUTS = "timeouts"
"""(address . protocol . port) to the affinity's timeout in seconds."""
IDS = "endpoint-ids"
"""(address . protocol . port . slot) to the id of the backend in that slot, for affinity."""
STICKY = "sticky"
"""(address . protocol . port . id) to a backend that lives, for affinity."""
IDENTICAL = "identical"
"""(address . protocol . port) that a backend has too: nothing tells whether its packets were translated."""
REFUSED = "refused"
DROPPED = "dropped"
FIREWALLED = "firewalled"
"""(address . protocol . port): clients must come from where ALLOWED says."""
ALLOWED = "allowed"
"""Intervals of (address . protocol . port . source)."""
CLUSTER_IPS = "cluster-ips"
SERVICE_CIDRS = "service-cidrs"
NODE_PORT_ADDRESSES = "node-port-addresses"
POD_CIDRS = "pod-cidrs"
NODE_SOURCE = "node-source"
"""This node's address, by which it speaks to its own pods."""
CLIENTS = "clients"
"""(source . address . protocol . port) to the id of the client's backend; rules fill it.

By frontend, not by ServicePort as kube-proxy does it: for that a looked-up id would have to be stored under
a looked-up name, and nft 1.0.6 aborts at listing a rule whose data come from a map, for everybody on the
host."""

NODE_PORT_PREFIX = "node-port-"
"""Each set of frontends has a twin for node ports, whose keys lack the address."""

SIZE_MASK = 0xFFFF
SNAT_ALWAYS, SNAT_FOREIGN, TREATS_OUTSIDE, HAS_AFFINITY = 0x10000, 0x20000, 0x40000, 0x80000
OUTSIDE_SLOT = 0x80000000
OUTSIDE_ID = 1
"""Set in the ids of outsiders' backends, and of theirs alone."""
MOST_BACKENDS = SIZE_MASK

_WORD = struct.Struct("=I")
_PLACE = struct.Struct("!B3xH2x")
_PORT = struct.Struct("!H2x")


class Backend(NamedTuple):
    """An endpoint as a target of DNAT: 4 or 16 packed bytes, and the port."""

    address: bytes
    port: int


class Frontend(NamedTuple):
    """Where clients connect to; without an address a node port, on every address in NODEPORT_ADDRESSES."""

    family: Family
    address: bytes | None
    protocol: int
    port: int


class Snat(Enum):
    """Whose connections get this node's address as their source; a pod that meets itself always does."""

    NEVER = 0
    FOREIGN = 1
    """Those of no pod of the cluster: for ClusterIPs."""
    ALWAYS = 2
    """Everybody's: for external traffic with policy Cluster."""


class Absence(Enum):
    """What clients meet when there is no backend."""

    REFUSE = 0
    """A TCP reset or ICMP port unreachable: nobody serves anywhere."""
    DROP = 1
    """Nothing: policy Local, and backends are on other nodes only."""


@dataclass(frozen=True, slots=True)
class Balance:
    """What becomes of new connections to one frontend.

    Attributes:
        backends: sorted, without repetition. With none, `absence` says what clients meet.
        snat: whose source address is replaced.
        outside: with externalTrafficPolicy Local, the backends of who is neither a pod of the cluster nor
            this node, source kept; with none they are dropped. This node's pods then get `backends` with
            their source kept, other pods and the node with their source replaced. None where nobody is
            treated apart.
        absence: see there.
        affinity_seconds: for how long a client stays with its backend; 0 for no affinity.
        sources: where clients may come from (loadBalancerSourceRanges); None for everywhere.
    """

    backends: tuple[Backend, ...]
    snat: Snat = Snat.NEVER
    outside: tuple[Backend, ...] | None = None
    absence: Absence = Absence.REFUSE
    affinity_seconds: int = 0
    sources: tuple[Range, ...] | None = None


class Need(NamedTuple):
    """Which chains the balances need: numbers of backends, and affinity timeouts in seconds."""

    sizes: frozenset[int] = frozenset()
    timeouts: frozenset[int] = frozenset()


def need(balances: Iterable[Balance]) -> Need:
    """Return which chains these balances need."""
    sizes: set[int] = set()
    timeouts: set[int] = set()
    for each in balances:
        sizes.update(min(len(some), MOST_BACKENDS) for some in (each.backends, each.outside or ()))
        timeouts.add(each.affinity_seconds)
    return Need(frozenset(sizes - {0}), frozenset(timeouts - {0}))


def service_elements(
    balances: Mapping[Frontend, Balance], *, cluster_ips: Iterable[bytes] = ()
) -> tuple[SetElements, ...]:
    """Return the elements of some frontends, one SetElements for each set of each family.

    Of more than MOST_BACKENDS backends the first ones serve.

    Args:
        balances: what becomes of connections to each frontend.
        cluster_ips: addresses of which every other port is refused.
    """
    found: dict[tuple[int, str], dict[bytes, bytes]] = {}
    for frontend, balance in balances.items():
        _add(found, frontend, balance)
    for address in cluster_ips:
        found.setdefault((_FAMILIES[len(address)], CLUSTER_IPS), {})[address] = b""
    return tuple(SetElements((family, TABLE), name, each) for (family, name), each in found.items())


_FAMILIES = {4: 2, 16: 10}


def _add(found: dict[tuple[int, str], dict[bytes, bytes]], frontend: Frontend, balance: Balance) -> None:
    family, address, protocol, port = frontend
    place = (address or b"") + _PLACE.pack(protocol, port)
    prefix = NODE_PORT_PREFIX if address is None else ""

    def elements(name: str) -> dict[bytes, bytes]:
        return found.setdefault((int(family), prefix + name), {})

    backends = balance.backends[:MOST_BACKENDS]
    if not backends:
        elements(REFUSED if balance.absence is Absence.REFUSE else DROPPED)[place] = b""
        return
    word = len(backends) | _FLAGS[balance.snat]
    if balance.affinity_seconds:
        word |= HAS_AFFINITY
        elements(TIMEOUTS)[place] = _WORD.pack(balance.affinity_seconds)
    if balance.outside is not None:
        word |= TREATS_OUTSIDE
    elements(SERVICES)[place] = _WORD.pack(word)
    if any(each.port == port and address in (None, each.address) for each in backends):
        elements(IDENTICAL)[place] = b""
    _add_backends(elements(ENDPOINTS), place, backends, 0)
    if balance.affinity_seconds:
        _add_ids(elements(IDS), elements(STICKY), place, backends, 0)
    if balance.outside is not None:
        outside = balance.outside[:MOST_BACKENDS]
        if outside:
            elements(OUTSIDE)[place] = _WORD.pack(len(outside) | (word & HAS_AFFINITY))
            _add_backends(elements(ENDPOINTS), place, outside, OUTSIDE_SLOT)
            if balance.affinity_seconds:
                _add_ids(elements(IDS), elements(STICKY), place, outside, OUTSIDE_SLOT)
        else:
            elements(DROPPED)[place] = b""
    if balance.sources is not None and address is not None:
        elements(FIREWALLED)[place] = b""
        allowed = elements(ALLOWED)
        for each in balance.sources:
            allowed[place + each.first + place + each.last] = b""


_FLAGS = {Snat.NEVER: 0, Snat.FOREIGN: SNAT_FOREIGN, Snat.ALWAYS: SNAT_ALWAYS}


def _add_backends(
    elements: dict[bytes, bytes], place: bytes, backends: tuple[Backend, ...], first: int
) -> None:
    for slot, (address, port) in enumerate(backends, first):
        elements[place + _WORD.pack(slot)] = address + _PORT.pack(port)


def _add_ids(
    ids: dict[bytes, bytes],
    sticky: dict[bytes, bytes],
    place: bytes,
    backends: tuple[Backend, ...],
    first: int,
) -> None:
    """Number the backends by what they are, so that one keeps its number when others come and go.

    OUTSIDE_ID tells outsiders' backends from others': what lives for the ones may not for the others.
    """
    taken: set[int] = set()
    for slot, (address, port) in enumerate(backends, first):
        data = address + _PORT.pack(port)
        number = crc32(data) & 0xFFFFFFFE
        while number in taken:
            number = (number + 2) & 0xFFFFFFFE
        taken.add(number)
        packed = _WORD.pack(number | (OUTSIDE_ID if first else 0))
        ids[place + _WORD.pack(slot)] = packed
        sticky[place + packed] = data
