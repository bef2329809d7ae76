"""Who may talk to whom, worked out slowly and directly from manifests: what the compiler is compared with.

Written from the API's documentation (networking.k8s.io/v1 NetworkPolicySpec and the concept page "Network
Policies"), one sentence at a time. Shares no code with the daemon, and indexes nothing; only the reading of
addresses is remembered, which would take most of the time.
"""

from __future__ import annotations

import functools
import ipaddress
from dataclasses import dataclass
from typing import Any

Raw = dict[str, Any]


@dataclass(frozen=True)
class Connection:
    """What is tried: addresses as text, a protocol, and a port (None: the protocol has none)."""

    source: str
    destination: str
    protocol: str
    port: int | None


class Oracle:
    """A cluster as lists of manifests."""

    def __init__(self, nodes: list[Raw], namespaces: list[Raw], pods: list[Raw], policies: list[Raw]) -> None:
        self.nodes = nodes
        self.namespaces = namespaces
        self.pods = pods
        self.policies = policies

    def allows(self, connection: Connection) -> bool:
        """A connection is allowed if the egress policy of the source and the ingress policy of the
        destination allow it."""
        source, destination = self.pod_at(connection.source), self.pod_at(connection.destination)
        if source is not None and source is destination:
            # A pod cannot block access to itself.
            return True
        return self.egress_allows(source, connection) and self.ingress_allows(destination, connection)

    def egress_allows(self, source: Raw | None, connection: Connection) -> bool:
        if source is None:
            return True
        isolating = [policy for policy in self.selecting(source) if "Egress" in types(policy)]
        if not isolating:
            return True
        return any(
            self.peers_match(policy, rule.get("to"), connection.destination)
            and self.ports_match(rule.get("ports"), connection)
            for policy in isolating
            for rule in policy["spec"].get("egress") or []
        )

    def ingress_allows(self, destination: Raw | None, connection: Connection) -> bool:
        if destination is None:
            return True
        isolating = [policy for policy in self.selecting(destination) if "Ingress" in types(policy)]
        if not isolating:
            return True
        node = self.node_at(connection.source)
        if node is not None and node["metadata"]["name"] == destination["spec"]["nodeName"]:
            # Traffic to and from the node where a pod is running is always allowed.
            return True
        return any(
            self.peers_match(policy, rule.get("from"), connection.source)
            and self.ports_match(rule.get("ports"), connection)
            for policy in isolating
            for rule in policy["spec"].get("ingress") or []
        )

    def selecting(self, pod: Raw) -> list[Raw]:
        """The policies whose podSelector selects the pod, in its namespace."""
        return [
            policy
            for policy in self.policies
            if policy["metadata"]["namespace"] == pod["metadata"]["namespace"]
            if selects(policy["spec"].get("podSelector"), labels(pod))
        ]

    def pod_at(self, address: str) -> Raw | None:
        """The pod that has an address of its own, and has it still."""
        for pod in self.pods:
            if pod["spec"].get("hostNetwork") or pod["status"]["phase"] in ("Succeeded", "Failed"):
                continue
            for entry in pod["status"].get("podIPs") or []:
                if same(entry["ip"], address):
                    return pod
        return None

    def node_at(self, address: str) -> Raw | None:
        """The node that speaks from an address: its own, or its end of the tunnel."""
        for node in self.nodes:
            for own in own_addresses(node):
                if same(own, address):
                    return node
            for tunnel in tunnel_addresses(node):
                if same(tunnel, address):
                    return node
        return None

    def peers_match(self, policy: Raw, peers: list[Raw] | None, address: str) -> bool:
        """If the list is empty or missing, all are matched; otherwise one item has to match."""
        if not peers:
            return True
        return any(self.peer_matches(policy, peer, address) for peer in peers)

    def peer_matches(self, policy: Raw, peer: Raw, address: str) -> bool:
        if peer.get("ipBlock") is not None:
            return self.block_matches(peer["ipBlock"], address)
        pod = self.pod_at(address)
        if pod is None:
            return False
        if peer.get("namespaceSelector") is None:
            if pod["metadata"]["namespace"] != policy["metadata"]["namespace"]:
                return False
        elif not selects(peer["namespaceSelector"], self.namespace_labels(pod["metadata"]["namespace"])):
            return False
        return selects(peer.get("podSelector"), labels(pod))

    def namespace_labels(self, name: str) -> Raw:
        for namespace in self.namespaces:
            if namespace["metadata"]["name"] == name:
                return labels(namespace)
        raise AssertionError(f"a pod is in a namespace that does not exist: {name}")

    def block_matches(self, block: Raw, address: str) -> bool:
        """Except values say what is left out of the cidr. A node that comes by its tunnel is that node."""
        for node in self.nodes:
            for tunnel in tunnel_addresses(node):
                if same(tunnel, address):
                    for own in own_addresses(node):
                        if read(own).version == read(tunnel).version:
                            address = own
        if not inside(block["cidr"], address):
            return False
        return not any(inside(each, address) for each in block.get("except") or [])

    def ports_match(self, ports: list[Raw] | None, connection: Connection) -> bool:
        """If the list is empty or missing, all are matched; otherwise one item has to match."""
        if not ports:
            return True
        return any(self.port_matches(port, connection) for port in ports)

    def port_matches(self, port: Raw, connection: Connection) -> bool:
        if connection.port is None or (port.get("protocol") or "TCP") != connection.protocol:
            return False
        number = port.get("port")
        if number is None:
            return True
        if isinstance(number, str):
            return connection.port in self.numbers(connection.destination, number, connection.protocol)
        return bool(number <= connection.port <= (port.get("endPort") or number))

    def numbers(self, address: str, name: str, protocol: str) -> list[int]:
        """What the pod at the destination calls so; of two the first."""
        pod = self.pod_at(address)
        if pod is None:
            return []
        containers = list(pod["spec"].get("containers") or [])
        for container in pod["spec"].get("initContainers") or []:
            if container.get("restartPolicy") == "Always":
                containers.append(container)
        found = []
        for container in containers:
            for port in container.get("ports") or []:
                if port.get("name") == name and (port.get("protocol") or "TCP") == protocol:
                    found.append(port["containerPort"])
        return found[:1]


