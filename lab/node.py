"""One node of the lab: namespaces, disk, daemon, runtime, kubelet, and an echo server on its addresses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import TYPE_CHECKING, Any

import yaml

from lab.daemon_process import DaemonProcess
from lab.echo import PORT, Bind, Server
from lab.errors import LabError, NodeError
from lab.kubelet import Kubelet
from lab.machine import DAEMON_CONFIG, KUBECONFIG, Disk, boot
from lab.runtime import Runtime
from lab.underlay import set_sysctls

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from lab.api.storage import Storage
    from lab.namespaces import Namespaces
    from lab.options import Options
    from lab.runtime import Sandbox
    from lab.underlay import IpAddress, Segment, Underlay


log = logging.getLogger(__name__)


class Node:
    """A machine of the cluster; everything in it can be stopped, killed or lost on its own."""

    def __init__(
        self, name: str, index: int, segment: Segment, underlay: Underlay, storage: Storage, options: Options
    ) -> None:
        self.name = name
        self.index = index
        self.segment = segment
        self.underlay = underlay
        self.storage = storage
        self.options = options
        self.addresses: list[IpAddress] = [segment.node(family, index) for family in underlay.families]
        self.disk = Disk(options.state / "nodes" / name)
        self.daemon = DaemonProcess(list(options.daemon), self.log_file)
        self._namespaces: Namespaces | None = None
        self._runtime: Runtime | None = None
        self._kubelet: Kubelet | None = None
        self._kubelet_task: asyncio.Task[None] | None = None
        self._server: Server | None = None

    @property
    def log_file(self) -> Path:
        """The daemon's output since the node was made."""
        return self.options.state / f"{self.name}.log"

    @property
    def trouble(self) -> str:
        """What ended that should run, in words: weftd, or the lab's own kubelet; empty when all is well."""
        task = self._kubelet_task
        if task is not None and task.done() and not task.cancelled() and (error := task.exception()):
            return f"its kubelet failed, which is a fault of the lab: {error!r}"
        if self._namespaces is None or self.daemon.pid or not self.daemon.kept:
            return ""
        lines = self.log_file.read_text(errors="replace").splitlines() if self.log_file.exists() else []
        telling = [line for line in lines if '"error"' in line] or lines or ["without a word"]
        return f"weftd has ended {self.daemon.failures} times: {telling[-1]}"

    @property
    def namespaces(self) -> Namespaces:
        """The running node's namespaces."""
        if self._namespaces is None:
            raise NodeError(f"{self.name} is switched off")
        return self._namespaces

    @property
    def runtime(self) -> Runtime:
        """The running node's container runtime."""
        if self._runtime is None:
            raise NodeError(f"{self.name} is switched off")
        return self._runtime

    @property
    def kubelet(self) -> Kubelet:
        """The running node's kubelet."""
        if self._kubelet is None:
            raise NodeError(f"{self.name} is switched off")
        return self._kubelet

    async def start(self, *, daemon: bool = True) -> None:
        """Install what a node needs, boot it and start kubelet and daemon."""
        self.disk.format()
        self.disk.install_plugins(self.options.shim, self.options.plugins)
        self.configure()
        await self.power_on(daemon=daemon)

    def configure(self, **changes: Any) -> None:
        """Write the daemon's configuration and credentials; `changes` are keys of weftd.yaml."""
        config = {"kubeconfig": KUBECONFIG, "overlay": self.options.overlay, **self.options.config, **changes}
        self.disk.write(DAEMON_CONFIG, yaml.safe_dump(config, sort_keys=False))
        self.disk.write(KUBECONFIG, _kubeconfig(self.underlay.api_url(self.segment)))

    async def power_on(self, *, daemon: bool = True, lost: Iterable[Sandbox] = ()) -> None:
        """Boot from the disk as it is; `lost` are the sandboxes of the last boot."""
        self._namespaces = boot(self.name, self.disk)
        rp_filter = str(self.options.rp_filter)
        values = {f"net.ipv4.conf.{which}.rp_filter": rp_filter for which in ("all", "default")}
        set_sysctls(self._namespaces.net, values)
        net = self._namespaces.paths()["net"]
        await self.underlay.connect(self.name, net, self.segment, self.index, self.options.routes)
        self._runtime = Runtime(self._namespaces, self.disk, newest=self.options.cni_version)
        await self.serve()
        self.start_kubelet(lost)
        if daemon:
            await self.start_daemon()

    async def serve(self) -> None:
        """(Re)start the echo server on the node's own addresses."""
        if self._server is not None:
            self._server.close()
        self._server = Server(self.name)
        binds = [
            Bind(protocol, str(address), PORT) for address in self.addresses for protocol in ("tcp", "udp")
        ]
        await self._server.start(self.namespaces.net, binds)

    def start_kubelet(self, lost: Iterable[Sandbox] = ()) -> None:
        """Register the node and care for its pods and for sandboxes that were lost."""
        self._kubelet = Kubelet(
            self.name,
            self.addresses,
            self.storage,
            self.runtime,
            max_pods=self.options.max_pods,
            zone=self.options.zone(self.index),
        )
        self._kubelet_task = asyncio.create_task(self._kubelet.run(lost), name=f"kubelet of {self.name}")

    async def stop_kubelet(self) -> None:
        """Stop caring; pods stay."""
        if self._kubelet_task is not None:
            self._kubelet_task.cancel()
            done, _ = await asyncio.wait({self._kubelet_task})
            for task in done:
                if not task.cancelled() and (error := task.exception()) is not None:
                    log.error("the kubelet of %s had failed", self.name, exc_info=error)
            self._kubelet_task = None

    async def start_daemon(self, *, keep: bool = True) -> None:
        """Start weftd."""
        await self.daemon.start(self.namespaces, keep=keep)

    async def power_off(self) -> list[Sandbox]:
        """Lose everything but the disk; returns the sandboxes that were running."""
        await self.stop_kubelet()
        await self.daemon.kill()
        lost: list[Sandbox] = []
        if self._kubelet is not None:
            lost = self._kubelet.lose_power()
        if self._runtime is not None:
            for sandbox in list(self._runtime.sandboxes.values()):
                self._runtime.drop(sandbox)
        if self._server is not None:
            self._server.close()
        if self._namespaces is not None:
            with contextlib.suppress(LabError):  # the cable may be gone already
                await self.underlay.disconnect(self.name)
            self._namespaces.close()
        self._namespaces = self._runtime = self._kubelet = self._server = None
        return lost

    async def reboot(self, *, daemon: bool = True) -> list[Sandbox]:
        """Power off and on.

        The runtime's database survives: its dead sandboxes, which are returned, get a DEL with an empty
        CNI_NETNS.
        """
        lost = await self.power_off()
        await self.power_on(daemon=daemon, lost=lost)
        return lost

    async def run(self, *command: str, limit: float = 30.0, net: str = "") -> str:
        """Run a command in the node, or in the network namespace at path `net`; NodeError when it fails."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *self.namespaces.command(*command, net=net),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
        )
        try:
            async with asyncio.timeout(limit):
                output, errors = await process.communicate()
        except TimeoutError as error:
            process.kill()
            await process.wait()
            raise NodeError(f"{' '.join(command)} on {self.name} took longer than {limit:.0f} s") from error
        if process.returncode != 0:
            text = (errors + output).decode(errors="replace").strip()
            raise NodeError(f"{' '.join(command)} on {self.name} exits with {process.returncode}: {text}")
        return output.decode()


def _kubeconfig(server: str) -> str:
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": {"server": server}}],
            "users": [{"name": "lab", "user": {"token": "lab"}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
            "current-context": "lab",
        },
        indent=2,
    )
