"""Host ports in the skeleton: what their elements mean, and the rules that read them. Pure.

A connection to a port of this node goes to a port of a pod. A port at one address of the node comes before a
port at every address, and both come before node ports.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from datapath.desired import SetElements
from datapath.nft.rules import (
    DADDR_TYPE,
    DROP,
    IIFNAME,
    INET_PROTO,
    INET_SERVICE,
    IP6_DADDR,
    IP_DADDR,
    IP_SADDR,
    IPV4_ADDR,
    IPV6_ADDR,
    L4PROTO,
    OIFNAME,
    TH_DPORT,
    Chain,
    Counter,
    Equals,
    Family,
    Lookup,
    Protocol,
    Set,
    Starts,
    Translate,
    goto,
    jump,
    rule,
)
from datapath.text import address as show

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from datapath.desired import Address, SetKey
    from datapath.nft.rules import Rule

TABLE = "weft"
HOST_PORTS = "host-ports"
"""(protocol . port) to (address . port) of a pod: at every address of this node."""
HOST_PORTS_AT = "host-ports-at"
"""(address . protocol . port) to (address . port) of a pod: at that address alone."""

_CHAIN = "host-port"
_LOCAL = struct.pack("=I", 2)
_LOOPBACK = bytes((127, 0, 0, 0))
_LOOPBACK6 = bytes(15) + b"\1"
_PLACE = struct.Struct("!B3xH2x")
_PORT = struct.Struct("!H2x")
_FAMILIES = {IPV4_ADDR.size: Family.IPV4, IPV6_ADDR.size: Family.IPV6}


class HostPort(NamedTuple):
    """A port of this node that leads to a port of a pod.

    `host_address` is an address of this node; zeros for all of a family, b"" for all of both. One of a family
    that the pod lacks leads nowhere. `protocol` is an IP protocol number.
    """

    host_address: Address
    protocol: int
    port: int
    target_port: int


def host_port_elements(addresses: Iterable[Address], ports: Iterable[HostPort]) -> tuple[SetElements, ...]:
    """Return the elements for a pod with these addresses, at most one of each family."""
    wanted = tuple(ports)
    found: dict[SetKey, dict[bytes, bytes]] = {}
    for address in addresses:
        family = int(_FAMILIES[len(address)])
        for host_address, protocol, port, target_port in wanted:
            if len(host_address) not in (0, len(address)):
                continue
            place, target = _PLACE.pack(protocol, port), address + _PORT.pack(target_port)
            if any(host_address):
                found.setdefault((family, TABLE, HOST_PORTS_AT), {})[host_address + place] = target
            else:
                found.setdefault((family, TABLE, HOST_PORTS), {})[place] = target
    return tuple(SetElements(key[:2], key[2], elements) for key, elements in found.items())


def host_port_sets() -> tuple[SetKey, ...]:
    """Return the keys of all maps with host ports."""
    return tuple(
        (int(family), TABLE, name) for family in _FAMILIES.values() for name in (HOST_PORTS, HOST_PORTS_AT)
    )


def read_host_ports(elements: Mapping[SetKey, Mapping[bytes, bytes]]) -> dict[Address, tuple[HostPort, ...]]:
    """Return what elements of `host_port_sets` say, by address of the pod.

    A port at all addresses of both families comes back as two.
    """
    found: dict[Address, tuple[HostPort, ...]] = {}
    for (family, _, name), entries in elements.items():
        width = IPV4_ADDR.size if family == Family.IPV4 else IPV6_ADDR.size
        for place, target in sorted(entries.items()):
            host_address = place[:width] if name == HOST_PORTS_AT else bytes(width)
            protocol, port = _PLACE.unpack(place[-_PLACE.size :])
            (target_port,) = _PORT.unpack(target[width:])
            each = HostPort(host_address, protocol, port, target_port)
            found[target[:width]] = (*found.get(target[:width], ()), each)
    return found


def show_place(wanted: SetElements, place: bytes) -> str:
    """Return where an element of `host_port_elements` lets clients connect, in words: tcp 8080 (IPv6)."""
    protocol, port = _PLACE.unpack(place[-_PLACE.size :])
    name = Protocol(protocol).name.lower()
    if wanted.name == HOST_PORTS_AT:
        return f"{name} {port} at {show(place[: -_PLACE.size])}"
    return f"{name} {port} ({'IPv4' if wanted.table[0] == Family.IPV4 else 'IPv6'})"


def is_on_loopback(addresses: Iterable[Address], ports: Iterable[HostPort]) -> bool:
    """Whether 127.0.0.1 is among the addresses at which a pod with these addresses is reached."""
    return any(len(address) == IPV4_ADDR.size for address in addresses) and any(
        len(host_address) != IPV6_ADDR.size and (not any(host_address) or host_address[0] == _LOOPBACK[0])
        for host_address, *_ in ports
    )


def host_port_maps(family: Family) -> Iterator[Set]:
    """Yield the maps of one family's table."""
    address = IPV4_ADDR if family is Family.IPV4 else IPV6_ADDR
    place, target = (INET_PROTO, INET_SERVICE), (address, INET_SERVICE)
    yield Set(HOST_PORTS, place, target)
    yield Set(HOST_PORTS_AT, (address, *place), target)


def host_port_chain(family: Family) -> Chain:
    """Return the chain that leads new connections to pods."""
    daddr = IP_DADDR if family is Family.IPV4 else IP6_DADDR
    place = (L4PROTO, TH_DPORT)
    return Chain(
        _CHAIN,
        (
            rule(Translate(Lookup((daddr, *place), HOST_PORTS_AT))),
            rule(Translate(Lookup(place, HOST_PORTS))),
        ),
    )


def host_port_rule(family: Family) -> Rule:
    """Return the rule that leads there.

    A pod may ask for a port at any address: only what is for this node is taken, nobody's packets to others.
    Nor is ::1: the kernel sends nothing from there to another link, whatever its source becomes.
    """
    usable = () if family is Family.IPV4 else (Equals(IP6_DADDR, _LOOPBACK6, negate=True),)
    return rule(*usable, Equals(DADDR_TYPE, _LOCAL), jump(_CHAIN))


def loopback_guard(family: Family) -> tuple[Rule, ...]:
    """Return the rules for the head of prerouting: who asks for 127.0.0.1 from elsewhere gets nothing.

    Links of pods with a host port on loopback route to 127.0.0.0/8 (route_localnet), so that answers find
    back; without this a pod or a neighbour would reach what listens on this node's loopback (CVE-2020-8558).
    The kernel itself drops packets to ::1.
    """
    if family is not Family.IPV4:
        return ()
    return (
        rule(
            Starts(IP_DADDR, _LOOPBACK, 8),
            Equals(IIFNAME, b"lo".ljust(16, b"\0"), negate=True),
            Counter(),
            DROP,
            comment="loopback is for this node alone",
        ),
    )


def loopback_snat(family: Family, chain: str) -> tuple[Rule, ...]:
    """Return the rules for postrouting: the node's loopback address means another host to a pod."""
    if family is not Family.IPV4:
        return ()
    return (rule(Starts(IP_SADDR, _LOOPBACK, 8), Starts(OIFNAME, b"weft", 32), goto(chain)),)
