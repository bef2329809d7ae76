"""The small cluster that all scenarios stand on: three nodes in two zones, servers on two, clients on all.

    node-1, zone a: server-1, old-1, client-1
    node-2, zone b: server-2, old-2, client-2
    node-3, zone a:                  client-3, guest-3

The old ones are terminating and still serve; unready-2 is what its name says; guest-3 is in a namespace
of its own. Pods are selected by labels that say which sets they belong to, and by their names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.api.resources import Object

ZONES = ("a", "b", "a")
NODES = (1, 2, 3)
SERVERS: dict[str, int] = {"server-1": 1, "server-2": 2}
OLD: dict[str, int] = {"old-1": 1, "old-2": 2}
UNREADY = "unready-2"
SPACE = "default"
GUEST, GUESTS = "guest-3", "guests"
"""The pod in another namespace, and that namespace."""
PLACES: dict[str, int] = {
    **SERVERS,
    **OLD,
    UNREADY: 2,
    "client-1": 1,
    "client-2": 2,
    "client-3": 3,
    GUEST: 3,
}
"""The node of each pod, by number."""
SETS: dict[str, tuple[str, ...]] = {
    "both": ("server-1", "server-2", UNREADY),
    "near": ("server-1",),
    "far": ("server-2",),
    "none": (),
    "old": ("old-1", "old-2"),
    "mixed": ("server-2", "old-1"),
    "unready": (UNREADY,),
}
"""Pods by the label that selects them."""
PORT = 8080
OTHER_PORT = 9053
DRAIN_SECONDS = 3600
PROTOCOLS = ("tcp", "udp", "sctp")
FAMILIES = (4, 6)


def client(node: int) -> str:
    """The pod that asks from a node."""
    return f"client-{node}"


def space_of(name: str) -> str:
    """The namespace of a pod."""
    return GUESTS if name == GUEST else SPACE


def namespaces() -> list[Object]:
    """The manifests of the namespaces."""
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": name}}}
        for name in (SPACE, GUESTS)
    ]


def pods() -> list[Object]:
    """The manifests of all pods; `OLD` are to be deleted, `UNREADY` to be made unready, when they run."""
    return [pod(name, node) for name, node in PLACES.items()]


def pod(name: str, node: int) -> Object:
    """The manifest of a pod."""
    labels = {label: "yes" for label, members in SETS.items() if name in members}
    number = name.rpartition("-")[2]
    container: Object = {
        "name": "echo",
        "image": "echo",
        "ports": [
            {"name": "web", "containerPort": PORT + int(number)},
            {"name": "other", "containerPort": OTHER_PORT, "protocol": "UDP"},
        ],
    }
    sidecar = {
        "name": "side",
        "image": "echo",
        "restartPolicy": "Always",
        "ports": [{"name": "side", "containerPort": PORT}],
    }
    spec: Object = {
        "nodeName": f"node-{node}",
        "containers": [container],
        "initContainers": [sidecar],
    }
    if name in OLD:
        container["lifecycle"] = {"preStop": {"sleep": {"seconds": DRAIN_SECONDS}}}
        spec["terminationGracePeriodSeconds"] = DRAIN_SECONDS
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": space_of(name), "labels": {"name": name, **labels}},
        "spec": spec,
    }