def types(policy: Raw) -> list[str]:
    """If policyTypes is not specified: Ingress always, and Egress if the policy has any egress rules."""
    spec = policy["spec"]
    if spec.get("policyTypes"):
        return list(spec["policyTypes"])
    return ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]


def selects(selector: Raw | None, have: Raw) -> bool:
    """matchLabels and matchExpressions are ANDed; an empty label selector matches all objects."""
    selector = selector or {}
    for key, value in (selector.get("matchLabels") or {}).items():
        if key not in have or have[key] != value:
            return False
    for expression in selector.get("matchExpressions") or []:
        key, operator = expression["key"], expression["operator"]
        if operator == "In" and not (key in have and have[key] in expression["values"]):
            return False
        if operator == "NotIn" and key in have and have[key] in expression["values"]:
            return False
        if operator == "Exists" and key not in have:
            return False
        if operator == "DoesNotExist" and key in have:
            return False
    return True


def labels(thing: Raw) -> Raw:
    return thing["metadata"].get("labels") or {}


def own_addresses(node: Raw) -> list[str]:
    return [each["address"] for each in node["status"]["addresses"] if each["type"] == "InternalIP"]


def tunnel_addresses(node: Raw) -> list[str]:
    """The first address of each podCIDR."""
    return [each.partition("/")[0] for each in node["spec"]["podCIDRs"]]


@functools.cache
def same(one: str, other: str) -> bool:
    return read(one) == read(other)


@functools.cache
def inside(cidr: str, address: str) -> bool:
    return read(address) in ipaddress.ip_network(cidr, strict=False)


@functools.cache
def read(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(address)
