"""Weft as its users install it: deploy/weft.yaml applied, rolled out, configured; what it says of itself."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tests.e2e.cluster import manifests
from tests.e2e.cluster.agent import AGENT_PODS, EXCLUDE
from tests.e2e.cluster.api import is_ready
from tests.e2e.cluster.processes import wait_for

if TYPE_CHECKING:
    from tests.e2e.cluster.api import Api, Object

ROOT = Path(__file__).resolve().parents[3]
MANIFEST = ROOT / "deploy" / "weft.yaml"
NAMESPACE = "kube-system"
AGENTS = f"/api/v1/namespaces/{NAMESPACE}/pods"
DAEMONSET = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/weft"
CONFIGMAP = f"/api/v1/namespaces/{NAMESPACE}/configmaps/weft"
STALE = 150.0
"""Seconds that a kubelet may go on giving pods an earlier ConfigMap: it rests up to 60 between its tries."""


def image_of(objects: list[Object]) -> str:
    """The image that a manifest's agents run."""
    (daemonset,) = (each for each in objects if each["kind"] == "DaemonSet")
    return str(daemonset["spec"]["template"]["spec"]["containers"][0]["image"])


@dataclass(frozen=True, slots=True)
class Deployment:
    """The DaemonSet and what belongs to it."""

    api: Api

    def install(self, objects: list[Object] | None = None) -> None:
        """Applies a manifest, that of this repository by default, and waits until it is rolled out."""
        manifests.apply(self.api, manifests.load(MANIFEST) if objects is None else objects)
        self.await_rollout()

    def configure(self, **configuration: object) -> None:
        """Gives all agents a configuration, of which the manifest's is the default, and starts them anew.

        A kubelet whose watch rests after an outage gives pods the ConfigMap that it knew before; those are
        started once more, until they have read the new one.
        """
        (configmap,) = (each for each in manifests.load(MANIFEST) if each["kind"] == "ConfigMap")
        if configuration:
            configmap["data"] = {"weftd.yaml": yaml.safe_dump(configuration)}
        manifests.apply(self.api, [configmap])
        wanted = configmap["data"]["weftd.yaml"]
        outdated = list(self.agents())
        deadline = time.monotonic() + STALE
        while outdated:
            assert time.monotonic() < deadline, f"agents of {outdated} are given an earlier ConfigMap"
            self.replace(*outdated)
            outdated = [node for node, pod in self.agents().items() if self.configuration(pod) != wanted]

    def configuration(self, pod: Object) -> str:
        """The file that an agent has read at its start, for kubelet changes it only later."""
        return self.run(pod, "cat", "/etc/weft/weftd.yaml")

    def replace(self, *nodes: str) -> None:
        """Deletes the agents' pods of some nodes at once, and waits until others are ready in their place."""
        agents = self.agents()
        for node in nodes:
            self.api.delete(f"{AGENTS}/{agents[node]['metadata']['name']}")
        self.await_rollout()

    def restart(self) -> None:
        """Begins what `kubectl rollout restart` begins."""
        stamp = {"kubectl.kubernetes.io/restartedAt": str(time.time())}
        change = {"spec": {"template": {"metadata": {"annotations": stamp}}}}
        manifests.merge(self.api, DAEMONSET, change)

    def agents(self) -> dict[str, Object]:
        """The agents' pods by node; those that end are left out."""
        return {
            pod["spec"]["nodeName"]: pod
            for pod in self.api.items(AGENT_PODS)
            if not pod["metadata"].get("deletionTimestamp") and "nodeName" in pod["spec"]
        }

    def rolled_out(self) -> bool:
        """Whether every node that is to have an agent has one of the newest template, ready, and no other.

        The DaemonSet's status tells the same some time later.
        """
        annotations = self.api.get(DAEMONSET)["metadata"]["annotations"]
        template = annotations["deprecated.daemonset.template.generation"]
        nodes = [node["metadata"] for node in self.api.items("/api/v1/nodes")]
        wanted = [node["name"] for node in nodes if EXCLUDE not in node["labels"]]
        pods = self.api.items(AGENT_PODS)
        ready = [
            pod["spec"].get("nodeName")
            for pod in pods
            if is_ready(pod)
            and not pod["metadata"].get("deletionTimestamp")
            and pod["metadata"]["labels"]["pod-template-generation"] == template
        ]
        return len(pods) == len(ready) and sorted(ready) == sorted(wanted)

    def await_rollout(self, timeout: float = 120) -> None:
        wait_for("the agents to be rolled out", self.rolled_out, timeout=timeout, state=self.known)

    def restarts(self) -> dict[str, int]:
        """How often kubelets started the agents' containers anew, by the pods' UIDs."""
        return {
            pod["metadata"]["uid"]: sum(each["restartCount"] for each in pod["status"]["containerStatuses"])
            for pod in self.agents().values()
        }

    def log(self, pod: Object, container: str = "weftd") -> str:
        return self.api.text("GET", f"{AGENTS}/{pod['metadata']['name']}/log?container={container}")

    def weftctl(self, pod: Object, *arguments: str) -> str:
        """Runs weftctl as `kubectl exec` does; its exit code must be 0."""
        return self.run(pod, "weftctl", *arguments)

    def run(self, pod: Object, *command: str) -> str:
        """What a command in an agent's container prints; its exit code must be 0."""
        name = pod["metadata"]["name"]
        answer = self.api.execute(name, *command, namespace=NAMESPACE)
        assert answer.exit_code == 0, f"{name}: {answer.output} {answer.messages}"
        return answer.output

    def known(self) -> str:
        """What there is to know about agents that do not become ready."""
        lines = []
        for node, pod in self.agents().items():
            lines.append(f"{node}: {json.dumps(pod['status'])}")
            for container in ("install", "weftd"):
                try:
                    lines.append(self.log(pod, container)[-3000:])
                except Exception as error:  # noqa: BLE001 - a report about a failure must not fail itself
                    lines.append(str(error))
        events = self.api.items(f"/api/v1/namespaces/{NAMESPACE}/events")
        return "\n".join([*lines, *(str(event.get("message")) for event in events[-30:])])
