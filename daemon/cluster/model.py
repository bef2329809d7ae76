"""The cluster as values: what `decode` makes of API objects and everything else in the daemon works with.

Pure: no client, no I/O, no time. Addresses are packed bytes in network order (4 or 16 bytes).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from daemon.cluster.selectors import LabelSet, Selector


class Prefix(NamedTuple):
    """An IP prefix; host bits of `address` are zero."""

    address: bytes
    length: int


@dataclass(frozen=True, slots=True)
class Node:
    """The part of a v1 Node that the network depends on.

    `internal_ips` keeps the order of status.addresses, at most one per family; `underlay` replaces them where
    the node carries the annotation weft.dev/underlay-address (nodes behind NAT). `zone` is the value of the
    label topology.kubernetes.io/zone. `leaving` says that it is being deleted, or about to be (the
    autoscaler's taint), so that load balancers should send it no new connections (KEP-3836).
    """

    name: str
    uid: str
    internal_ips: tuple[bytes, ...]
    pod_cidrs: tuple[Prefix, ...]
    underlay: tuple[bytes, ...] = ()
    max_pods: int = 0
    network_unavailable: bool = False
    zone: str = ""
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class ServiceCIDR:
    """A networking.k8s.io/v1 ServiceCIDR: where ClusterIPs come from."""

    name: str
    cidrs: tuple[Prefix, ...]


class ServicePort(NamedTuple):
    """A port of a Service; `node_port` is 0 where it has none. Name and protocol join it to EndpointPorts."""

    name: str
    protocol: int
    port: int
    node_port: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """The part of a v1 Service that a proxy depends on.

    A headless Service and one of type ExternalName have no addresses and no ports.

    Attributes:
        created: creationTimestamp as text, which sorts by age; "" where there is none.
        cluster_ips: at most one per family.
        external_ips, load_balancer_ips: without repetition, in the object's order; of the load balancer only
            addresses whose packets arrive with them as destination (ipMode VIP).
        external_local, internal_local: whether the traffic policy is Local.
        affinity_seconds: for how long a client stays with its endpoint; 0 without affinity.
        source_ranges: loadBalancerSourceRanges; () where everybody may connect.
        health_check_node_port: 0 where there is none.
        faults: parts that can't be understood and are left out, each in words.
    """

    namespace: str
    name: str
    uid: str = ""
    created: str = ""
    type: str = "ClusterIP"
    cluster_ips: tuple[bytes, ...] = ()
    external_ips: tuple[bytes, ...] = ()
    load_balancer_ips: tuple[bytes, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    external_local: bool = False
    internal_local: bool = False
    affinity_seconds: int = 0
    source_ranges: tuple[Prefix, ...] = ()
    health_check_node_port: int = 0
    faults: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """NAMESPACE/NAME, as in the store."""
        return f"{self.namespace}/{self.name}"


class Endpoint(NamedTuple):
    """An endpoint of a slice; `zones` and `nodes` are its topology hints, `node` is "" where it has none."""

    address: bytes
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node: str = ""
    zones: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()


class EndpointPort(NamedTuple):
    """A port that all endpoints of a slice have."""

    name: str
    protocol: int
    port: int


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """A discovery.k8s.io/v1 EndpointSlice.

    Attributes:
        service: the name of its Service, of the same namespace.
        family: 4 or 6; 0 where the addresses are names (FQDN), of which it then holds none.
        faults: parts that can't be understood and are left out, each in words.
        triggered: time.time() of the change that the slice's writer responded to, 0 where it is not known;
            says nothing of what the slice is.
    """

    namespace: str
    name: str
    service: str
    family: int
    endpoints: tuple[Endpoint, ...] = ()
    ports: tuple[EndpointPort, ...] = ()
    faults: tuple[str, ...] = ()
    triggered: float = field(default=0.0, compare=False)

    @property
    def service_key(self) -> str:
        """NAMESPACE/NAME of its Service."""
        return f"{self.namespace}/{self.service}"


class ContainerPort(NamedTuple):
    """A port of a pod that has a name; `protocol` as in IP headers."""

    name: str
    protocol: int
    number: int


@dataclass(frozen=True, slots=True)
class Pod:
    """The part of a v1 Pod that NetworkPolicy depends on.

    Attributes:
        uid: as the container runtime knows it, which for a static pod is not what its mirror's metadata say.
        node: where it runs; "" while it runs nowhere.
        ips: at most one per family; () while it has none.
        ports: those with names, of containers and sidecars; of several with one name and protocol the first.
        finished: its phase is Succeeded or Failed: its addresses may be another's already.
    """

    namespace: str
    name: str
    uid: str
    node: str
    labels: LabelSet
    ips: tuple[bytes, ...] = ()
    ports: tuple[ContainerPort, ...] = ()
    host_network: bool = False
    finished: bool = False

    @property
    def key(self) -> str:
        """NAMESPACE/NAME, as in the store."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Namespace:
    """A v1 Namespace."""

    name: str
    labels: LabelSet


class PodPeer(NamedTuple):
    """Pods as peers of a policy: in namespaces that `namespaces` selects; None for the policy's own."""

    pods: Selector
    namespaces: Selector | None = None


class IPBlock(NamedTuple):
    """Addresses as peers of a policy: those of `cidr` that are in none of `exceptions`."""

    cidr: Prefix
    exceptions: tuple[Prefix, ...] = ()


class PolicyPort(NamedTuple):
    """Ports from `first` to `last`, both included, or with `name` the port that the destination calls so."""

    protocol: int
    first: int = 0
    last: int = 65535
    name: str = ""


PolicyPeer: TypeAlias = PodPeer | IPBlock


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """What a policy allows: one of the peers at one of the ports; None for whoever and for whatever."""

    peers: tuple[PolicyPeer, ...] | None = None
    ports: tuple[PolicyPort, ...] | None = None


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """A networking.k8s.io/v1 NetworkPolicy.

    Attributes:
        pods: which pods of its namespace it selects.
        ingress, egress: what it allows in that direction; None where it does not isolate the pods in it.
        faults: parts that can't be understood, each in words. What they would allow is not allowed.
    """

    namespace: str
    name: str
    pods: Selector
    ingress: tuple[PolicyRule, ...] | None = None
    egress: tuple[PolicyRule, ...] | None = None
    faults: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """NAMESPACE/NAME, as in the store."""
        return f"{self.namespace}/{self.name}"
