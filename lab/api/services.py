"""What the API server makes of a Service before it is stored: defaults, rules, ClusterIPs and node ports.

Owns the allocations. The rules are those of Kubernetes 1.34 (pkg/registry/core/service and
pkg/apis/core/validation there), as far as a network sees the difference.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from lab.api.allocation import Addresses, NodePorts
from lab.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lab.api.allocation import IpNetwork
    from lab.api.resources import Object

NAMES = {4: "IPv4", 6: "IPv6"}
_NUMBERS = {name: number for number, name in NAMES.items()}
_TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
_AFFINITY_SECONDS = 10800
_NOT_OF_EXTERNAL_NAMES = (
    "clusterIP",
    "clusterIPs",
    "ipFamilies",
    "ipFamilyPolicy",
    "internalTrafficPolicy",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "allocateLoadBalancerNodePorts",
)


class ServiceRegistry:
    """Admits Services: `admit` is called for each that is created, changed (both) or deleted (no `after`).

    Args:
        networks: returns the service CIDRs of the cluster, those of the primary family first.
    """

    def __init__(self, networks: Callable[[], Sequence[IpNetwork]]) -> None:
        self._networks = networks
        self._addresses = Addresses()
        self._ports = NodePorts()

    def admit(self, before: Object | None, after: Object | None) -> None:
        """Complete `after` in place and take what it holds; ApiError leaves all as it was."""
        if before is not None:
            self._release(before)
        try:
            if after is not None:
                self._complete((before or {}).get("spec", {}), after)
        except ApiError:
            if before is not None:
                self._hold(before)
            raise

    def _complete(self, old: Object, after: Object) -> None:
        spec = after.setdefault("spec", {})
        _default(spec)
        if spec["type"] == "ExternalName":
            if not spec.get("externalName"):
                raise ApiError.unprocessable("spec.externalName: Required value for type ExternalName")
            for field in _NOT_OF_EXTERNAL_NAMES:
                spec.pop(field, None)
            _complete_ports(old, spec)
            return
        if old.get("type") == "ExternalName":
            old = {}
        _keep_address(old, spec)
        _complete_ports(old, spec)
        families = _families(old, spec, tuple(dict.fromkeys(net.version for net in self._networks())))
        spec["ipFamilies"] = [NAMES[family] for family in families]
        if not _is_headless(spec) and spec.get("clusterIPs"):
            spec["clusterIPs"] = spec["clusterIPs"][: len(families)]
        self._hold(after)

    def _hold(self, item: Object) -> None:
        """Take what the Service names, then choose what it leaves open; nothing is held after an ApiError."""
        spec, metadata = item["spec"], item["metadata"]
        holder = f"{metadata.get('namespace', '')}/{metadata['name']}"
        taken: list[Callable[[], None]] = []
        try:
            self._hold_addresses(holder, spec, taken)
            self._hold_ports(holder, spec, taken)
        except ApiError:
            for give_back in taken:
                give_back()
            raise

    def _hold_addresses(self, holder: str, spec: Object, taken: list[Callable[[], None]]) -> None:
        if spec["type"] == "ExternalName" or _is_headless(spec):
            return
        named = list(spec.get("clusterIPs") or [])
        chosen = []
        for position, family in enumerate(_NUMBERS[name] for name in spec["ipFamilies"]):
            networks = [network for network in self._networks() if network.version == family]
            if position < len(named):
                address = self._addresses.request(holder, named[position], networks)
            else:
                address = self._addresses.choose(holder, networks)
            taken.append(lambda address=address: self._addresses.release(address))  # type: ignore[misc]
            chosen.append(address)
        spec["clusterIPs"], spec["clusterIP"] = chosen, chosen[0]

    def _hold_ports(self, holder: str, spec: Object, taken: list[Callable[[], None]]) -> None:
        def take(protocol: str, number: int) -> int:
            if number:
                self._ports.request(holder, protocol, number)
            else:
                number = self._ports.choose(holder, protocol)
            taken.append(lambda: self._ports.release(protocol, number))
            return number

        if not _wants_node_ports(spec):
            return
        ports = sorted(spec.get("ports", []), key=lambda port: not port.get("nodePort"))
        for port in ports:
            if port.get("nodePort") or spec.get("allocateLoadBalancerNodePorts", True):
                port["nodePort"] = take(port["protocol"], port.get("nodePort", 0))
        if _wants_health_check(spec):
            spec["healthCheckNodePort"] = take("TCP", spec.get("healthCheckNodePort", 0))

    def _release(self, item: Object) -> None:
        spec = item["spec"]
        if not _is_headless(spec):
            for address in spec.get("clusterIPs", []):
                self._addresses.release(address)
        for port in spec.get("ports", []):
            self._ports.release(port["protocol"], port.get("nodePort", 0))
        self._ports.release("TCP", spec.get("healthCheckNodePort", 0))


def _is_headless(spec: Object) -> bool:
    return spec.get("clusterIP") == "None"


def _wants_node_ports(spec: Object) -> bool:
    return spec["type"] in ("NodePort", "LoadBalancer")


def _wants_health_check(spec: Object) -> bool:
    return spec["type"] == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"


def _default(spec: Object) -> None:
    kind = spec.setdefault("type", "ClusterIP")
    if kind not in _TYPES:
        raise ApiError.unprocessable(f"spec.type: {kind!r} is none of {', '.join(_TYPES)}")
    spec.setdefault("sessionAffinity", "None")
    if spec["sessionAffinity"] == "ClientIP":
        client = spec.setdefault("sessionAffinityConfig", {}).setdefault("clientIP", {})
        if not 0 < client.setdefault("timeoutSeconds", _AFFINITY_SECONDS) <= 86400:
            raise ApiError.unprocessable("spec.sessionAffinityConfig.clientIP.timeoutSeconds: 1 to 86400")
    else:
        spec.pop("sessionAffinityConfig", None)
    spec.setdefault("internalTrafficPolicy", "Cluster")
    if _wants_node_ports(spec) or (kind == "ClusterIP" and spec.get("externalIPs")):
        spec.setdefault("externalTrafficPolicy", "Cluster")
    else:
        spec.pop("externalTrafficPolicy", None)
    if kind == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)
    else:
        spec.pop("allocateLoadBalancerNodePorts", None)
    if not _wants_health_check(spec):
        spec.pop("healthCheckNodePort", None)


def _keep_address(old: Object, spec: Object) -> None:
    """Let clusterIP and clusterIPs agree; a primary ClusterIP never changes."""
    single, several = spec.get("clusterIP", ""), list(spec.get("clusterIPs") or [])
    if old and single != old.get("clusterIP") and several == old.get("clusterIPs"):
        several = []
    if single and (not several or several[0] != single):
        several = [single, *several[1:]]
    if not several and old:
        several = list(old.get("clusterIPs", []))
    if old and several[0] != old.get("clusterIP"):
        raise ApiError.unprocessable(f"spec.clusterIPs[0]: {several[0]} may not change once set")
    if several:
        spec["clusterIPs"], spec["clusterIP"] = several, several[0]
    else:
        spec.pop("clusterIPs", None)
        spec.pop("clusterIP", None)


def _families(old: Object, spec: Object, cluster: tuple[int, ...]) -> tuple[int, ...]:
    """The Service's address families, with ipFamilyPolicy filled in; `cluster` has the primary one first."""
    try:
        named: list[int] = [_NUMBERS[name] for name in spec.get("ipFamilies") or []]
        if not _is_headless(spec):
            addressed: list[int] = [ip_address(text).version for text in spec.get("clusterIPs", [])]
            if addressed[: len(named)] != named[: len(addressed)]:
                raise ApiError.unprocessable("spec.ipFamilies: do not agree with spec.clusterIPs")
            named = max(named, addressed, key=len)
    except (KeyError, ValueError) as error:
        raise ApiError.unprocessable(f"spec.ipFamilies, spec.clusterIPs: {error}") from error
    default = "RequireDualStack" if len(named) > 1 else "SingleStack"
    if _is_headless(spec) and not spec.get("selector") and not named and len(cluster) > 1:
        default = "RequireDualStack"
    policy = spec.setdefault("ipFamilyPolicy", default)
    families = tuple(dict.fromkeys([*named, *cluster]))
    unknown = [NAMES[family] for family in named if family not in cluster]
    if unknown or not families:
        lacking = ", ".join(unknown) or "any family"
        raise ApiError.unprocessable(f"spec.ipFamilies: the cluster has no service CIDR of {lacking}")
    if policy == "RequireDualStack" and len(families) < 2:
        raise ApiError.unprocessable("spec.ipFamilyPolicy: the cluster is not dual-stack")
    if policy == "SingleStack" and len(named) > 1 and old.get("ipFamilyPolicy", policy) == policy:
        raise ApiError.unprocessable("spec.ipFamilyPolicy: SingleStack does not go with two families")
    return families[:1] if policy == "SingleStack" else families


