"""What only ethtool's ioctl does to a link (linux/ethtool.h): checksum offload, and waiting until it sends.

Owns the layout of struct ifreq and ethtool_value; decides nothing.
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
from struct import Struct

from datapath.errors import DatapathError

_SIOCETHTOOL = 0x8946
_ETHTOOL_GLINK = 0x0A
_ETHTOOL_GTXCSUM = 0x16
_ETHTOOL_STXCSUM = 0x17
_IFREQ = Struct("@16sP16x")
_Value = ctypes.c_uint32 * 2


def tx_checksum(link: str) -> bool:
    """Return whether the link leaves checksums to the layers below. Raises DatapathError."""
    return bool(_ethtool(link, _ETHTOOL_GTXCSUM, 0))


def set_tx_checksum(link: str, *, enabled: bool) -> None:
    """Leave checksums to the layers below, or compute them here. Raises DatapathError."""
    _ethtool(link, _ETHTOOL_STXCSUM, int(enabled))


def settle(descriptor: int, link: str) -> bool:
    """Return whether a link has a carrier; if it has, it sends from now on.

    The first end of a veth that goes up has no carrier then. It gets it with the other end, but drops what it
    should send until a work queue of the kernel comes to it, which takes 17 ms and more on a busy machine.
    This question has that done at once (linkwatch_sync_dev in net/core/link_watch.c).

    Args:
        descriptor: any socket of the link's namespace; the calling thread may be in another.
        link: name of the link there.

    Raises:
        DatapathError: it can't be asked.
    """
    return bool(_command(descriptor, link, _ETHTOOL_GLINK, 0, "carrier"))


def _ethtool(link: str, command: int, value: int) -> int:
    """Run one command on a link of the calling thread's namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as opened:
        return _command(opened.fileno(), link, command, value, "checksum offload")


def _command(descriptor: int, link: str, command: int, value: int, what: str) -> int:
    answer = _Value(command, value)
    try:
        fcntl.ioctl(descriptor, _SIOCETHTOOL, _IFREQ.pack(link.encode(), ctypes.addressof(answer)))
    except OSError as error:
        raise DatapathError(f"{what} of {link}: {error.strerror}") from error
    return answer[1]
