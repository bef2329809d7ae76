"""Host ports of an attachment as values, as text, and as claims that exclude each other. Pure.

The text is what the database keeps and people read: `8080->80/tcp`, with the address of the node in front
where the pod asked for one, `192.0.2.1:8080->80/tcp`, `[2001:db8::1]:53->5353/udp`, `0.0.0.0:80->80/tcp`.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
"""IP protocol numbers by name."""
NAMES = {number: name for name, number in PROTOCOLS.items()}
ANY = {4: bytes(4), 16: bytes(16)}
"""By length of an address: what stands for every address of the node."""

_FORM = re.compile(
    r"(?:(?P<four>[0-9.]+):|\[(?P<six>[0-9a-f:.]+)\]:)?(?P<port>[0-9]+)->(?P<target>[0-9]+)/(?P<protocol>[a-z]+)"
)


class PortMapping(NamedTuple):
    """A port of the node that leads to a port of the pod.

    `host_address` is packed: that of the node which it is; ANY for all of a family; b"" for all of both.
    `protocol` is an IP protocol number of PROTOCOLS.
    """

    host_address: bytes
    protocol: int
    host_port: int
    container_port: int

    def __str__(self) -> str:
        where = ""
        if self.host_address:
            host = str(ip_address(self.host_address))
            where = f"[{host}]:" if ":" in host else f"{host}:"
        return f"{where}{self.host_port}->{self.container_port}/{NAMES[self.protocol]}"


Claim: TypeAlias = tuple[bytes, int, int]
"""What only one attachment can hold: address of the node or ANY of its family, protocol, port."""


def claims(ports: Iterable[PortMapping], families: Iterable[int]) -> dict[Claim, PortMapping]:
    """Return what these ports claim for a pod with addresses of these lengths.

    A port at an address of a family that the pod lacks claims nothing.
    """
    lengths = tuple(families)
    found: dict[Claim, PortMapping] = {}
    for each in ports:
        for length in lengths:
            if len(each.host_address) in (0, length):
                claim = (each.host_address or ANY[length], each.protocol, each.host_port)
                found.setdefault(claim, each)
    return found


def write(ports: Iterable[PortMapping]) -> str:
    """Return ports as one text; "" for none."""
    return ",".join(map(str, ports))


def read(text: str) -> tuple[PortMapping, ...]:
    """Return the ports that `write` made a text of. Raises ValueError for any other."""
    return tuple(map(_read, text.split(","))) if text else ()


def _read(text: str) -> PortMapping:
    match = _FORM.fullmatch(text)
    if match is None or match["protocol"] not in PROTOCOLS:
        raise ValueError(f"{text!r} is no host port")
    host = match["four"] or match["six"]
    port, target = int(match["port"]), int(match["target"])
    if not (0 < port < 1 << 16 and 0 < target < 1 << 16):
        raise ValueError(f"{text!r} has a port that is none")
    address = ip_address(host).packed if host else b""
    return PortMapping(address, PROTOCOLS[match["protocol"]], port, target)
