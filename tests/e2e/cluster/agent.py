"""Weft's agent on one node: the process of its pod, found and ended as somebody with a shell there would.

The DaemonSet starts it, and starts it anew: to be without it the node is excluded (label weft.dev/exclude).
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.cluster.manifests import merge
from tests.e2e.cluster.processes import ClusterError, wait_for

if TYPE_CHECKING:
    from tests.e2e.cluster.api import Api, Object
    from tests.e2e.cluster.node import Node

AGENT_PODS = "/api/v1/namespaces/kube-system/pods?labelSelector=app.kubernetes.io%2Fname%3Dweft"
EXCLUDE = "weft.dev/exclude"
PROGRAMS = "/opt/weft/bin"
"""In the agent's image."""
READY = "http://127.0.0.1:9466/readyz"


@dataclass(frozen=True, slots=True)
class Agent:
    """What runs on the node, or does not."""

    node: Node
    api: Api

    @property
    def pid(self) -> int:
        """Of the daemon, as the node sees it; 0 if there is none."""
        for path in Path(f"/proc/{self.node.first.pid}/root/proc").glob("[0-9]*"):
            try:
                words = (path / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it has just ended
                continue
            if words[1:] == [f"{PROGRAMS}/weftd".encode(), b""]:
                return int(path.name)
        return 0

    @property
    def running(self) -> bool:
        return bool(self.pid)

    def pods(self) -> list[Object]:
        """The agent's pods on this node; two while one takes the other's place."""
        return [pod for pod in self.api.items(AGENT_PODS) if pod["spec"].get("nodeName") == self.node.name]

    def run(self, program: str, *arguments: str, check: bool = True) -> str:
        """Runs a program of the image beside the daemon, also while the API server is away."""
        return self.node.run(*self.beside(program), *arguments, check=check)

    def beside(self, program: str) -> list[str]:
        """A command line for the node that runs a program of the image as the daemon sees the node."""
        return ["nsenter", "--target", str(self._pid()), "--mount", "--pid", "--", f"{PROGRAMS}/{program}"]

    def restart(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends the process and waits until the one that kubelet starts in the same pod is ready."""
        self.restart_process(number)
        self.await_ready()

    def restart_process(self, number: signal.Signals = signal.SIGTERM) -> None:
        """The same without waiting for readiness, which takes an API server."""
        old = self._pid()
        self._signal(old, number)
        wait_for("kubelet to start the agent anew", lambda: self.pid not in (0, old), state=self.tail)

    def stop(self) -> None:
        """Has the pod deleted, which ends the daemon in order, and waits until it is gone."""
        self._exclude("")
        self._await_absence()

    def kill(self) -> None:
        """Kills the process and keeps it from being started anew.

        Frozen while its pod is marked for deletion, it sees nothing of that; then it dies of SIGKILL.
        """
        pid = self._pid()
        self._signal(pid, signal.SIGSTOP)
        try:
            self._exclude("")
            wait_for(
                "the agent's pod to be marked",
                lambda: all(pod["metadata"].get("deletionTimestamp") for pod in self.pods()),
                pause=0.05,
            )
        finally:
            self._signal(pid, signal.SIGKILL)
        self._await_absence()

    def start(self) -> None:
        """Lets the DaemonSet start it again; does not wait for it."""
        self._exclude(None)

    def await_ready(self) -> None:
        wait_for(
            f"the agent on {self.node.name} to be ready",
            lambda: self.node.run("/bin/busybox", "wget", "-q", "-O", "-", READY),
            state=self.tail,
        )

    def tail(self, lines: int = 30) -> str:
        """The end of the newest log of each of its containers, from the node's disk."""
        logs = Path(f"/proc/{self.node.first.pid}/root/var/log/pods").glob("kube-system_weft-*/*/*.log")
        newest = sorted(logs, key=lambda path: path.stat().st_mtime)[-3:]
        return "\n".join(
            line for path in newest for line in path.read_text(errors="replace").splitlines()[-lines:]
        )

    def _pid(self) -> int:
        if pid := self.pid:
            return pid
        raise ClusterError(f"no agent runs on {self.node.name}; the end of its log:\n{self.tail()}")

    def _signal(self, pid: int, number: signal.Signals) -> None:
        self.node.run("kill", f"-{number.value}", str(pid))

    def _exclude(self, value: str | None) -> None:
        merge(self.api, f"/api/v1/nodes/{self.node.name}", {"metadata": {"labels": {EXCLUDE: value}}})

    def _await_absence(self) -> None:
        wait_for(
            f"{self.node.name} to be without agent",
            lambda: not self.pods() and not self.running,
            state=self.tail,
        )
