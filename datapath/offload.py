"""Checksum offload of a link by ioctl (linux/ethtool.h): some NICs get those of VXLAN packets wrong.

Owns the layout of struct ifreq and ethtool_value; decides nothing.
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
from struct import Struct

from datapath.errors import DatapathError

_SIOCETHTOOL = 0x8946
_ETHTOOL_GTXCSUM = 0x16
_ETHTOOL_STXCSUM = 0x17
_VALUE = Struct("=II")
_IFREQ = Struct("@16sP16x")


def tx_checksum(link: str) -> bool:
    """Return whether the link leaves checksums to the layers below. Raises DatapathError."""
    return bool(_ethtool(link, _ETHTOOL_GTXCSUM, 0))


def set_tx_checksum(link: str, *, enabled: bool) -> None:
    """Leave checksums to the layers below, or compute them here. Raises DatapathError."""
    _ethtool(link, _ETHTOOL_STXCSUM, int(enabled))


def _ethtool(link: str, command: int, value: int) -> int:
    """Run one command on a link of the calling thread's namespace."""
    buffer = ctypes.create_string_buffer(_VALUE.pack(command, value), _VALUE.size)
    request = _IFREQ.pack(link.encode(), ctypes.addressof(buffer))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as opened:
        try:
            fcntl.ioctl(opened.fileno(), _SIOCETHTOOL, request)
        except OSError as error:
            raise DatapathError(f"checksum offload of {link}: {error.strerror}") from error
    return int(_VALUE.unpack(buffer.raw)[1])
