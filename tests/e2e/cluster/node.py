"""A node: own namespaces for network, mounts, processes, host name; in them containerd and kubelet."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.cluster import network
from tests.e2e.cluster.agent import Agent
from tests.e2e.cluster.images import IMAGE
from tests.e2e.cluster.processes import Program, remove_empty_cgroups, run, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.e2e.cluster.api import Api
    from tests.e2e.cluster.pki import Authority

KUBELET_KUBECONFIG = "/etc/kubernetes/kubelet.conf"
"""On the node, where kubeadm puts it."""
STATIC_PODS = "/etc/kubernetes/manifests"

# The first process of a node. It gives the node its own writable /etc, /opt and /var over the machine's, and
# its own /run, /proc and /sys, then waits for ever: process 1 adopts orphans, and a waiting shell reaps them.
FIRST_PROCESS = """
set -eu
mount --make-rprivate /
for top in etc opt var; do
  mkdir -p "$1/$top/upper" "$1/$top/work"
  mount -t overlay -o "lowerdir=/$top,upperdir=$1/$top/upper,workdir=$1/$top/work" "$top" "/$top"
done
mount -t tmpfs -o mode=755 run /run
for state in kubelet containerd; do
  mkdir -p "$1/$state" "/var/lib/$state"
  mount --bind "$1/$state" "/var/lib/$state"
done
mkdir -p /etc/cni/net.d /etc/kubernetes/manifests /opt/cni/bin /run/netns "$1/cgroup"
mount -t proc proc /proc
mount --rbind /sys/fs/cgroup "$1/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$1/cgroup" /sys/fs/cgroup
mount --make-rshared /
hostname "$2"
: > "$1/up"
while :; do sleep 86400 & wait; done
"""

CONTAINERD = f"""
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  # Where the tests run in a container themselves, the score cannot be lowered.
  restrict_oom_score_adj = true
  # Loading a profile needs more of the machine than a node here has.
  disable_apparmor = true
  sandbox_image = "{IMAGE}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"""


