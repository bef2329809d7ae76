"""The whole cluster: up from nothing in seconds, gone completely, even after a run that was killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import yaml

from tests.e2e.cluster import build, images, manifests, network
from tests.e2e.cluster.agent_image import agent_image
from tests.e2e.cluster.api import is_ready
from tests.e2e.cluster.control import ControlPlane
from tests.e2e.cluster.deployment import MANIFEST, Deployment, image_of
from tests.e2e.cluster.node import Node
from tests.e2e.cluster.processes import ClusterError, remove_empty_cgroups, run, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.cluster.api import Api, Object

DIRECTORY = build.CACHE / "run"
PODS = "/api/v1/namespaces/default/pods"


@dataclass(frozen=True, slots=True)
class Pod:
    """A running pod."""

    name: str
    node: str
    addresses: tuple[str, ...]

    @property
    def v4(self) -> str:
        return next(address for address in self.addresses if ":" not in address)

    @property
    def v6(self) -> str:
        return next(address for address in self.addresses if ":" in address)


def pod_manifest(name: str, node: str | None = None, *, serve: bool = False, **metadata: Any) -> Object:
    """A pod of the tests' image; one that serves tells clients their address and is probed by kubelet."""
    container: Object = {"name": "main", "image": images.IMAGE, "imagePullPolicy": "Never"}
    if serve:
        container |= {
            "command": ["httpd", "-f", "-p", "[::]:8080", "-h", "/www"],
            "readinessProbe": {"httpGet": {"path": "/index.html", "port": 8080}, "periodSeconds": 1},
        }
    spec: Object = {
        "containers": [container],
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
    }
    if node:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **metadata}, "spec": spec}


@dataclass(slots=True)
class Cluster:
    """A control plane and its nodes."""

    stack: network.Stack
    control: ControlPlane
    programs: Path
    containerd: Path
    images: tuple[Path, ...]
    nodes: dict[str, Node] = field(default_factory=dict)

    @property
    def api(self) -> Api:
        return self.control.api

    def add_node(self) -> Node:
        """Adds a node without a network; its number is the lowest that is free.

        Nodes of even number run containerd 2, which asks plugins for their STATUS, the others the machine's.
        """
        number = next(number for number in range(1, 10) if f"n{number}" not in self.nodes)
        runtime = None if number % 2 else self.containerd
        node = Node(
            number,
            self.stack,
            DIRECTORY / f"n{number}",
            self.control.authority,
            self.api,
            self.programs,
            runtime,
        )
        self.nodes[node.name] = node
        node.start(self.images)
        return node

    @property
    def weft(self) -> Deployment:
        """Weft, as it is deployed here."""
        return Deployment(self.api)

    def install_weft(self, **configuration: object) -> None:
        """Applies the manifest, with another configuration if one is given, and waits for the nodes."""
        objects = manifests.load(MANIFEST)
        if configuration:
            (configmap,) = (each for each in objects if each["kind"] == "ConfigMap")
            configmap["data"] = {"weftd.yaml": yaml.safe_dump(configuration)}
        self.weft.install(objects)
        self.await_nodes()

    def provide(self, image: Path) -> None:
        """Imports one more image on the nodes that there are."""
        for node in self.nodes.values():
            node.ctr("images", "import", image)

    def await_nodes(self) -> None:
        for node in self.nodes.values():
            wait_for(f"{node.name} to be Ready", partial(self.node_is_ready, node.name), state=node.weft.tail)

    def in_network_of(self, pod: Pod, *command: str) -> list[str | Path]:
        """A command line that runs a program of the machine in the network of a pod."""
        node = self.nodes[pod.node]
        statuses = self.api.get(f"{PODS}/{pod.name}")["status"]["containerStatuses"]
        ids = {status["containerID"].removeprefix("containerd://") for status in statuses}
        tasks = (line.split() for line in node.ctr("tasks", "list").splitlines()[1:])
        pid = next(words[1] for words in tasks if words[0] in ids)
        return node.inside("nsenter", "--target", pid, "--net", "--", *command)

    def remove_node(self, node: Node) -> None:
        """Cuts the node's power and deletes its Node object."""
        node.stop()
        del self.nodes[node.name]
        self.api.delete(f"/api/v1/nodes/{node.name}")
        shutil.rmtree(node.directory, ignore_errors=True)

    def stop_nodes(self) -> None:
        for node in self.nodes.values():
            node.stop()

    def node(self, name: str) -> Object:
        return self.api.get(f"/api/v1/nodes/{name}")

    def node_is_ready(self, name: str) -> bool:
        return is_ready(self.node(name))

    def create_pod(self, name: str, node: str | None = None, *, serve: bool = True, **metadata: Any) -> Pod:
        """Creates a pod and waits until it is ready, which its kubelet's probe decides if it serves."""
        self.api.create(PODS, pod_manifest(name, node, serve=serve, **metadata))
        return self.await_pod(name)

    def await_pod(self, name: str) -> Pod:
        path = f"{PODS}/{name}"
        wait_for(
            f"pod {name} to be ready", lambda: is_ready(self.api.get(path)), state=lambda: self.describe(name)
        )
        pod = self.api.get(path)
        addresses = tuple(entry["ip"] for entry in pod["status"]["podIPs"])
        return Pod(name, pod["spec"]["nodeName"], addresses)

    def describe(self, pod: str) -> str:
        """What the API knows of a pod that does not become ready."""
        status = self.api.get(f"{PODS}/{pod}").get("status", {})
        events = self.api.items(f"/api/v1/namespaces/default/events?fieldSelector=involvedObject.name={pod}")
        return "\n".join([str(status), *(str(event.get("message")) for event in events)])

    def delete_pods(self, *names: str, timeout: float = 60) -> None:
        """Deletes pods, all of them if none is named, and waits until they are gone."""
        for name in names:
            self.api.delete(f"{PODS}/{name}")
        if not names:
            self.api.delete(PODS)

        def gone() -> bool:
            return not [pod for pod in self.api.items(PODS) if not names or pod["metadata"]["name"] in names]

        wait_for("pods to be gone", gone, timeout=timeout)


def sweep() -> None:
    """Removes what a run leaves or an earlier one left: processes, namespaces, cgroups, files."""
    names = [name for name in run("ip", "netns", "list").split() if name.startswith(network.CONTROL_PLANE)]
    for name in names:
        for pid in run("ip", "netns", "pids", name, check=False).split():
            if int(pid) != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
    network.remove_all()
    remove_empty_cgroups()
    shutil.rmtree(DIRECTORY, ignore_errors=True)


@contextlib.contextmanager
def running(nodes: int, stack: network.Stack = network.DUAL) -> Iterator[Cluster]:
    """Brings up a cluster whose nodes have no network, and takes it away again, whatever happens.

    Raises:
        ClusterError: another run uses the cluster, or it does not come up.
        BuildError: its programs cannot be built.
    """
    programs, containerd = build.kubernetes(), build.containerd()
    archives = (images.image(), agent_image(image_of(manifests.load(MANIFEST))))
    with (build.CACHE / "run.lock").open("w") as lock, contextlib.ExitStack() as cleaning:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ClusterError("another run of the end-to-end tests is under way on this machine") from error
        sweep()
        cleaning.callback(sweep)
        DIRECTORY.mkdir(parents=True)
        cleaning.enter_context(network.control_plane())
        control = ControlPlane.prepare(programs, DIRECTORY, stack)
        cleaning.callback(control.stop)
        control.start()
        cluster = Cluster(stack, control, programs, containerd, archives)
        cleaning.callback(cluster.stop_nodes)
        for _ in range(nodes):
            cluster.add_node()
        yield cluster
