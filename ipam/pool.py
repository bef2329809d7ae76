"""Arithmetic over a node's pod CIDR. Pure: knows no database and no time.

Addresses are packed bytes in network order; an offset counts from the prefix's first address. Nothing
enumerates a pool, so a /64 costs what a /24 costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple

RESERVED_LOW = 2
"""Offset of the first address handed out.

Before it come the network address, the node's end of the tunnels, and one that many take for a gateway."""
QUEUE_LIMIT = 4096
"""From so many released addresses on, the longest released is taken before one never used.

In a pool of this size or less the address that has been free for longest is always the one taken. In a larger
one this bounds what is remembered, and an address still rests for thousands of releases."""


@dataclass(frozen=True, slots=True)
class Pool:
    """A pod CIDR of this node.

    Attributes:
        network: the prefix's first address.
        length: the prefix's length.
    """

    network: bytes
    length: int

    def __post_init__(self) -> None:
        if len(self.network) not in (4, 16) or not 0 <= self.length <= self.bits:
            raise ValueError(f"{self.network.hex()}/{self.length} is no prefix")
        if int.from_bytes(self.network, "big") % (1 << (self.bits - self.length)):
            raise ValueError(f"{self.text} has host bits set")

    @property
    def bits(self) -> int:
        """32 or 128."""
        return len(self.network) * 8

    @property
    def text(self) -> str:
        """The prefix, printable."""
        return f"{ip_address(self.network)}/{self.length}"

    @property
    def end(self) -> int:
        """The offset after the last address that can be handed out; IPv4's broadcast address can't."""
        return (1 << (self.bits - self.length)) - (1 if self.bits == 32 else 0)

    @property
    def size(self) -> int:
        """How many addresses can be handed out."""
        return max(0, self.end - RESERVED_LOW)

    @property
    def span(self) -> tuple[bytes, bytes]:
        """The first and the last address that can be handed out."""
        return self.address(RESERVED_LOW), self.address(self.end - 1)

    def address(self, offset: int) -> bytes:
        """Return the address at an offset within the prefix."""
        return (int.from_bytes(self.network, "big") + offset).to_bytes(len(self.network), "big")

    def offset(self, address: bytes) -> int:
        """Return the offset of an address of this family; out of the prefix it is negative or too large."""
        return int.from_bytes(address, "big") - int.from_bytes(self.network, "big")

    def hands_out(self, address: bytes) -> bool:
        """Whether the address is in the prefix and not reserved."""
        return len(address) == len(self.network) and RESERVED_LOW <= self.offset(address) < self.end


class Released(NamedTuple):
    """An address that was given back, and when (nanoseconds of CLOCK_BOOTTIME)."""

    address: bytes
    at: int


@dataclass(frozen=True, slots=True)
class Usage:
    """A pool's figures; `free` counts what is rested or was never used."""

    pool: Pool
    size: int
    used: int
    cooling: int

    @property
    def free(self) -> int:
        """Addresses that can be handed out without cutting a rest short."""
        return max(0, self.size - self.used - self.cooling)


def shortfall(pools: tuple[Pool, ...], max_pods: int) -> tuple[Pool, ...]:
    """Return the pools that can't hold `max_pods` pods at once (kubelet's maxPods)."""
    return tuple(pool for pool in pools if pool.size < max_pods)
