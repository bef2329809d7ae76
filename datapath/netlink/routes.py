"""Routes as rtnetlink messages, and back (linux/rtnetlink.h).

Owns their layout. Encoders take the values of `datapath.desired` and the index of the link that they name;
decoders leave the link an index, as only the caller knows the names.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING

from datapath.desired import ROUTE_PROTOCOL, Route, RouteKind
from datapath.netlink.attributes import attribute, family_of, integer, parse, u32
from datapath.netlink.transport import NLM_F_CREATE, NLM_F_REPLACE, Message

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datapath.desired import Address

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTNLGRP_IPV4_ROUTE = 7
RTNLGRP_IPV6_ROUTE = 11

TABLE_MAIN = 254
PROTOCOL_BOOT = 3
"""rtm_protocol of what a tool configures once, as `ip route add` does."""
IPV6_DEFAULT_METRIC = 1024

_PUT = NLM_F_CREATE | NLM_F_REPLACE
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_NOWHERE = 0, 253, 255
# Scopes that nobody gave a meaning: RT_SCOPE_SITE is 200. A prime, so that regular prefixes spread evenly.
_SCOPES = 199
_RTNH_F_ONLINK = 4
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_TABLE = 1, 4, 5, 6, 7, 15
_RTMSG = Struct("=BBBBBBBBI")
_TYPE_PLACE, _LOCAL = 7, 2
# Looking up a member of an enumeration takes as long as packing a message.
_UNICAST = RouteKind.UNICAST

# The shapes written by the thousand, by length of the destination: rtmsg, RTA_DST, RTA_OIF, RTA_GATEWAY or
# RTA_PREFSRC (towards a pod), or both (towards a node).
_LAST = {4: Struct("=BBBBBBBBIHH4sHHIHH4s"), 16: Struct("=BBBBBBBBIHH16sHHIHH16s")}
_BOTH = {4: Struct("=BBBBBBBBIHH4sHHIHH4sHH4s"), 16: Struct("=BBBBBBBBIHH16sHHIHH16sHH16s")}


@dataclass(frozen=True, slots=True)
class RouteState:
    """A route as the kernel lists it.

    `metric` is 0 for the family's default, so that it compares with a desired route; `link_index` is 0 where
    the kind of route has no link.
    """

    destination: Address
    length: int
    link_index: int
    gateway: Address | None
    source: Address | None
    onlink: bool
    kind: int
    metric: int
    protocol: int
    table: int

    def route(self, names: Mapping[int, str]) -> Route | None:
        """Return the desired value that this is; None when its kind or link is none that one can have."""
        if self.kind not in _ROUTE_KINDS or (self.link_index and self.link_index not in names):
            return None
        return Route(
            destination=self.destination,
            length=self.length,
            link=names[self.link_index] if self.link_index else None,
            gateway=self.gateway,
            source=self.source,
            onlink=self.onlink,
            kind=RouteKind(self.kind),
            metric=self.metric,
        )


_ROUTE_KINDS = frozenset(int(kind) for kind in RouteKind)


def new_route(
    route: Route, link_index: int = 0, *, flags: int = _PUT, protocol: int = ROUTE_PROTOCOL
) -> Message:
    """Return the message that creates or replaces a route of the main table."""
    scope = _SCOPE_UNIVERSE
    if len(route.destination) == 4 and route.kind is _UNICAST:
        scope = _SCOPE_LINK if route.gateway is None else _spread(route.destination, route.length)
    return Message(RTM_NEWROUTE, flags, _route_payload(route, link_index, protocol, scope))


def _spread(destination: Address, length: int) -> int:
    """Return the scope of an IPv4 route by way of a gateway: one of many, by its prefix; 0 for the default.

    For each new route the kernel looks for an equal next hop among those of the same hash, and hashes link,
    protocol, source, metric and scope, but not the gateway (net/ipv4/fib_semantics.c). With one scope, the
    routes to thousands of nodes are all compared with each other, in a quarter of a second for 5,000. Any
    scope below that of a link means the same to a lookup.
    """
    return (int.from_bytes(destination, "big") >> 32 - length) % _SCOPES


def del_route(route: Route, link_index: int = 0, *, protocol: int = ROUTE_PROTOCOL) -> Message:
    """Return the message that deletes a route, matched by all that `route` says and by our protocol."""
    # The scope of a deletion is a lower bound in IPv4: NOWHERE matches every route.
    return Message(RTM_DELROUTE, 0, _route_payload(route, link_index, protocol, _SCOPE_NOWHERE))


def get_routes(family: int, *, protocol: int = 0, link_index: int = 0) -> Message:
    """Return the dump of one family's routes; the kernel filters by what is not 0."""
    wanted = u32(_RTA_OIF, link_index) if link_index else b""
    return Message(RTM_GETROUTE, 0, _RTMSG.pack(family, 0, 0, 0, 0, protocol, 0, 0, 0) + wanted)


