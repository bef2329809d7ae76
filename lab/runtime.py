"""A small container runtime: sandboxes whose network is set up by the real plugins as containerd calls them.

Owns the sandboxes of one node and their network namespaces under /run/netns. Knows nothing of Kubernetes
but the names that it passes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lab.errors import PluginError
from lab.machine import NETWORK_CONFIGS, PLUGINS
from lab.namespaces import CLONE_FS, CLONE_NEWNET, CLONE_NEWNS, MS_BIND, apart, mount, setns, unmount, unshare
from lab.network_config import LOOPBACK, choose

if TYPE_CHECKING:
    from lab.machine import Disk
    from lab.namespaces import Namespaces
    from lab.network_config import NetworkConfig

log = logging.getLogger(__name__)

IFNAME = "eth0"
_LIMIT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class PodName:
    """What a runtime is told about the pod that a sandbox is for."""

    namespace: str
    name: str
    uid: str


@dataclass(slots=True)
class Sandbox:
    """One pod's network namespace and what was attached to it."""

    container_id: str
    pod: PodName
    netns: str
    """Path inside the node, as in CNI_NETNS; empty after a reboot."""
    descriptor: int
    network: NetworkConfig | None = None
    result: dict[str, Any] = field(default_factory=dict)
    capabilities: dict[str, Any] = field(default_factory=dict)

    @property
    def addresses(self) -> list[str]:
        """The pod's addresses as the last plugin reported them, without prefix length."""
        return [entry["address"].partition("/")[0] for entry in self.result.get("ips", [])]

    def close(self) -> None:
        """Let go of the namespace."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Runtime:
    """The container runtime of one node; `newest` is the highest CNI version it speaks."""

    def __init__(self, namespaces: Namespaces, disk: Disk, *, newest: str = "1.1.0") -> None:
        self.namespaces = namespaces
        self.disk = disk
        self.newest = newest
        self.sandboxes: dict[str, Sandbox] = {}

    def network(self) -> NetworkConfig:
        """The network in use now; PluginError where there is none: the node's network is not ready."""
        return choose(self.disk.path(NETWORK_CONFIGS), self.newest)

    async def create(self, pod: PodName, capabilities: dict[str, Any] | None = None) -> Sandbox:
        """A new sandbox with loopback and network; undone with DEL when a plugin fails."""
        sandbox = self.make_sandbox(pod, capabilities)
        self.sandboxes[sandbox.container_id] = sandbox
        try:
            await self.add(sandbox)
        except BaseException:
            # As containerd does; the DEL must not be lost when the caller is cancelled.
            await asyncio.shield(self.remove(sandbox, forgiving=True))
            raise
        return sandbox

    async def add(self, sandbox: Sandbox) -> None:
        """ADD of loopback, then of the network's plugins, each with the result of the one before."""
        network = sandbox.network = self.network()
        await self.execute(sandbox, LOOPBACK, 0, "ADD", "lo")
        previous = None
        for position in range(len(network.plugins)):
            output = await self.execute(sandbox, network, position, "ADD", IFNAME, previous)
            try:
                previous = json.loads(output)
            except ValueError as error:
                raise PluginError(f"ADD answered no JSON: {output!r}") from error
        sandbox.result = previous or {}

    async def check(self, sandbox: Sandbox) -> None:
        """CHECK of the network's plugins; PluginError names what is wrong."""
        assert sandbox.network is not None
        for position in range(len(sandbox.network.plugins)):
            await self.execute(sandbox, sandbox.network, position, "CHECK", IFNAME, sandbox.result)

    async def delete(self, sandbox: Sandbox) -> None:
        """DEL of the network's plugins in reverse order, then of loopback."""
        if sandbox.network is not None:
            for position in reversed(range(len(sandbox.network.plugins))):
                previous = sandbox.result or None
                await self.execute(sandbox, sandbox.network, position, "DEL", IFNAME, previous)
            await self.execute(sandbox, LOOPBACK, 0, "DEL", "lo")

    async def status(self) -> None:
        """STATUS of the network's plugins, as containerd from 2.0.1 on asks; PluginError says why not."""
        network = self.network()
        for position in range(len(network.plugins)):
            await self.execute(None, network, position, "STATUS", "")

    async def remove(self, sandbox: Sandbox, *, forgiving: bool = False) -> None:
        """DEL, then unmount the namespace; a `forgiving` removal goes on when DEL fails."""
        try:
            await self.delete(sandbox)
        except PluginError as error:
            if not forgiving:
                raise
            log.warning("DEL of %s after a failed ADD: %s", sandbox.container_id[:12], error)
        self.drop(sandbox)

    def drop(self, sandbox: Sandbox) -> None:
        """Forget a sandbox and its namespace without any DEL, as a runtime that lost its state does."""
        self.sandboxes.pop(sandbox.container_id, None)
        if sandbox.netns:
            self.unmount(sandbox)
        sandbox.close()

    def make_sandbox(self, pod: PodName, capabilities: dict[str, Any] | None = None) -> Sandbox:
        """A sandbox with an empty network namespace, bind-mounted where the plugins find it."""
        name = f"cni-{secrets.token_hex(8)}"

        def make() -> int:
            unshare(CLONE_NEWNET | CLONE_FS)
            own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            setns(self.namespaces.mnt, CLONE_NEWNS)
            os.close(os.open(f"/run/netns/{name}", os.O_CREAT | os.O_EXCL, 0o444))
            mount("/proc/thread-self/ns/net", f"/run/netns/{name}", flags=MS_BIND)
            return own

        descriptor = apart(make)
        container_id = secrets.token_hex(32)
        return Sandbox(
            container_id, pod, f"/var/run/netns/{name}", descriptor, capabilities=capabilities or {}
        )

    def unmount(self, sandbox: Sandbox) -> None:
        """Remove the namespace's path in the node."""

        def remove() -> None:
            with contextlib.suppress(OSError):
                unmount(sandbox.netns)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(sandbox.netns)

        self.namespaces.run(remove)

    async def execute(
        self,
        sandbox: Sandbox | None,
        network: NetworkConfig,
        position: int,
        command: str,
        ifname: str,
        previous: dict[str, Any] | None = None,
    ) -> bytes:
        """Run one plugin in the node and return its standard output; PluginError with its error object."""
        environment = {"PATH": os.environ.get("PATH", ""), "CNI_COMMAND": command, "CNI_PATH": PLUGINS}
        capabilities: dict[str, Any] = {}
        if sandbox is not None:
            arguments = {
                "IgnoreUnknown": "1",
                "K8S_POD_NAMESPACE": sandbox.pod.namespace,
                "K8S_POD_NAME": sandbox.pod.name,
                "K8S_POD_INFRA_CONTAINER_ID": sandbox.container_id,
                "K8S_POD_UID": sandbox.pod.uid,
            }
            environment |= {
                "CNI_CONTAINERID": sandbox.container_id,
                "CNI_NETNS": sandbox.netns,
                "CNI_IFNAME": ifname,
                "CNI_ARGS": ";".join(f"{key}={value}" for key, value in arguments.items()),
            }
            capabilities = sandbox.capabilities
        kind = network.plugins[position]["type"]
        if not self.disk.path(f"{PLUGINS}/{kind}").is_file():
            raise PluginError(f'failed to find plugin "{kind}" in path [{PLUGINS}]')
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *self.namespaces.command(f"{PLUGINS}/{kind}"),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=environment,
        )
        what = f"plugin {kind} {command}"
        try:
            async with asyncio.timeout(_LIMIT_SECONDS):
                config = network.stdin(position, previous, capabilities)
                output, errors = await process.communicate(config)
        except TimeoutError as error:
            raise PluginError(f"{what} took longer than {_LIMIT_SECONDS:.0f} s and was killed") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise _failure(what, process.returncode or 0, output, errors)
        return output


def _failure(what: str, returncode: int, output: bytes, errors: bytes) -> PluginError:
    try:
        answer = json.loads(output)
        code, message, details = int(answer["code"]), str(answer["msg"]), str(answer.get("details", ""))
    except (ValueError, KeyError, TypeError):
        text = (output + errors).decode(errors="replace").strip()
        return PluginError(f"{what} failed with exit status {returncode} and no CNI error object: {text}")
    full = f"{what} failed (code {code}): {message}" + (f"; {details}" if details else "")
    return PluginError(full, code=code, details=details)
