"""What can be chosen about a lab."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lab.daemon_process import default_command

if TYPE_CHECKING:
    from lab.underlay import IpNetwork, Routes

Families = Literal["dual", "ipv4", "ipv6"]


def default_shim() -> Path:
    """The shim that `make shim` builds; WEFT_SHIM names another."""
    return Path(os.environ.get("WEFT_SHIM") or Path(__file__).resolve().parent.parent / "build" / "weft")


@dataclass(frozen=True, slots=True)
class Options:
    """A lab's size and shape. `state` is the directory for node disks and logs."""

    state: Path
    nodes: int = 3
    family: Families = "dual"
    """Address families of pods."""
    underlay_family: Families = "dual"
    """Address families of the nodes' own addresses."""
    overlay: str = "vxlan"
    segments: int = 1
    """Layer 2 networks with a router between; nodes are placed on them in turn."""
    rp_filter: int = 1
    routes: Routes = "known"
    """Where nodes have routes to: nowhere else, to other segments and the known world outside, anywhere."""
    zones: tuple[str, ...] = ()
    """Zones that nodes are in, in turn; none: nodes without a zone."""
    mtu: int = 1500
    max_pods: int = 110
    cluster_cidrs: dict[int, str] = field(default_factory=lambda: {4: "10.244.0.0/16", 6: "fd10:244::/48"})
    slice_lengths: dict[int, int] = field(default_factory=lambda: {4: 24, 6: 64})
    service_cidrs: dict[int, str] = field(default_factory=lambda: {4: "10.96.0.0/16", 6: "fd96::/112"})
    cni_version: str = "1.1.0"
    """The newest CNI version that the runtime speaks."""
    config: dict[str, Any] = field(default_factory=dict)
    """Keys of weftd.yaml besides the lab's own."""
    shim: Path = field(default_factory=default_shim)
    plugins: tuple[Path, ...] = ()
    """Other CNI plugins to be found in the nodes."""
    daemon: tuple[str, ...] = field(default_factory=lambda: tuple(default_command()))

    @property
    def pod_families(self) -> tuple[int, ...]:
        """The address families that pods have."""
        return {"dual": (4, 6), "ipv4": (4,), "ipv6": (6,)}[self.family]

    def zone(self, index: int) -> str:
        """The zone of the index-th node; empty where there are none."""
        return self.zones[index % len(self.zones)] if self.zones else ""

    def pod_networks(self) -> tuple[IpNetwork, ...]:
        """The cluster's pod CIDRs, the primary family first."""
        return tuple(ip_network(self.cluster_cidrs[family]) for family in self.pod_families)