def get_route(destination: Address) -> Message:
    """Return the question by which route a packet to an address would leave."""
    length = 8 * len(destination)
    header = _RTMSG.pack(family_of(destination), length, 0, 0, 0, 0, 0, 0, 0)
    return Message(RTM_GETROUTE, 0, header + attribute(_RTA_DST, destination))


def is_local(payload: bytes) -> bool:
    """Whether the answer to `get_route` says that the address is one of the namespace's own."""
    return payload[_TYPE_PLACE] == _LOCAL


def decode_route(payload: bytes) -> RouteState:
    """Return the route of an RTM_NEWROUTE or RTM_DELROUTE payload. Raises NetlinkFormatError."""
    family, length, _, _, table, protocol, _, kind, flags = _RTMSG.unpack_from(payload)
    found = parse(payload, _RTMSG.size)
    metric = integer(found.get(_RTA_PRIORITY, b""))
    link_index = integer(found.get(_RTA_OIF, b""))
    if family == socket.AF_INET6:
        metric = 0 if metric == IPV6_DEFAULT_METRIC else metric
        if kind != RouteKind.UNICAST:
            link_index = 0  # the kernel lists lo
    return RouteState(
        destination=found.get(_RTA_DST) or bytes(4 if family == socket.AF_INET else 16),
        length=length,
        link_index=link_index,
        gateway=found.get(_RTA_GATEWAY),
        source=found.get(_RTA_PREFSRC),
        onlink=bool(flags & _RTNH_F_ONLINK),
        kind=kind,
        metric=metric,
        protocol=protocol,
        table=integer(found[_RTA_TABLE]) if _RTA_TABLE in found else table,
    )


def _route_payload(route: Route, link_index: int, protocol: int, scope: int) -> bytes:
    destination, gateway, source, length = route.destination, route.gateway, route.source, route.length
    family = family_of(destination)
    flags = _RTNH_F_ONLINK if route.onlink else 0
    head = (family, length, 0, 0, TABLE_MAIN, protocol, scope, route.kind, flags)
    if link_index and length and not route.metric:
        size = 4 + len(destination)
        place = (size, _RTA_DST, destination, 8, _RTA_OIF, link_index, size)
        if gateway is not None and source is not None:
            last = (_RTA_GATEWAY, gateway, size, _RTA_PREFSRC, source)
            return _BOTH[len(destination)].pack(*head, *place, *last)
        if gateway is not None:
            return _LAST[len(destination)].pack(*head, *place, _RTA_GATEWAY, gateway)
        if source is not None:
            return _LAST[len(destination)].pack(*head, *place, _RTA_PREFSRC, source)
    parts = [_RTMSG.pack(*head)]
    if length:
        parts.append(attribute(_RTA_DST, destination))
    if link_index:
        parts.append(u32(_RTA_OIF, link_index))
    if gateway is not None:
        parts.append(attribute(_RTA_GATEWAY, gateway))
    if source is not None:
        parts.append(attribute(_RTA_PREFSRC, source))
    if route.metric:
        parts.append(u32(_RTA_PRIORITY, route.metric))
    return b"".join(parts)
