"""The service frontends of the skeleton: what their elements mean, and their encoding. Pure.

A frontend is where clients connect to, a balance what becomes of their new connections. `services` has the
chains that read these elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from datapath.nft.rules import Family

if TYPE_CHECKING:
    from datapath.nft.elements import Range


class Backend(NamedTuple):
    """An endpoint as a target of DNAT: 4 or 16 packed bytes, and the port."""

    address: bytes
    port: int


class Frontend(NamedTuple):
    """Where clients connect to; without an address a node port, on every address in NODEPORT_ADDRESSES."""

    family: Family
    address: bytes | None
    protocol: int
    port: int


class Snat(Enum):
    """Whose connections get this node's address as their source; a pod that meets itself always does."""

    NEVER = 0
    FOREIGN = 1
    """Those of no pod of the cluster: for ClusterIPs."""
    ALWAYS = 2
    """Everybody's: for external traffic with policy Cluster."""


class Absence(Enum):
    """What clients meet when there is no backend."""

    REFUSE = 0
    """A TCP reset or ICMP port unreachable: nobody serves anywhere."""
    DROP = 1
    """Nothing: policy Local, and backends are on other nodes only."""


@dataclass(frozen=True, slots=True)
class Balance:
    """What becomes of new connections to one frontend.

    Attributes:
        backends: sorted, without repetition. With none, `absence` says what clients meet.
        snat: whose source address is replaced.
        outside: with externalTrafficPolicy Local, the backends of who is neither a pod of the cluster nor this
            node; source kept; with none they are dropped. Pods then get `backends` with their source kept, the
            node with its source replaced. None where nobody is treated apart.
        absence: see there.
        affinity_seconds: for how long a client stays with its backend; 0 for no affinity.
        identity: 32 bits that name the ServicePort: its frontends share the affinity of a client.
        sources: where clients may come from (loadBalancerSourceRanges); None for everywhere.
    """

    backends: tuple[Backend, ...]
    snat: Snat = Snat.NEVER
    outside: tuple[Backend, ...] | None = None
    absence: Absence = Absence.REFUSE
    affinity_seconds: int = 0
    identity: int = 0
    sources: tuple[Range, ...] | None = None


class Need(NamedTuple):
    """Which chains the balances need: numbers of backends, and affinity timeouts in seconds."""

    sizes: frozenset[int] = frozenset()
    timeouts: frozenset[int] = frozenset()
