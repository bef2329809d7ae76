"""Text forms of packed addresses, for messages, logs and files; inside, addresses stay packed."""

from __future__ import annotations

import socket
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datapath.desired import Address, Mac

_FAMILIES = {4: socket.AF_INET, 16: socket.AF_INET6}


@lru_cache(maxsize=4096)
def address(packed: Address) -> str:
    """Return the usual text of a packed address: `10.0.0.1`, `fd00::1`. Raises ValueError."""
    family = _FAMILIES.get(len(packed))
    if family is None:
        raise ValueError(f"{packed!r} is no address: it has {len(packed)} bytes, not 4 or 16")
    return socket.inet_ntop(family, packed)


def parse_address(text: str) -> Address:
    """Return the packed form, 4 or 16 bytes. Raises ValueError when the text is no IP address."""
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError) as error:
        raise ValueError(f"{text!r} is no IP address") from error


def prefix(packed: Address, length: int) -> str:
    """Return the text of a prefix: `10.0.0.0/24`."""
    return f"{address(packed)}/{length}"


def parse_prefix(text: str) -> tuple[Address, int]:
    """Return packed address and length of a prefix, host bits as they stand. Raises ValueError."""
    start, slash, digits = text.partition("/")
    packed = parse_address(start)
    if not slash or not (digits.isascii() and digits.isdigit()) or int(digits) > 8 * len(packed):
        raise ValueError(f"{text!r} is no prefix: a length of 0 to {8 * len(packed)} must follow the slash")
    return packed, int(digits)


def mac(packed: Mac) -> str:
    """Return the text of a MAC address: `02:00:0a:00:00:01`. Raises ValueError on another length."""
    if len(packed) != 6:
        raise ValueError(f"{packed!r} is no MAC address: it has {len(packed)} bytes, not 6")
    return packed.hex(":")


def parse_mac(text: str) -> Mac:
    """Return the six bytes of a MAC address in colon form. Raises ValueError."""
    parts = text.split(":")
    try:
        if len(parts) == 6 and all(len(part) == 2 for part in parts):
            return bytes.fromhex("".join(parts))
    except ValueError:
        pass
    raise ValueError(f"{text!r} is no MAC address")
