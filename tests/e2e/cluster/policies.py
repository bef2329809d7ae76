"""NetworkPolicies of the tests: their objects, pods that kubelets probe, and who reaches whom at all."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from tests.e2e.cluster import manifests, probe
from tests.e2e.cluster.cluster import PODS, pod_manifest
from tests.e2e.cluster.processes import run

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.e2e.cluster.api import Api, Object
    from tests.e2e.cluster.cluster import Cluster, Pod

POLICIES = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies"
PORT, SECOND_PORT = 8080, 8081
"""Where the pods' server listens, and where nobody does: who gets there at all is refused."""
PATIENCE = "0.9"
"""Seconds for a connection: before a lost SYN is sent again."""
PROBE_SECONDS = 1
PROBE_PATIENCE = 3
"""periodSeconds and timeoutSeconds of kubelets' probes."""
PROBED_SECONDS = 5.0
"""Some periods, and more than one probe may take."""


def apply_policy(api: Api, name: str, **spec: Any) -> None:
    """Creates or changes a policy; it selects all pods of the namespace unless told otherwise."""
    item: Object = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"podSelector": {}, **spec},
    }
    manifests.apply(api, [item])


def delete_policies(api: Api, *names: str) -> None:
    """Deletes policies of the namespace, all of them if none is named."""
    for name in names:
        api.delete(f"{POLICIES}/{name}")
    if not names:
        api.delete(POLICIES)


def labelled(**labels: str) -> Object:
    """A selector."""
    return {"matchLabels": labels}


def probed_manifest(name: str, node: str, **labels: str) -> Object:
    """A pod that kubelet probes by HTTP and TCP; the first probe in vain is one too many.

    Its server's port is named "http".
    """
    manifest = pod_manifest(name, node, serve=True, labels=labels)
    (container,) = manifest["spec"]["containers"]
    often = {"periodSeconds": PROBE_SECONDS, "timeoutSeconds": PROBE_PATIENCE, "failureThreshold": 1}
    http, tcp = {"httpGet": {"path": "/index.html", "port": "http"}}, {"tcpSocket": {"port": "http"}}
    container |= {
        "ports": [{"name": "http", "containerPort": PORT}],
        "startupProbe": {**tcp, "periodSeconds": PROBE_SECONDS, "failureThreshold": 60},
        "readinessProbe": {**http, **often},
        "livenessProbe": {**tcp, **often},
    }
    second: Object = {
        "name": "second",
        "image": container["image"],
        "imagePullPolicy": "Never",
        "readinessProbe": {"tcpSocket": {"port": PORT}, **often},
        "livenessProbe": {
            "httpGet": {"path": "/index.html", "port": PORT},
            **often,
            "initialDelaySeconds": 3,
        },
    }
    manifest["spec"]["containers"].append(second)
    return manifest


def create_probed(cluster: Cluster, name: str, node: str, **labels: str) -> Pod:
    """Creates such a pod and waits until it is ready, which its kubelet's probes decide."""
    cluster.api.create(PODS, probed_manifest(name, node, **labels))
    return cluster.await_pod(name)


def probes_failed(cluster: Cluster, pod: Pod) -> list[str]:
    """What kubelet has to say against a pod since it was ready first."""
    status = cluster.api.get(f"{PODS}/{pod.name}")["status"]
    found = [
        f"restarts: {each['restartCount']}" for each in status["containerStatuses"] if each["restartCount"]
    ]
    found += [f"not ready: {each['name']}" for each in status["containerStatuses"] if not each["ready"]]
    events = (
        f"/api/v1/namespaces/default/events?fieldSelector=involvedObject.name={pod.name},reason=Unhealthy"
    )
    # Before the server listens it refuses; what a policy drops is not answered.
    return found + [text for each in cluster.api.items(events) if "refused" not in (text := each["message"])]


class Caller:
    """A pod, or a node, from which connections are tried."""

    def __init__(self, name: str, prefix: Sequence[Any]) -> None:
        self.name = name
        self._prefix = [*map(str, prefix)]

    @classmethod
    def pod(cls, cluster: Cluster, pod: Pod) -> Caller:
        """The pod calls, for as long as its container is not started anew."""
        return cls(pod.name, cluster.in_network_of(pod))

    @classmethod
    def node(cls, cluster: Cluster, name: str) -> Caller:
        """A process of the node calls."""
        return cls(name, cluster.nodes[name].inside())

    def outcomes(self, addresses: Iterable[str], port: int = PORT) -> list[str]:
        """What becomes of a connection to each address: connected, refused (so it got there), or silence."""

        def attempt(address: str) -> str:
            program = (sys.executable, probe.__file__, "once", address, str(port), PATIENCE)
            return run(*self._prefix, *program).split()[1]

        with ThreadPoolExecutor() as threads:
            return list(threads.map(attempt, addresses))


def neighbourhood(pod: Pod) -> list[str]:
    """Addresses that the next pods of a node may get, after one that has just come."""
    found = []
    for own in map(ip_address, pod.addresses):
        base = int(own) & ~0xFF if own.version == 4 else int(own) >> 64 << 64
        numbers = {*range(base + 1, base + 255)}
        if own.version == 6:
            numbers |= {*range(int(own), int(own) + 32)}
        found += [str(type(own)(number)) for number in sorted(numbers) if number != int(own)]
    return found


def packets_in(cluster: Cluster, pod: Pod) -> int:
    """UDP packets of either family that came to a pod since its network was made."""
    text = run(*cluster.in_network_of(pod, "cat", "/proc/net/snmp", "/proc/net/snmp6"))
    rows = [line.split() for line in text.splitlines()]
    heads, values = (row for row in rows if row[0] == "Udp:")
    found = {head: int(value) for head, value in zip(heads[1:], values[1:], strict=True)}
    found |= {row[0]: int(row[1]) for row in rows if row[0].startswith("Udp6")}
    return sum(found[name] for name in ("InDatagrams", "NoPorts", "Udp6InDatagrams", "Udp6NoPorts"))
