"""Receives the packets that policies' rules log, on a thread of its own, and reads their headers.

Owns the socket that is bound to the log's group, and what of a packet is told. Knows no pods.
"""

from __future__ import annotations

import os
import select
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from datapath.errors import DatapathError
from datapath.netlink.transport import NETLINK_NETFILTER, Socket
from datapath.netlink.ulog import ULOG_PACKET, bind, decode_packet
from datapath.nft.policy import LOG_PREFIXES, LOGGED_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from datapath.netlink.ulog import LoggedPacket
    from datapath.policy import Direction

_DIRECTIONS = {prefix: direction for direction, prefix in LOG_PREFIXES.items()}
_WITH_PORTS = frozenset({6, 17, 132})
_EXTENSIONS = frozenset({0, 43, 60})
"""IPv6 headers that stand before the transport's and tell their length alike."""
_FRAGMENT = 44
_PORTS = struct.Struct("!HH")
_HALF = struct.Struct("!H")


class DeniedPacket(NamedTuple):
    """A packet that no policy let pass; ports are 0 where it has none, as later fragments have none."""

    direction: Direction
    source: bytes
    destination: bytes
    protocol: int
    source_port: int = 0
    destination_port: int = 0


def read_headers(logged: LoggedPacket) -> DeniedPacket | None:
    """Return what is told of a packet; None for one that no rule of policies logged, or that is cut short."""
    direction, packet = _DIRECTIONS.get(logged.prefix), logged.packet
    if direction is None or not packet:
        return None
    version = packet[0] >> 4
    if version == 4 and len(packet) >= 20:
        first = not _HALF.unpack_from(packet, 6)[0] & 0x1FFF
        ends, protocol, offset = (packet[12:16], packet[16:20]), packet[9], (packet[0] & 15) * 4
    elif version == 6 and len(packet) >= 40:
        ends = packet[8:24], packet[24:40]
        protocol, offset, first = _transport(packet)
    else:
        return None
    if not first or protocol not in _WITH_PORTS or len(packet) < offset + _PORTS.size:
        return DeniedPacket(direction, *ends, protocol)
    return DeniedPacket(direction, *ends, protocol, *_PORTS.unpack_from(packet, offset))


def _transport(packet: bytes) -> tuple[int, int, bool]:
    """Return an IPv6 packet's transport protocol, where it begins, and whether it is there at all."""
    kind, offset, first = packet[6], 40, True
    while len(packet) >= offset + 8:
        if kind in _EXTENSIONS:
            kind, offset = packet[offset], offset + 8 * (packet[offset + 1] + 1)
        elif kind == _FRAGMENT:
            first = first and not _HALF.unpack_from(packet, offset + 2)[0] & 0xFFF8
            kind, offset = packet[offset], offset + 8
        else:
            break
    return kind, offset, first


class PacketLog:
    """The receiver; `start` binds the group, `stop` leaves it to others.

    Args:
        group: nflog group.
        deliver: called on the receiver's thread with what came, one or more packets.
        namespace: descriptor of the network namespace; None is that of the thread that calls `start`.
    """

    def __init__(
        self, group: int, deliver: Callable[[list[DeniedPacket]], None], *, namespace: int | None = None
    ) -> None:
        self._group = group
        self._deliver = deliver
        self._namespace = namespace
        self._thread: threading.Thread | None = None
        self._wake = -1

    def start(self) -> None:
        """Bind the group, and receive from now on.

        Raises:
            DatapathError: the group is somebody else's, or the kernel has no nfnetlink_log.
        """
        socket = Socket(NETLINK_NETFILTER, namespace=self._namespace)
        try:
            action = f"packets of nflog group {self._group} can't be received"
            socket.batch([bind(self._group, LOGGED_BYTES)], action)
        except BaseException:
            socket.close()
            raise
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(
            target=self._run, args=(socket, self._wake), name="weft-packet-log", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread and unbind; may be repeated."""
        if self._thread is None:
            return
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)
        self._thread = None

    def _run(self, socket: Socket, wake: int) -> None:
        poll = select.poll()
        poll.register(socket.fileno(), select.POLLIN)
        poll.register(wake, select.POLLIN)
        with socket:
            while wake not in {descriptor for descriptor, _ in poll.poll()}:
                found = self._receive(socket)
                if found:
                    self._deliver(found)

    def _receive(self, socket: Socket) -> list[DeniedPacket]:
        # What is lost or can't be read is counted in nftables: somebody will say that some were not told.
        with suppress(DatapathError):
            read = [
                read_headers(decode_packet(each.payload))
                for each in socket.receive()
                if each.kind == ULOG_PACKET
            ]
            return [each for each in read if each is not None]
        return []