def _complete_ports(old: Object, spec: Object) -> None:
    ports = spec.get("ports") or []
    if not ports and spec["type"] != "ExternalName" and not _is_headless(spec):
        raise ApiError.unprocessable("spec.ports: Required value")
    for port in ports:
        port.setdefault("protocol", "TCP")
        port.setdefault("targetPort", port["port"])
        if port["protocol"] not in ("TCP", "UDP", "SCTP"):
            raise ApiError.unprocessable(f"spec.ports: protocol {port['protocol']!r} is not supported")
    if len(ports) > 1 and len({port.get("name", "") for port in ports} - {""}) != len(ports):
        raise ApiError.unprocessable("spec.ports: each of several ports needs a name of its own")
    if len({(port["protocol"], port["port"]) for port in ports}) != len(ports):
        raise ApiError.unprocessable("spec.ports: Duplicate value")
    _carry_node_ports(old, spec, ports)


def _carry_node_ports(old: Object, spec: Object, ports: list[Object]) -> None:
    """Keep node ports that the new Service does not name; drop those that its type no longer has."""
    held = {(port["protocol"], port["port"]): port.get("nodePort", 0) for port in old.get("ports", [])}
    wants = _wants_node_ports(spec)
    for port in ports:
        number = held.get((port["protocol"], port["port"]), 0)
        if wants and number and not port.get("nodePort"):
            port["nodePort"] = number
        elif not wants and (given := port.pop("nodePort", 0)) not in (0, number):
            kind = spec["type"]
            raise ApiError.unprocessable(f"spec.ports: nodePort {given} may not be used with type {kind}")
