"""The words of which stories of policies are made: who asks, what becomes of it, manifests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.scenarios.model import DROPPED, Client, Source, Target, answered
from tests.scenarios.stories import probes
from tests.scenarios.topology import FAMILIES, GUEST, PORT

if TYPE_CHECKING:
    from lab.api.resources import Object
    from tests.scenarios.model import Probe

POD_1, POD_2, POD_3 = (Client("pod", node) for node in (1, 2, 3))
NODE_1, NODE_2, NODE_3 = (Client("node", node) for node in (1, 2, 3))
OUTSIDE_1, OUTSIDE_3 = Client("outside", 1), Client("outside", 3)
SERVER_1, SERVER_2 = Client("server-1", 1), Client("server-2", 2)
FROM_GUEST = Client(GUEST, 3)
NEAR, FAR, BOTH = ({"matchLabels": {each: "yes"}} for each in ("near", "far", "both"))
EVERYBODY: Object = {}
IN, OUT, ALL = ["Ingress"], ["Egress"], ["Ingress", "Egress"]


def at(name: str, port: int = PORT) -> Target:
    """A pod or a node by its own address."""
    return Target("address", name, port, addresses=(f"@{name}/4", f"@{name}/6"))


def open_to(client: Client, server: str, port: int = PORT, **which: Any) -> tuple[Probe, ...]:
    """The client reaches the pod and is seen by its own address."""
    return probes(client, at(server, port), answered(Source.CLIENT, server), **which)


def closed_to(client: Client, name: str, port: int = PORT, **which: Any) -> tuple[Probe, ...]:
    """The client's packets to a pod or a node are dropped."""
    return probes(client, at(name, port), DROPPED, **which)


def policy(selector: Object | None, name: str = "policy", **spec: Any) -> Object:
    """A policy of the namespace that all pods but the guest are in."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"podSelector": selector, **spec},
    }


def named(*names: str) -> Object:
    """Selects pods by name."""
    return {"matchExpressions": [{"key": "name", "operator": "In", "values": list(names)}]}


def pods(selector: Object) -> Object:
    """A peer: pods of the policy's namespace."""
    return {"podSelector": selector}


def block(cidr: str, *exceptions: str) -> Object:
    """A peer: addresses."""
    return {"ipBlock": {"cidr": cidr, "except": list(exceptions)}}


def blocks(name: str) -> list[Object]:
    """Peers: both addresses of a pod or a node."""
    return [block(f"@{name}/4/32"), block(f"@{name}/6/128")]


def host_pod(node: int) -> Object:
    """A pod in a node's own network, labelled as an agent."""
    name = f"agent-{node}"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"name": name, "agent": "yes"}},
        "spec": {
            "nodeName": f"node-{node}",
            "hostNetwork": True,
            "containers": [{"name": "agent", "image": "agent"}],
        },
        "status": {"phase": "Running", "podIPs": [{"ip": f"@node-{node}/{family}"} for family in FAMILIES]},
    }
