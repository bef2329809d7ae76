"""What the kernel should hold, as values. Pure: knows no netlink, no Kubernetes, no time.

Addresses are packed bytes in network order (4 for IPv4, 16 for IPv6), MAC addresses are 6 bytes;
`datapath.text` renders them. Each value has a `key`: two values of one kind with one key exclude each other
in the kernel, so a change of anything else is a replacement. `object_key` adds the kind, whose rank is also
the order of creation.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from datapath.nft.rules import Table

Address: TypeAlias = bytes
Mac: TypeAlias = bytes

ROUTE_PROTOCOL = 119
"""rtm_protocol of every route of ours, so that stale ones are recognised (unassigned in rtnetlink.h)."""

VXLAN_LINK = "weft.vxlan"
VXLAN6_LINK = "weft.vxlan6"
VETH_PREFIX = "weft"
"""Host veths are named this plus 11 hexadecimal digits; `weft.` starts the names of our other links."""


SYSCTL: Final = 0
LINK: Final = 1
LINK_SYSCTL: Final = 2
ADDRESS: Final = 3
NEIGHBOUR: Final = 4
FDB: Final = 5
ROUTE: Final = 6
"""Kinds of objects, ranked: what is created first comes first, and what is deleted first comes last."""

RANKS: Final = range(ROUTE + 1)
SETTINGS: Final = (SYSCTL, LINK_SYSCTL)


class RouteKind(IntEnum):
    """rtm_type of linux/rtnetlink.h."""

    UNICAST = 1
    UNREACHABLE = 7


@dataclass(frozen=True, slots=True)
class VxlanLink:
    """A VXLAN device without learning, with all its peers set from outside (linux/if_link.h, IFLA_VXLAN_*).

    `up` is False only in what is observed: everything that is desired is up.
    """

    rank: ClassVar[int] = LINK
    name: str
    vni: int
    port: int
    mac: Mac
    local: Address
    mtu: int
    tx_checksum: bool = True
    up: bool = True

    @property
    def key(self) -> str:
        """The link's name."""
        return self.name


@dataclass(frozen=True, slots=True)
class PodLink:
    """The node's end of an attachment. `datapath.attachment` makes it: desired is only that it is up."""

    rank: ClassVar[int] = LINK
    name: str
    up: bool = True

    @property
    def key(self) -> str:
        """The link's name."""
        return self.name


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """An address of a link of ours."""

    rank: ClassVar[int] = ADDRESS
    link: str
    address: Address
    length: int

    @property
    def key(self) -> tuple[str, Address]:
        """Link name and address."""
        return (self.link, self.address)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A permanent neighbour: at `link`, `address` is reached at `mac`."""

    rank: ClassVar[int] = NEIGHBOUR
    link: str
    address: Address
    mac: Mac

    @property
    def key(self) -> tuple[str, Address]:
        """Link name and address."""
        return (self.link, self.address)


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """A permanent VXLAN forwarding entry: frames to `mac` go to the VTEP at `remote`."""

    rank: ClassVar[int] = FDB
    link: str
    mac: Mac
    remote: Address

    @property
    def key(self) -> tuple[str, Mac]:
        """Link name and MAC address."""
        return (self.link, self.mac)


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the main table with protocol ROUTE_PROTOCOL."""

    rank: ClassVar[int] = ROUTE
    destination: Address
    length: int
    link: str | None
    gateway: Address | None = None
    source: Address | None = None
    onlink: bool = False
    kind: RouteKind = RouteKind.UNICAST
    metric: int = 0

    @property
    def key(self) -> tuple[Address, int, int]:
        """Destination, prefix length and metric."""
        return (self.destination, self.length, self.metric)


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A kernel setting, `path` relative to /proc/sys, e.g. net/ipv4/ip_forward.

    One below conf/ or neigh/ of a link of ours comes and goes with that link. None is ever taken back: what
    it was before is not ours to know. With `least` it is a number, raised to `value` and never lowered.
    """

    path: str
    value: str
    least: bool = False

    @property
    def link(self) -> str | None:
        """The link of ours that it belongs to: `weft.vxlan` of net/ipv4/conf/weft.vxlan/rp_filter."""
        parts = self.path.split("/")
        return parts[3] if len(parts) == 5 and parts[3].startswith(VETH_PREFIX) else None

    def met_by(self, current: str) -> bool:
        """Whether nothing has to be written where the kernel has this value."""
        if self.least and current.isdecimal():
            return int(current) >= int(self.value)
        return current == self.value

    @property
    def rank(self) -> int:
        """LINK_SYSCTL or SYSCTL."""
        return LINK_SYSCTL if self.link else SYSCTL

    @property
    def key(self) -> str:
        """The path."""
        return self.path


@dataclass(frozen=True, slots=True)
class SetElements:
    """The elements that one nftables set or map should hold, encoded for its layout (datapath.nft.elements).

    `elements` maps an element's encoded key (both ends for an interval) to its encoded data, b"" in a set.
    """

    table: tuple[int, str]
    name: str
    elements: Mapping[bytes, bytes]

    @property
    def key(self) -> tuple[int, str, str]:
        """Family, table and set name."""
        return (*self.table, self.name)


KernelObject: TypeAlias = VxlanLink | PodLink | LinkAddress | Neighbour | FdbEntry | Route | Sysctl
ObjectKey: TypeAlias = "tuple[int, Hashable]"
"""Rank and key: names an object among those of all kinds."""
SetKey: TypeAlias = tuple[int, str, str]
"""Family, table and set name."""
FragmentKey: TypeAlias = tuple[str, ...]
"""What a fragment belongs to: ("node", name), ("local",), ("attachment", host link)."""


def object_key(value: KernelObject) -> ObjectKey:
    """Return the rank and key of an object."""
    return (value.rank, value.key)


@dataclass(frozen=True, slots=True)
class Fragment:
    """What one key (a remote node, the local node, an attachment) wants in the kernel.

    The desired state is the union of all fragments; where two claim one key the smaller fragment key wins,
    so that the result does not depend on the order in which they came.
    """

    objects: tuple[KernelObject, ...] = ()
    elements: tuple[SetElements, ...] = ()
    tables: tuple[Table, ...] = ()
