"""A small cluster for policy tests: manifests go in, each node compiles them as its daemon would."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from daemon.cluster import decode
from daemon.cluster.decode_pods import namespace, pod
from daemon.cluster.decode_policies import network_policy
from daemon.compile.policy import Policies
from daemon.compile.policy_subjects import Attached
from daemon.compile.policy_verdict import Flow, verdict

if TYPE_CHECKING:
    from daemon.cluster.model import Pod
    from daemon.compile.policy_verdict import Verdict

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1, "icmpv6": 58, "gre": 47}


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def select(text: str = "") -> dict[str, Any]:
    """A label selector from `KEY=VALUE ...`."""
    return {"matchLabels": dict(each.split("=") for each in text.split())} if text else {}


def pods(text: str = "") -> dict[str, Any]:
    """A peer: pods of the policy's own namespace."""
    return {"podSelector": select(text)}


def spaces(text: str = "") -> dict[str, Any]:
    """A peer: all pods of the namespaces with these labels."""
    return {"namespaceSelector": select(text)}


def block(cidr: str, *exceptions: str) -> dict[str, Any]:
    return {"ipBlock": {"cidr": cidr, "except": list(exceptions)}}


def raw_node(name: str, addresses: str, cidrs: str) -> dict[str, Any]:
    return {
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {"podCIDRs": cidrs.split()},
        "status": {"addresses": [{"type": "InternalIP", "address": each} for each in addresses.split()]},
    }


class Town:
    """Nodes with what each has compiled, kept up to date object by object."""

    def __init__(self, *nodes: dict[str, Any]) -> None:
        self.models = {each["metadata"]["name"]: Policies(each["metadata"]["name"]) for each in nodes}
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        for each in nodes:
            self.put(each)

    def put(self, *objects: dict[str, Any]) -> None:
        """Apply manifests, and compile."""
        for raw in objects:
            name = decode.name(raw)
            self._take(raw["kind"], name, self.objects.get((raw["kind"], name)), raw)
            self.objects[raw["kind"], name] = raw
        for model in self.models.values():
            model.compile()

    def drop(self, kind: str, name: str) -> None:
        """Delete an object, and compile."""
        self._take(kind, name, self.objects.pop((kind, name)), None)
        for model in self.models.values():
            model.compile()

    def namespace(self, name: str, text: str = "") -> None:
        labels = dict(each.split("=") for each in text.split())
        self.put({"kind": "Namespace", "metadata": {"name": name, "labels": labels}})

    def pod(
        self, name: str, ips: str, text: str = "", *, ports: str = "", node: str = "here", **more: Any
    ) -> None:
        """A pod `NAMESPACE/NAME` with labels as in `select` and ports `NAME:PROTOCOL:NUMBER ...`."""
        where, _, own = name.partition("/")
        listed = [each.split(":") for each in ports.split()]
        containers = [
            {"ports": [{"name": n, "protocol": p.upper(), "containerPort": int(k)} for n, p, k in listed]}
        ]
        phase = more.pop("phase", "Running")
        uid = more.pop("uid", f"uid of {name}")
        self.put(
            {
                "kind": "Pod",
                "metadata": {
                    "namespace": where,
                    "name": own,
                    "uid": uid,
                    "labels": select(text).get("matchLabels"),
                },
                "spec": {"nodeName": node, "containers": containers, **more},
                "status": {"phase": phase, "podIPs": [{"ip": each} for each in ips.split()]},
            }
        )

    def policy(self, name: str, target: str = "", **spec: Any) -> None:
        """A policy `NAMESPACE/NAME` for the pods with the labels `target`."""
        where, _, own = name.partition("/")
        self.put(
            {
                "kind": "NetworkPolicy",
                "metadata": {"namespace": where, "name": own},
                "spec": {"podSelector": select(target), **spec},
            }
        )

    def address(self, name: str, family: int = 4) -> str:
        """The address of a pod `NAMESPACE/NAME`; an address stands for itself."""
        if "/" not in name:
            return name
        texts: list[str] = [each["ip"] for each in self.objects["Pod", name]["status"]["podIPs"]]
        return next(each for each in texts if (":" in each) is (family == 6))

    def flow(self, source: str, destination: str, port: str = "tcp 80", family: int = 4) -> Flow:
        """A flow between pods or addresses, to `PROTOCOL PORT` or `PROTOCOL`."""
        protocol, _, number = port.partition(" ")
        ends = [packed(self.address(each, family)) for each in (source, destination)]
        return Flow(ends[0], ends[1], PROTOCOLS[protocol], int(number) if number else None)

    def verdicts(self, flow: Flow) -> dict[str, Verdict]:
        return {name: verdict(model, flow) for name, model in self.models.items()}

    def reaches(self, source: str, destination: str, port: str = "tcp 80", family: int = 4) -> bool:
        """Whether all nodes let a connection pass."""
        return self.allows(self.flow(source, destination, port, family))

    def allows(self, flow: Flow) -> bool:
        """Whether all nodes let a flow pass."""
        return all(verdict(model, flow).allowed for model in self.models.values())

    def _take(self, kind: str, name: str, before: dict[str, Any] | None, raw: dict[str, Any] | None) -> None:
        for node, model in self.models.items():
            if kind == "Node":
                model.put_node(name, decode.node(raw) if raw else None)
            elif kind == "Namespace":
                model.put_namespace(name, namespace(raw) if raw else None)
            elif kind == "NetworkPolicy":
                model.put_policy(name, network_policy(raw) if raw else None)
            else:
                self._take_pod(node, model, pod(before) if before else None, pod(raw) if raw else None)

    def _take_pod(self, node: str, model: Policies, before: Pod | None, after: Pod | None) -> None:
        if before is not None and (after is None or after.node != before.node):
            if before.node == node:
                model.put_pod(before.key, None)
                model.put_attached(link(before), None)
            else:
                model.put_remote_pod(before.key, None)
        if after is None:
            return
        if after.node != node:
            model.put_remote_pod(after.key, after)
            return
        model.put_pod(after.key, after)
        attached = None
        if after.ips and not after.host_network and not after.finished:
            attached = Attached(link(after), after.namespace, after.name, after.uid, after.ips)
        model.put_attached(link(after), attached)


def link(pod: Pod) -> str:
    return f"weft-{pod.namespace}-{pod.name}"


HERE = raw_node("here", "192.168.7.1 fd07::1", "10.244.1.0/24 fd00:0:0:1::/64")
THERE = raw_node("there", "192.168.7.2 fd07::2", "10.244.2.0/24 fd00:0:0:2::/64")


def shop() -> Town:
    """Two nodes; namespaces shop (team=a) and bank (team=b), each with pods on both nodes."""
    town = Town(HERE, THERE)
    town.namespace("shop", "team=a")
    town.namespace("bank", "team=b")
    town.pod("shop/web", "10.244.1.10 fd00:0:0:1::10", "app=web", ports="http:tcp:80 dns:udp:53")
    town.pod("shop/db", "10.244.1.11 fd00:0:0:1::11", "app=db tier=data", ports="http:tcp:8080")
    town.pod("shop/far", "10.244.2.12 fd00:0:0:2::12", "app=web", node="there", ports="http:tcp:8081")
    town.pod("bank/web", "10.244.2.20 fd00:0:0:2::20", "app=web", node="there")
    town.pod("bank/db", "10.244.1.21 fd00:0:0:1::21", "app=db")
    return town
