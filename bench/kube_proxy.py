"""The real kube-proxy, in nftables mode, on a node of the lab. Knows what it needs to run there."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from bench.lab_node import CLUSTER_CIDRS, processor_seconds
from lab.machine import KUBECONFIG

if TYPE_CHECKING:
    from lab.node import Node

QUIET_SECONDS, IDLE_SECONDS = 1.5, 0.025
"""Who takes less processor time than the second in the first is idle."""


class KubeProxy:
    """kube-proxy as a process of one node.

    Args:
        program: as the end-to-end harness builds it.
        node: where it runs; without a weftd.
        directory: for its configuration and its log.
    """

    def __init__(self, program: Path, node: Node, directory: Path) -> None:
        self.log = directory / "kube-proxy.log"
        self._program = program
        self._node = node
        self._configuration = directory / "kube-proxy.json"
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Its process id. Raises ProcessLookupError when it does not run, with the end of its log."""
        if self._process is None or self._process.returncode is not None:
            raise ProcessLookupError(f"kube-proxy has ended: {self.log.read_text()[-2000:]}")
        return self._process.pid

    async def start(self) -> None:
        """Start it; it has done nothing yet."""
        self._configuration.write_text(json.dumps(configuration(self._node.name)))
        command = self._node.namespaces.command(
            *("setpriv", "--pdeathsig", "KILL", "--"),
            str(self._program),
            f"--config={self._configuration}",
        )
        with open(self.log, "ab") as log:  # noqa: ASYNC230 - only opened here, never written
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )

    def pause(self) -> None:
        """Let it do nothing, so that it takes no time from who is measured."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    async def idle(self) -> None:
        """Wait until it is up to date: it and the programs that it runs have done nothing for a while.

        It lets a second pass between two rounds; a change after more than that is served at once.
        """
        while True:
            before = processor_seconds(self.pid)
            await asyncio.sleep(QUIET_SECONDS)
            busy = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().strip()
            if not busy and processor_seconds(self.pid) - before < IDLE_SECONDS:
                return

    async def stop(self) -> None:
        """End it, if it runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


def configuration(node: str) -> dict[str, object]:
    """Return its configuration: the defaults, but for what a lab's API and other people's sysctls demand."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": node,
        "clusterCIDR": CLUSTER_CIDRS[4],
        "detectLocalMode": "ClusterCIDR",
        # The lab's API server speaks JSON alone.
        "clientConnection": {
            "kubeconfig": KUBECONFIG,
            "contentType": "application/json",
            "acceptContentTypes": "application/json",
        },
        # The size of the table is one for all namespaces of the machine.
        "conntrack": {"maxPerCore": 0, "min": 0},
    }
