"""A CNI service over a kernel in memory and a database on disk."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from daemon.cluster.model import Prefix
from daemon.cni.attachments import Attachments
from daemon.cni.deletions import Deletions
from daemon.cni.garbage import Garbage
from daemon.cni.naming import names
from daemon.cni.server import Asked
from daemon.cni.service import CniService
from daemon.config import Config
from daemon.findings import Findings
from daemon.metrics import Metrics
from ipam.allocator import Allocator
from ipam.record import AttachmentKey
from ipam.store import Store
from tests.unit.daemon.cni.fakes import FakeKernel, FakeWriter
from weft_rpc.cni_pb2 import ExecuteRequest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from datapath.conntrack import StaleFlows
    from tests.unit.daemon.cni.fakes import FakeLink
    from weft_rpc.cni_pb2 import ExecuteResponse

SECOND = 1_000_000_000


@dataclass(frozen=True)
class FakeLocal:
    """This node's network as far as CNI needs it."""

    pod_cidrs: tuple[Prefix, ...] = (
        Prefix(bytes((10, 244, 1, 0)), 24),
        Prefix(bytes.fromhex("fd000010024400010000000000000000"), 64),
    )
    sources: tuple[bytes, ...] = (bytes((192, 0, 2, 1)),)
    mtu: int = 1450


@dataclass
class Node:
    """Everything about CNI on one node; `restart` is what a new daemon finds."""

    directory: str
    kernel: FakeKernel = field(default_factory=FakeKernel)
    local: FakeLocal | None = field(default_factory=FakeLocal)
    degraded: str = ""
    now: int = 1000 * SECOND
    boot: str = "boot-1"
    max_pods: int = 0
    config: Config = field(default_factory=Config)

    def __post_init__(self) -> None:
        self._opened: list[Store | Deletions] = []
        self.writer = FakeWriter(self.kernel)
        self.restart()

    def restart(self) -> None:
        """What a killed daemon's successor does first; the killed one has closed nothing."""
        self.store = Store(f"{self.directory}/state.db", boot=self.boot, clock=lambda: self.now)
        self._opened.append(self.store)
        self.allocator = Allocator(self.store)
        self.stale: list[StaleFlows] = []
        self.attachments = Attachments(
            self.allocator, lives=self.kernel.lives, on_stale_flows=self.stale.append
        )
        self.deletions = Deletions(f"{self.directory}/deletions")
        self._opened.append(self.deletions)
        self.findings = Findings()
        self.metrics = Metrics()
        self.changes = 0
        self.service = CniService(
            attachments=self.attachments,
            deletions=self.deletions,
            local=lambda: self.local,
            config=self.config,
            metrics=self.metrics,
            soon=lambda call, *arguments: self.loop.call_soon_threadsafe(call, *arguments),
            degraded=lambda: self.degraded,
            changed=self._count_change,
        )
        self.garbage = Garbage(
            writer=self.writer,
            attachments=self.attachments,
            deletions=self.deletions,
            service=self.service,
            local=lambda: self.local,
            max_pods=lambda: self.max_pods,
            findings=self.findings,
            metrics=self.metrics,
        )

    def _count_change(self) -> None:
        self.changes += 1

    def close(self) -> None:
        for each in self._opened:
            each.close()
        self.writer.close()

    def request(self, command: str, number: int = 1, **changes: Any) -> ExecuteRequest:
        """What the shim sends for a container; keywords other than the message's become configuration."""
        message: dict[str, Any] = {
            "command": command,
            "container_id": f"c{number}",
            "netns": f"/run/netns/{number}",
            "ifname": "eth0",
            "args": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-{number};K8S_POD_UID=u{number}",  # noqa: E501
            "path": "/opt/cni/bin",
        }
        for name in [name for name in changes if name in message]:
            message[name] = changes.pop(name)
        config = {"cniVersion": "1.1.0", "name": "weft", "type": "weft", **changes}
        if command in ("ADD", "CHECK") and "netns" not in changes:
            self.kernel.namespaces.add(message["netns"])
        return ExecuteRequest(**message, config=json.dumps(config).encode())

    async def ask(self, command: str, number: int = 1, **changes: Any) -> tuple[int, Any]:
        """Send a request; returns exit code and decoded output (None when there is none)."""
        (response,) = await self.execute(self.request(command, number, **changes))
        return decoded(response)

    async def execute(self, *requests: ExecuteRequest) -> list[ExecuteResponse]:
        """Have requests answered that came at the same time."""
        self.loop = asyncio.get_running_loop()
        if len(requests) == 1 and (said := self.service.at_once(*requests)) is not None:
            return [said]
        asked = [Asked(request, time.perf_counter()) for request in requests]
        pieces = await self.writer.attachment(lambda kernel: list(self.service.execute(kernel, asked)))
        return [response for piece in pieces for response in piece]

    async def add(self, number: int = 1, **changes: Any) -> Any:
        code, body = await self.ask("ADD", number, **changes)
        assert code == 0, body
        return body

    async def refused(self, command: str, number: int = 1, **changes: Any) -> Any:
        code, body = await self.ask(command, number, **changes)
        assert code == 1
        return body

    def key(self, number: int = 1) -> AttachmentKey:
        return AttachmentKey("weft", f"c{number}", "eth0")

    def link(self, number: int = 1) -> FakeLink | None:
        return self.kernel.table.get(names(self.key(number))[0])


def decoded(response: ExecuteResponse) -> tuple[int, Any]:
    return response.exit_code, json.loads(response.output) if response.output else None


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    found = Node(str(tmp_path))
    yield found
    found.close()
