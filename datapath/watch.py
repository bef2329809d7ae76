"""Notices what others do to the kernel: links, addresses, routes, neighbours, forwarding switched off.

Owns one socket, read on the event loop when the writer's thread has heard of something in it and has time to
say so; what a notification means for the desired state is for the reader to judge. Our own changes are
dropped in the kernel by a socket filter: a bulk write makes as many notifications as it has messages. Some
losses have no notification (a link that goes down takes its IPv4 routes along in silence), which is why links
and addresses are told of as such.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
from dataclasses import dataclass, field
from struct import Struct
from typing import TYPE_CHECKING, Protocol

from datapath.desired import ADDRESS, FDB, LINK, NEIGHBOUR, ROUTE, VETH_PREFIX
from datapath.errors import NetlinkFormatError, NetlinkOverrunError
from datapath.netlink.addresses import (
    RTM_DELADDR,
    RTM_NEWADDR,
    RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV6_IFADDR,
    decode_address,
)
from datapath.netlink.attributes import integer, parse
from datapath.netlink.links import RTM_DELLINK, RTM_NEWLINK, RTNLGRP_LINK, decode_link_name, get_links
from datapath.netlink.neighbours import (
    AF_BRIDGE,
    RTM_DELNEIGH,
    RTM_NEWNEIGH,
    RTNLGRP_NEIGH,
    decode_fdb,
    decode_neighbour,
)
from datapath.netlink.routes import (
    RTM_DELROUTE,
    RTM_NEWROUTE,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV6_ROUTE,
    TABLE_MAIN,
    decode_route,
)
from datapath.netlink.transport import Socket
from datapath.observe import OWN_LINK

if TYPE_CHECKING:
    from collections.abc import Callable

    from datapath.desired import Address, ObjectKey
    from datapath.netlink.transport import Notification

RTM_NEWNETCONF = 80
RTM_DELNETCONF = 81
RTNLGRP_IPV4_NETCONF = 24
RTNLGRP_IPV6_NETCONF = 25
_NETCONFA_IFINDEX, _NETCONFA_FORWARDING, _NETCONFA_RP_FILTER = 1, 2, 3
_NETCONF_ALL = 0xFFFFFFFF
_NETCONF_HEADER_BYTES = 4
_GROUPS = (
    RTNLGRP_LINK,
    RTNLGRP_NEIGH,
    RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV6_IFADDR,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV6_ROUTE,
    RTNLGRP_IPV4_NETCONF,
    RTNLGRP_IPV6_NETCONF,
)
_LOOSE = 2
GATHER_SECONDS = 0.1
"""From a notification until it is read, with those that follow: every ADD causes five, a DEL as many, and the
loop has better to do then."""
_DATAGRAMS = 64
"""Read in one go before other tasks get their turn."""

_SO_ATTACH_FILTER = 26
_INSTRUCTION = Struct("=HBBI")
_PROGRAM = Struct("@HP")
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _JUMP_EQUAL, _RETURN = 0x20, 0x28, 0x30, 0x15, 0x06


@dataclass(slots=True)
class Noticed:
    """What happened since the last look.

    Attributes:
        objects: objects of our kinds that somebody removed or changed; it matters if one of them is desired.
        links: other links that changed in some way.
        addresses: addresses that came or went on other links.
        forwarding: whether somebody switched forwarding off, or strict reverse path filtering on.
        overrun: whether notifications were lost; then everything may have happened.
    """

    objects: set[ObjectKey] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    addresses: set[Address] = field(default_factory=set)
    forwarding: bool = False
    overrun: bool = False

    def __bool__(self) -> bool:
        return bool(self.objects or self.links or self.addresses or self.forwarding or self.overrun)


class Ear(Protocol):
    """What hears when something comes to a socket (datapath.writer.Writer)."""

    def overhear(self, descriptor: int, heard: Callable[[], None]) -> None:
        """Call `heard` on the running event loop, once, when the descriptor is readable."""

    def ignore(self, descriptor: int) -> None:
        """Forget a descriptor."""


class Watch:
    """Notifications of one network namespace, on the running event loop.

    Args:
        ear: tells when there are some.
        namespace: descriptor of it; None is that of the calling thread.
        own_port: netlink port whose changes are our own.
    """

    def __init__(self, ear: Ear, *, namespace: int | None = None, own_port: int = 0) -> None:
        self._ear = ear
        self._closed = False
        self._socket = Socket(namespace=namespace, groups=_GROUPS)
        self._names: dict[int, str] = {}
        self._noticed = Noticed()
        self._ready = asyncio.Event()
        if own_port:
            _attach_filter(self._socket.fileno(), own_port)
        with Socket(namespace=namespace) as other:
            for payload in other.dump(get_links(), "links could not be read"):
                index, name, _ = decode_link_name(payload)
                self._names[index] = name
        self._loop = asyncio.get_running_loop()
        self._reading: asyncio.Handle | None = None
        self._ear.overhear(self._socket.fileno(), self._heed)

    def close(self) -> None:
        """Stop listening."""
        if self._reading is not None:
            self._reading.cancel()
        self._ear.ignore(self._socket.fileno())
        self._closed = True
        self._socket.close()

    async def next(self) -> Noticed:
        """Wait until something happened and return it; cancelling loses nothing."""
        await self._ready.wait()
        self._ready.clear()
        noticed, self._noticed = self._noticed, Noticed()
        return noticed

    def _heed(self) -> None:
        if not self._closed:
            self._reading = self._loop.call_later(GATHER_SECONDS, self._read)

    def _read(self) -> None:
        self._reading = None
        for _ in range(_DATAGRAMS):
            try:
                notifications = self._socket.receive()
            except NetlinkOverrunError:
                self._noticed.overrun = True
                continue
            if not notifications:
                self._ear.overhear(self._socket.fileno(), self._heed)
                break
            for notification in notifications:
                try:
                    self._judge(notification)
                except NetlinkFormatError:
                    self._noticed.overrun = True
        else:
            self._reading = self._loop.call_soon(self._read)
        if self._noticed:
            self._ready.set()

    def _judge(self, notification: Notification) -> None:
        kind, payload = notification.kind, notification.payload
        if kind in (RTM_NEWROUTE, RTM_DELROUTE):
            route = decode_route(payload)
            if route.table == TABLE_MAIN:
                self._noticed.objects.add((ROUTE, (route.destination, route.length, route.metric)))
        elif kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
            self._judge_neighbour(payload)
        elif kind in (RTM_NEWLINK, RTM_DELLINK):
            self._judge_link(kind, payload)
        elif kind in (RTM_NEWADDR, RTM_DELADDR):
            self._judge_address(kind, payload)
        elif kind == RTM_NEWNETCONF:
            self._judge_settings(payload)

    def _judge_link(self, kind: int, payload: bytes) -> None:
        index, name, up = decode_link_name(payload)
        if kind == RTM_DELLINK:
            self._names.pop(index, None)
        else:
            self._names[index] = name
        if name.startswith(OWN_LINK):
            self._noticed.objects.add((LINK, name))
        elif not name.startswith(VETH_PREFIX):
            self._noticed.links.add(name)
        elif kind == RTM_DELLINK or not up:
            self._noticed.objects.add((LINK, name))

    def _judge_address(self, kind: int, payload: bytes) -> None:
        state = decode_address(payload)
        name = self._names.get(state.link_index, "")
        if not name.startswith(VETH_PREFIX):
            self._noticed.addresses.add(state.address)
        elif kind == RTM_DELADDR:
            self._noticed.objects.add((ADDRESS, (name, state.address)))

    def _judge_neighbour(self, payload: bytes) -> None:
        if payload[0] == AF_BRIDGE:
            entry = decode_fdb(payload)
            name = self._names.get(entry.link_index, "")
            if name.startswith(OWN_LINK):
                self._noticed.objects.add((FDB, (name, entry.mac)))
            return
        state = decode_neighbour(payload)
        name = self._names.get(state.link_index, "")
        if name.startswith(OWN_LINK):
            self._noticed.objects.add((NEIGHBOUR, (name, state.address)))

    def _judge_settings(self, payload: bytes) -> None:
        found = parse(payload, _NETCONF_HEADER_BYTES)
        index = integer(found.get(_NETCONFA_IFINDEX, b""))
        ours = self._names.get(index, "").startswith(OWN_LINK)
        if index != _NETCONF_ALL and not ours:
            return
        if _NETCONFA_FORWARDING in found and not integer(found[_NETCONFA_FORWARDING]):
            self._noticed.forwarding = True
        if ours and _NETCONFA_RP_FILTER in found and integer(found[_NETCONFA_RP_FILTER]) != _LOOSE:
            self._noticed.forwarding = True


def _attach_filter(descriptor: int, port: int) -> None:
    """Drop in the kernel what is of no interest (linux/filter.h).

    That is: what `port` caused; new forwarding entries, which name no cause; routes of other tables than the
    main one, of which every address brings some; the settings of links that are gone.
    """
    # The filter loads in network order what netlink writes in the machine's.
    own = socket.htonl(port)
    neighbour, settings = socket.htons(RTM_NEWNEIGH), socket.htons(RTM_DELNETCONF)
    route, no_route = socket.htons(RTM_NEWROUTE), socket.htons(RTM_DELROUTE)
    program = (
        (_LOAD_WORD, 0, 0, 12),  # nlmsg_pid
        (_JUMP_EQUAL, 10, 0, own),
        (_LOAD_HALF, 0, 0, 4),  # nlmsg_type
        (_JUMP_EQUAL, 3, 0, neighbour),
        (_JUMP_EQUAL, 4, 0, route),
        (_JUMP_EQUAL, 3, 0, no_route),
        (_JUMP_EQUAL, 5, 4, settings),
        (_LOAD_BYTE, 0, 0, 16),  # ndm_family
        (_JUMP_EQUAL, 3, 2, AF_BRIDGE),
        (_LOAD_BYTE, 0, 0, 20),  # rtm_table
        (_JUMP_EQUAL, 0, 1, TABLE_MAIN),
        (_RETURN, 0, 0, 0xFFFFFFFF),
        (_RETURN, 0, 0, 0),
    )
    code = b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: the pointer is aligned, which "@" gives.
    packed = _PROGRAM.pack(len(program), ctypes.addressof(buffer))
    with socket.socket(fileno=os.dup(descriptor)) as same:
        same.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, packed)
