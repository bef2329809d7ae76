"""One connection of a client of the CNI socket: bytes between the socket and the protocol, never waiting.

Owns the socket and what it did not take yet. Knows no calls and who waits for them: `daemon.cni.server` does.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import structlog

from daemon.cni.http2 import Connection

if TYPE_CHECKING:
    from daemon.cni.http2 import Request, Reset

log = structlog.get_logger()

MESSAGE_LIMIT = 2 << 20
_READ_BYTES = 64 << 10
# As plain integers: the socket module's are enumerations, and `|` of those costs more than the receive.
_RECEIVE = int(socket.MSG_DONTWAIT)
_SEND = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class Listening(socket.socket):
    """A listening socket that accepts connections in half the time.

    The inherited properties make an enumeration of what the kernel knows anyway, twice for each connection.
    """

    family = socket.AF_UNIX
    type = socket.SOCK_STREAM


class Client:
    """A connection.

    Attributes:
        connection: the protocol's state.
        descriptor: the socket's, also after the end.
        blocked: the client has to read before anything is taken from it.
        gone: the client has closed the connection.
    """

    def __init__(self, opened: socket.socket) -> None:
        self.connection = Connection(MESSAGE_LIMIT)
        self.descriptor = opened.fileno()
        self.blocked = self.gone = False
        self._socket = opened
        self._unsent = b""

    def receive(self) -> list[Request | Reset]:
        """Return what the client asks for now; nothing may be there."""
        if self.blocked:
            return []
        try:
            data = self._socket.recv(_READ_BYTES, _RECEIVE)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self.gone = True
            return []
        return self.connection.receive(data, time.perf_counter())

    def leave(self) -> None:
        """Tell that no more calls are taken."""
        self.connection.leave()

    def flush(self) -> bool:
        """Send what the client takes; returns whether the connection is to be closed."""
        data = self.connection.take()
        if self._unsent:
            data = self._unsent + data
        if data and not self.gone:
            try:
                data = data[self._socket.send(data, _SEND) :]
            except BlockingIOError:
                pass
            except OSError:
                self.gone = True
        self._unsent = data
        self.blocked = bool(data)
        if self.connection.fault and not self.gone and not data:
            log.warning("a client of the CNI socket was cut off", reason=self.connection.fault)
            return True
        return self.gone

    def close(self) -> None:
        """Close the socket; may be repeated."""
        self._socket.close()
