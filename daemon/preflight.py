"""Checks of what the daemon depends on and can't mend: address plan, kernel, other networks.

The checks are pure functions from values to findings; the sets of names say what each may report, so that
what no longer holds is cleared. Owns no reading of the kernel (datapath.surroundings, datapath.probe), no
timing (agent).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias
from urllib.parse import urlsplit

from daemon.cluster import decode
from daemon.cluster.model import Prefix
from daemon.compile import service_routes
from daemon.findings import Finding
from datapath import text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from daemon.cluster.endpoint import Endpoint
    from daemon.cluster.model import Node, ServiceCIDR
    from daemon.config import Config
    from datapath.probe import MissingFeature
    from datapath.surroundings import Surroundings

OVERLAP = "AddressOverlap"
DUPLICATE = "DuplicateNodeAddress"
OUTSIDE = "PodCidrOutsideCluster"
CLUSTER_IP = "ApiServerThroughClusterIP"
FEATURE = "KernelFeatureMissing"
LEFTOVER = "OtherNetworkLeftover"
FORWARD_DROP = "ForwardPolicyDrop"
FIREWALLD = "FirewalldActive"

CLUSTER_NAMES = frozenset({OVERLAP, DUPLICATE, OUTSIDE, CLUSTER_IP})
MACHINE_NAMES = frozenset({LEFTOVER, FORWARD_DROP, FIREWALLD})
KERNEL_NAMES = frozenset({FEATURE})

_MOST = 10
"""More faults of one kind than this are one mistake in the address plan, told often enough."""

Purpose: TypeAlias = Literal["pods", "Services", "node address", "network of this node"]


@dataclass(frozen=True, slots=True)
class Use:
    """A prefix and what it is used for; `owner` names the Node, empty where it is the whole cluster."""

    prefix: Prefix
    purpose: Purpose
    owner: str = ""

    @property
    def words(self) -> str:
        """The use, for people."""
        return f"{text.prefix(*self.prefix)} ({self.purpose}{f' of {self.owner}' if self.owner else ''})"


def check_cluster(
    nodes: Mapping[str, Node],
    service_cidrs: Mapping[str, ServiceCIDR],
    config: Config,
    node_name: str,
    *,
    connected: Iterable[Prefix] = (),
    endpoint: Endpoint | None = None,
) -> list[Finding]:
    """Check the cluster's address plan and this node's part in it.

    `connected` are the prefixes that this machine's links reach without a gateway.
    """
    services = service_routes.service_cidrs(config, service_cidrs.values())
    findings = list(_overlaps(_uses(nodes, services, config, connected)))
    findings += _duplicates(nodes)
    own = nodes.get(node_name)
    if own is not None:
        findings += _own_slices(own, config)
    if endpoint is not None and endpoint.from_environment:
        findings += _through_cluster_ip(endpoint, services)
    return findings


def check_machine(surroundings: Surroundings) -> list[Finding]:
    """Check for other networks and firewalls on this machine."""
    findings = [
        Finding(
            LEFTOVER,
            "warning",
            f"{remains} of {product} is still on this node: two pod networks take each other's packets. "
            f"Remove {product} from the cluster, then its remains from the node (or reboot it)",
            product,
        )
        for product, remains in sorted(surroundings.leftovers.items())
    ]
    findings += [
        Finding(
            FORWARD_DROP,
            "warning",
            f"chain {chain} drops forwarded packets that no rule of it accepts (Docker sets this policy; "
            "nothing in another table overrules it): pods may not be reachable. Accept their traffic there: "
            "iptables -I FORWARD -i 'weft+' -j ACCEPT; iptables -I FORWARD -o 'weft+' -j ACCEPT (ip6tables "
            "alike), or set the policy to ACCEPT",
            chain,
        )
        for chain in surroundings.dropping
    ]
    if surroundings.firewalld:
        message = (
            "firewalld is active and rejects forwarded packets of links without a zone: put pods into the "
            "trusted zone (firewall-cmd --permanent --zone=trusted --add-source=POD-CIDR), or disable it"
        )
        findings.append(Finding(FIREWALLD, "warning", message))
    return findings


def check_kernel(missing: Iterable[MissingFeature]) -> list[Finding]:
    """Name the kernel features that were tried and are not there."""
    return [
        Finding(
            FEATURE,
            "error",
            f"the kernel lacks {feature.name}, needed for {feature.purpose}: {feature.error}. Load its "
            f"module or use a kernel with {feature.option}",
            feature.name,
        )
        for feature in missing
    ]


def _uses(
    nodes: Mapping[str, Node], services: Iterable[Prefix], config: Config, connected: Iterable[Prefix]
) -> Iterator[Use]:
    for item in config.cluster_cidrs:
        yield Use(decode.prefix(item), "pods")
    for prefix in services:
        yield Use(prefix, "Services")
    for prefix in connected:
        yield Use(prefix, "network of this node")
    for name, node in nodes.items():
        for prefix in node.pod_cidrs:
            yield Use(prefix, "pods", name)
        for address in dict.fromkeys((*node.internal_ips, *node.underlay)):
            yield Use(_host(address), "node address", name)


def _overlaps(uses: Iterable[Use]) -> Iterator[Finding]:
    """Two prefixes overlap only when one contains the other, so a walk in order with a stack finds all."""
    found: dict[str, str] = {}
    enclosing: list[Use] = []
    for use in sorted(uses, key=lambda each: (len(each.prefix.address), each.prefix)):
        while enclosing and not contains(enclosing[-1].prefix, use.prefix):
            enclosing.pop()
        for outer in enclosing:
            if not _may_overlap(outer, use):
                found.setdefault(f"{outer.words} and {use.words}", _harm(outer, use))
        enclosing.append(use)
    yield from _some(OVERLAP, {pair: f"{pair} overlap: {harm}" for pair, harm in found.items()})


def _some(name: str, messages: Mapping[str, str]) -> Iterator[Finding]:
    """The first faults of a kind, and how many there are besides."""
    for key, message in list(messages.items())[:_MOST]:
        yield Finding(name, "error", message, key)
    if len(messages) > _MOST:
        yield Finding(name, "error", f"{len(messages) - _MOST} more of the same kind", "more")


def _may_overlap(outer: Use, inner: Use) -> bool:
    purposes = {outer.purpose, inner.purpose}
    if purposes == {"pods"}:
        # The cluster's CIDRs contain the nodes' slices; two nodes' slices exclude each other.
        return not (outer.owner and inner.owner and outer.owner != inner.owner)
    # Node addresses lie in the networks of nodes, and two nodes with one address are told separately.
    return purposes <= {"node address", "network of this node"} or purposes == {"Services"}


def _harm(outer: Use, inner: Use) -> str:
    purposes = {outer.purpose, inner.purpose}
    if purposes == {"pods"}:
        return "two pods can get the same address. Delete one of the two Nodes and let it register anew"
    if purposes == {"pods", "Services"}:
        return "some pods or Services can't be reached. Give one of them another CIDR"
    return (
        f"{'pods' if 'pods' in purposes else 'Services'} hide what is outside at these addresses. Give the "
        "cluster CIDRs that nothing else uses"
    )


def _duplicates(nodes: Mapping[str, Node]) -> Iterator[Finding]:
    owners: dict[bytes, str] = {}
    found: dict[str, str] = {}
    for name, node in nodes.items():
        for address in dict.fromkeys(node.underlay or node.internal_ips):
            other = owners.setdefault(address, name)
            if other != name:
                found[f"{other} {name}"] = (
                    f"Nodes {other} and {name} have the same address {text.address(address)}: pods on one of "
                    "them can't be reached. Delete the Node that is gone, or correct kubelet's --node-ip"
                )
    return _some(DUPLICATE, found)


def _own_slices(own: Node, config: Config) -> Iterator[Finding]:
    cluster = [decode.prefix(item) for item in config.cluster_cidrs]
    for prefix in own.pod_cidrs:
        shown = text.prefix(*prefix)
        if cluster and not any(contains(each, prefix) for each in cluster):
            yield Finding(
                OUTSIDE,
                "warning",
                f"this node's podCIDR {shown} is not in clusterCIDRs {', '.join(config.cluster_cidrs)}: "
                "other nodes masquerade towards its pods. Complete clusterCIDRs",
                shown,
            )


def _through_cluster_ip(endpoint: Endpoint, services: Iterable[Prefix]) -> Iterator[Finding]:
    try:
        address = decode.address(urlsplit(endpoint.url).hostname)
    except decode.DecodeError:
        return
    if any(contains(each, _host(address)) for each in services):
        yield Finding(
            CLUSTER_IP,
            "warning",
            f"the API server is reached at {endpoint.url}, a ClusterIP: a node without kube-proxy could not "
            "start its network. Set apiServer in the configuration to an address that needs no Service",
        )


def contains(outer: Prefix, inner: Prefix) -> bool:
    """Whether all addresses of `inner` are in `outer`; False across families."""
    if len(outer.address) != len(inner.address) or outer.length > inner.length:
        return False
    shift = 8 * len(outer.address) - outer.length
    return int.from_bytes(outer.address, "big") >> shift == int.from_bytes(inner.address, "big") >> shift


def _host(address: bytes) -> Prefix:
    return Prefix(address, 8 * len(address))
