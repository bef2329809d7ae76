"""What an operator can configure: /etc/weft/weftd.yaml, every key with its default. Owns parsing and its errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Config:
    """The daemon's configuration; each field is the YAML key in camelCase (see `KEYS`)."""

    node_name: str = ""
    """Name of this node's Node object; default: environment NODE_NAME, else the host name in lower case."""
    api_server: str = ""
    """URL of the API server; default: kubeconfig's server, kubelet's kubeconfig, in-cluster environment."""
    kubeconfig: str = ""
    """Path of a kubeconfig; default: in-cluster service account, then kubelet's kubeconfig."""
    cluster_cidrs: tuple[str, ...] = ()
    """Pod CIDRs of the cluster; default: the union of all Nodes' podCIDRs."""
    service_cidrs: tuple[str, ...] = ()
    """Service CIDRs, for the overlap check; default: ServiceCIDR objects where the API has them."""
    overlay: Literal["vxlan", "direct", "auto"] = "vxlan"
    vni: int = 4096
    vxlan_port: int = 4789
    mtu: int = 0
    """MTU of pods' interfaces; 0: that of the underlay less the overlay's overhead."""
    tx_checksum_offload: Literal["auto", "off"] = "auto"
    masquerade: bool = True
    non_masquerade_cidrs: tuple[str, ...] = ()
    cooldown_seconds: int = 30
    """How long a released address rests before it is handed out again."""
    resync_seconds: int = 60
    """How often the kernel is compared with the desired state when nothing happens."""
    max_concurrent_adds: int = 64
    metrics_address: str = ":9465"
    health_address: str = ":10256"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    dns: dict[str, list[str]] = field(default_factory=dict)