def kubelet_configuration(
    authority: Authority, certificate: Path, key: Path, resolver: Path, dns: tuple[str, ...]
) -> dict[str, object]:
    """KubeletConfiguration for a node that shares its cgroups and its disk with the machine.

    Args:
        authority: signed the API server's certificate.
        certificate: of the kubelet.
        key: of the certificate.
        resolver: the resolv.conf of pods that take the node's.
        dns: where the other pods ask for names.
    """
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "x509": {"clientCAFile": str(authority.certificate)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(certificate),
        "tlsPrivateKeyFile": str(key),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "failCgroupV1": False,
        "failSwapOn": False,
        "evictionHard": {"memory.available": "10Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "maxPods": 200,
        "nodeStatusUpdateFrequency": "2s",
        "clusterDNS": list(dns),
        "clusterDomain": "cluster.local",
        "resolvConf": str(resolver),
        "syncFrequency": "10s",
        "staticPodPath": STATIC_PODS,
        "fileCheckFrequency": "1s",
        # Tests that kill the agent again and again wait for it no longer than for its start.
        "featureGates": {"KubeletCrashLoopBackOffMax": True},
        "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
    }


@dataclass(slots=True)
class Node:
    """One node. The directory holds its logs and its file systems, and must not exist yet."""

    number: int
    stack: network.Stack
    directory: Path
    authority: Authority
    api: Api
    programs: Path
    runtime: Path | None
    """Where the programs of another containerd than the machine's are."""
    first: Program = field(init=False)
    containerd: Program = field(init=False)
    kubelet: Program = field(init=False)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True)
        self.first = Program(
            f"first process of {self.name}",
            [
                *("nsenter", f"--net=/run/netns/{network.namespace(self.number)}"),
                *(
                    "unshare",
                    "--mount",
                    "--uts",
                    "--pid",
                    "--fork",
                    "--kill-child",
                    "--propagation",
                    "private",
                ),
                *("/bin/sh", "-c", FIRST_PROCESS, "sh", self.directory, self.name),
            ],
            self.directory / "first.log",
            nested=True,
        )

    @property
    def name(self) -> str:
        return f"n{self.number}"

    @property
    def addresses(self) -> tuple[str, ...]:
        return self.stack.node_addresses(self.number)

    def inside(self, *command: str | Path) -> list[str | Path]:
        """A command line that runs the command in the node."""
        return [
            "nsenter",
            "--target",
            str(self.first.pid),
            "--mount",
            "--uts",
            "--net",
            "--pid",
            "--",
            *command,
        ]

    def run(self, *command: str | Path, check: bool = True, timeout: float = 60) -> str:
        """Runs a command in the node and returns its output; paths are to be absolute."""
        return run(*self.inside(*command), check=check, timeout=timeout)

    def program(self, name: str, *command: str | Path, **environment: str) -> Program:
        return Program(name, self.inside(*command), self.directory / f"{name}.log", environment, nested=True)

    @property
    def weft(self) -> Agent:
        """The agent, which the DaemonSet puts here."""
        return Agent(self, self.api)

    def start(self, images: Iterable[Path]) -> None:
        """Starts the node up to its kubelet; it registers, and stays NotReady without a network."""
        self._power_on()
        for image in images:
            self.ctr("images", "import", image)
        self._start_kubelet()

    def reboot(self) -> None:
        """Cuts the power and starts the node again, with what was on disk and without what was in /run."""
        self.power_off()
        self._power_on()
        self._start_kubelet()

    def _power_on(self) -> None:
        network.add_node(self.number, self.stack)
        (self.directory / "up").unlink(missing_ok=True)
        self.first.start()
        wait_for(
            f"{self.name}'s namespaces",
            (self.directory / "up").exists,
            state=self.first.tail,
            timeout=10,
            pause=0.02,
        )
        (self.directory / "containerd.toml").write_text(CONTAINERD)
        self.containerd = self.program(
            "containerd",
            self._runtime("containerd"),
            "--config",
            self.directory / "containerd.toml",
            PATH=os.pathsep.join([*([str(self.runtime)] if self.runtime else []), os.environ["PATH"]]),
        )
        self.containerd.start()
        wait_for(
            f"{self.name}'s containerd",
            lambda: self.ctr("version"),
            state=self.containerd.tail,
            pause=0.05,
        )

    def _start_kubelet(self) -> None:
        identity = self.authority.sign(
            self.name,
            f"/O=system:nodes/CN=system:node:{self.name}",
            *(f"IP:{address}" for address in self.addresses),
        )
        resolver = self.directory / "resolv.conf"  # the machine's may point to a resolver that a node lacks
        resolver.write_text(f"nameserver {self.stack.server}\n")
        configuration = kubelet_configuration(
            self.authority, identity.certificate, identity.key, resolver, self.stack.dns_services
        )
        path = self.directory / "kubelet.json"
        path.write_text(json.dumps(configuration))
        self.run("mkdir", "-p", os.path.dirname(KUBELET_KUBECONFIG))
        self.run("cp", self.authority.kubeconfig(self.stack.url, identity), KUBELET_KUBECONFIG)
        self.kubelet = self.program(
            "kubelet-log",
            self.programs / "kubelet",
            f"--config={path}",
            f"--kubeconfig={KUBELET_KUBECONFIG}",
            f"--hostname-override={self.name}",
            f"--node-ip={','.join(self.addresses)}",
        )
        self.kubelet.start()

    def weftctl(self, *arguments: str, check: bool = True) -> str:
        return self.weft.run("weftctl", *arguments, check=check)

    def _runtime(self, program: str) -> Path | str:
        return self.runtime / program if self.runtime else program

    def ctr(self, *arguments: str | Path) -> str:
        """Asks containerd about Kubernetes' part of it."""
        return self.run(self._runtime("ctr"), "--namespace", "k8s.io", *arguments)

    def ip(self, arguments: str) -> str:
        return self.run("ip", *arguments.split())

    def path(self, path: str) -> Path:
        """A file of the node, as the tests reach it."""
        return Path(f"/proc/{self.first.pid}/root{path}")

    def files(self, directory: str) -> list[str]:
        """Names in a directory of the node; none if it does not exist."""
        try:
            return sorted(os.listdir(self.path(directory)))
        except FileNotFoundError:
            return []

    def power_off(self) -> None:
        """Ends the node as a power cut would: its first process is killed, and with it all others."""
        for program in ("kubelet", "containerd"):
            if hasattr(self, program):
                getattr(self, program).kill()
        self.first.kill()
        remove_empty_cgroups()
        network.remove_node(self.number)

    def stop(self) -> None:
        """Ends the node for good; its logs stay."""
        self.power_off()
        for state in ("containerd", "kubelet"):
            shutil.rmtree(self.directory / state, ignore_errors=True)
