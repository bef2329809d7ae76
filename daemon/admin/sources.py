"""What the admin service reads, as protocols: the agent hands in the real things, tests plain ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from daemon.cluster.model import Node, Pod, Prefix
    from daemon.compile.catalog import View
    from daemon.compile.policy import Policies
    from daemon.compile.policy_tables import PolicyTables
    from daemon.denials import Denials
    from daemon.findings import Finding
    from datapath.nft.counters import Count
    from datapath.nft.policy_inspection import ExpectedVerdict
    from datapath.policy import Direction, PolicyPart
    from ipam.pool import Pool, Usage
    from ipam.record import Record


class Local(Protocol):
    """This node's network as it was compiled (daemon.compile.local.LocalNetwork)."""

    @property
    def internal_ips(self) -> tuple[bytes, ...]:
        """The Node's InternalIPs, at most one per family."""

    @property
    def pod_cidrs(self) -> tuple[Prefix, ...]:
        """The node's slices of the cluster's pod CIDRs."""

    @property
    def mtu(self) -> int:
        """Of pods' interfaces."""


class Leases(Protocol):
    """IPAM's view of the node (ipam.allocator.Allocator)."""

    def records(self) -> tuple[Record, ...]:
        """All attachments."""

    def usage(self, pools: Iterable[Pool]) -> tuple[Usage, ...]:
        """Each pool's figures."""


class Difference(Protocol):
    """One difference between kernel and desired state (datapath.writer.Difference)."""

    @property
    def kind(self) -> str:
        """Kind of object: link, address, neighbour, fdb, route, sysctl, nft."""

    @property
    def action(self) -> str:
        """What is wrong with it: missing, stale, changed."""

    @property
    def object(self) -> str:
        """The object, printable."""


class Reports(Protocol):
    """What an operator must know (daemon.findings.Findings)."""

    def rows(self) -> tuple[Finding, ...]:
        """What holds now."""


@dataclass(frozen=True, slots=True)
class Path:
    """How this node reaches another.

    Attributes:
        kind: `local`, `direct`, `vxlan` or `none`.
        mac: of the other's VTEP, 6 bytes; None when no VXLAN is used towards it.
        problem: why it cannot be reached; empty when it can.
    """

    kind: str
    mac: bytes | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """The daemon's own condition at one moment.

    Attributes:
        ready: synced and serving.
        api_connected: whether the API server answers.
        seconds_since_sync: since the kernel last had no difference left; negative when that never was.
        repairs: foreign changes repaired so far.
        pending_deletions: DELs recorded while the daemon was down and not yet done.
    """

    ready: bool
    api_connected: bool
    seconds_since_sync: float
    repairs: int
    pending_deletions: int


class Accounts(Protocol):
    """What policies let pass and what was denied (daemon.policyaccounts.PolicyAccounts)."""

    @property
    def accepted(self) -> Mapping[PolicyPart, Count]:
        """Packets and bytes, by policy and direction."""

    @property
    def denied(self) -> Mapping[tuple[str, Direction], int]:
        """Packets, by pod and direction."""

    async def refresh(self) -> None:
        """Bring both up to date. Raises DatapathError."""


@dataclass(frozen=True, slots=True)
class PolicySources:
    """What is read of policies.

    Attributes:
        model: policies as they concern this node.
        tables: what programs the kernel.
        accounts: what was counted.
        denials: denied packets as they come.
        inspect: in which way the kernel departs from what a verdict needs, in words. Raises DatapathError.
        pods: pods of this node by NAMESPACE/NAME.
        remote_pods: pods of other nodes, empty while no policy here needs them.
    """

    model: Policies
    tables: PolicyTables
    accounts: Accounts
    denials: Denials
    inspect: Callable[[ExpectedVerdict], Awaitable[tuple[str, ...]]]
    pods: Mapping[str, Pod]
    remote_pods: Mapping[str, Pod]


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything the admin service reads.

    Attributes:
        version: of the daemon.
        node_name: of this node.
        overlay: as configured: vxlan, direct or auto.
        nodes: all Nodes that are known, by name.
        local: this node's network; None until its Node is known.
        path: how a Node is reached; called on another thread.
        leases: IPAM.
        difference: the kernel against the desired state; changes nothing.
        links: the node's pod links, name to alias, as the kernel has them.
        findings: what an operator must know.
        health: the daemon's condition now.
        policies: NetworkPolicies as they are enforced here.
        services: Services as this node serves them: all, or the one of that NAMESPACE/NAME.
    """

    version: str
    node_name: str
    overlay: str
    nodes: Mapping[str, Node]
    local: Callable[[], Local | None]
    path: Callable[[Node], Path]
    leases: Leases
    difference: Callable[[], Awaitable[Sequence[Difference]]]
    links: Callable[[], Awaitable[Mapping[str, str]]]
    findings: Reports
    health: Callable[[], Health]
    services: Callable[[str], Sequence[View]]
    policies: PolicySources
