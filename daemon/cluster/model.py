"""The cluster as values: what `decode` makes of API objects and everything else in the daemon works with.

Pure: no client, no I/O, no time. Addresses are packed bytes in network order (4 or 16 bytes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Prefix(NamedTuple):
    """An IP prefix; host bits of `address` are zero."""

    address: bytes
    length: int


@dataclass(frozen=True, slots=True)
class Node:
    """The part of a v1 Node that the network depends on.

    `internal_ips` keeps the order of status.addresses, at most one per family; `underlay` replaces them where
    the node carries the annotation weft.dev/underlay-address (nodes behind NAT).
    """

    name: str
    uid: str
    internal_ips: tuple[bytes, ...]
    pod_cidrs: tuple[Prefix, ...]
    underlay: tuple[bytes, ...] = ()
    max_pods: int = 0
    network_unavailable: bool = False


@dataclass(frozen=True, slots=True)
class ServiceCIDR:
    """A networking.k8s.io/v1 ServiceCIDR: where ClusterIPs come from."""

    name: str
    cidrs: tuple[Prefix, ...]
