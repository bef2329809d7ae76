"""The admin service over a real socket, with plain sources."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from daemon.admin.server import AdminService, AdminSocketError, is_namespace, methods, serve, streams
from daemon.admin.sources import Health, Path, Sources
from daemon.cluster.model import Node, Prefix
from daemon.compile.catalog import Catalog
from daemon.denials import WATCHERS
from datapath.errors import DatapathError
from datapath.packetlog import DeniedPacket
from datapath.policy import Direction
from ipam.pool import Usage
from ipam.record import AttachmentKey, Record, State
from tests.unit.daemon.admin.test_policy_answers import sources as policy_sources
from tests.unit.daemon.compile.shop import SITE
from tests.unit.daemon.compile.shop import service as web
from tests.unit.daemon.compile.town import shop
from weft_rpc import admin_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path as FilePath

    from google.protobuf.message import Message

    from daemon.compile.catalog import View
    from daemon.findings import Finding
    from ipam.pool import Pool
    from tests.unit.daemon.compile.town import Town

RECORD = Record(
    key=AttachmentKey("weft", "c1", "eth0"),
    netns="/proc/self/ns/net",
    host_link="weft0000000000a",
    mac=bytes(6),
    mtu=1450,
    addresses=(bytes([10, 1, 1, 7]),),
    state=State.ATTACHED,
)


@dataclass(frozen=True)
class Local:
    internal_ips: tuple[bytes, ...] = (bytes([172, 20, 0, 2]),)
    pod_cidrs: tuple[Prefix, ...] = (Prefix(bytes([10, 1, 1, 0]), 24),)
    mtu: int = 1450


@dataclass
class Leases:
    held: tuple[Record, ...] = (RECORD,)

    def records(self) -> tuple[Record, ...]:
        return self.held

    def usage(self, pools: Iterable[Pool]) -> tuple[Usage, ...]:
        return tuple(Usage(pool, pool.size, len(self.held), 0) for pool in pools)


@dataclass
class Findings:
    found: tuple[Finding, ...] = ()

    def rows(self) -> tuple[Finding, ...]:
        return self.found


@dataclass
class Row:
    kind: str = "route"
    action: str = "missing"
    object: str = "10.1.2.0/24"


@dataclass
class OneNode:
    """A node's state as a test sets it."""

    leases: Leases = field(default_factory=Leases)
    links: list[Mapping[str, str]] = field(default_factory=lambda: [{RECORD.host_link: ""}])
    rows: Sequence[Row] | Exception = ()

    async def read_links(self) -> Mapping[str, str]:
        return self.links.pop(0) if len(self.links) > 1 else self.links[0]

    async def difference(self) -> Sequence[Row]:
        if isinstance(self.rows, Exception):
            raise self.rows
        return self.rows

    def sources(self) -> Sources:
        return Sources(
            version="0.1.0",
            node_name="n1",
            overlay="vxlan",
            nodes={
                "n2": Node("n2", "u2", (bytes([172, 20, 0, 3]),), (Prefix(bytes([10, 1, 2, 0]), 24),)),
                "n1": Node("n1", "u1", (bytes([172, 20, 0, 2]),), (Prefix(bytes([10, 1, 1, 0]), 24),)),
            },
            local=Local,
            path=lambda node: Path("local" if node.name == "n1" else "vxlan"),
            leases=self.leases,
            difference=self.difference,
            links=self.read_links,
            findings=Findings(),
            health=lambda: Health(
                ready=True, api_connected=True, seconds_since_sync=1, repairs=0, pending_deletions=0
            ),
            services=self.views,
            policies=policy_sources(policed()),
        )

    def views(self, name: str) -> Sequence[View]:
        catalog = Catalog()
        catalog.update({"shop/web": web()}, lambda _: (), ["shop/web"], SITE)
        views = map(catalog.view, [name] if name else ["shop/web"])
        return [view for view in views if view is not None]


def policed() -> Town:
    """A node with one isolated pod."""
    town = shop()
    town.policy("shop/p", "app=db")
    return town


async def ask(path: FilePath, method: str, node: OneNode, **fields: Any) -> Any:
    """Serves on a socket and asks once over it."""
    server = await serve(str(path / "admin.sock"), AdminService(node.sources()))
    try:
        async with grpc.aio.insecure_channel(f"unix:{path}/admin.sock") as channel:
            description = admin_pb2.DESCRIPTOR.services_by_name["Admin"].methods_by_name[method]
            answer: type[Message] = getattr(admin_pb2, description.output_type.name)
            call = channel.unary_unary(
                f"/weft.admin.v1.Admin/{method}",
                request_serializer=lambda request: request.SerializeToString(),
                response_deserializer=answer.FromString,
            )
            return await call(getattr(admin_pb2, description.input_type.name)(**fields))
    finally:
        await server.stop(None)


def test_the_contract_is_answered_in_full() -> None:
    contract = admin_pb2.DESCRIPTOR.services_by_name["Admin"]
    service = AdminService(OneNode().sources())
    for answered, many in ((methods(service), False), (streams(service), True)):
        wanted = {each.name for each in contract.methods if each.server_streaming is many}
        assert set(answered) == wanted


async def test_status(tmp_path: FilePath) -> None:
    answer = await ask(tmp_path, "Status", OneNode())
    assert (answer.version, answer.node_name, answer.overlay) == ("0.1.0", "n1", "vxlan")
    assert (answer.attachments, answer.nodes, answer.mtu) == (1, 2, 1450)
    assert answer.ready


async def test_attachments_and_pools(tmp_path: FilePath) -> None:
    answer = await ask(tmp_path, "ListAttachments", OneNode())
    assert [row.addresses for row in answer.attachments] == [["10.1.1.7"]]
    answer = await ask(tmp_path, "ShowIpam", OneNode())
    assert [(row.cidr, row.size, row.used) for row in answer.pools] == [("10.1.1.0/24", 253, 1)]


async def test_nodes_are_sorted(tmp_path: FilePath) -> None:
    answer = await ask(tmp_path, "ListNodes", OneNode())
    assert [(row.name, row.path) for row in answer.nodes] == [("n1", "local"), ("n2", "vxlan")]


async def test_services(tmp_path: FilePath) -> None:
    answer = await ask(tmp_path, "ListServices", OneNode())
    assert [row.name for row in answer.services] == ["shop/web"]
    assert [row.name for row in (await ask(tmp_path, "ListServices", OneNode(), name="shop/web")).services]
    assert not (await ask(tmp_path, "ListServices", OneNode(), name="shop/other")).services


async def test_leaks(tmp_path: FilePath) -> None:
    assert not (await ask(tmp_path, "CheckIpam", OneNode())).leaks
    gone = OneNode(leases=Leases((replace(RECORD, netns=str(tmp_path / "nothing")),)))
    (leak,) = (await ask(tmp_path, "CheckIpam", gone)).leaks
    assert leak.address == "10.1.1.7"
    assert leak.reason.endswith("is gone")


async def test_what_fits_at_the_second_look_is_no_leak(tmp_path: FilePath) -> None:
    passing = OneNode(links=[{}, {RECORD.host_link: ""}])
    assert not (await ask(tmp_path, "CheckIpam", passing)).leaks
    assert len(passing.links) == 1


async def test_difference(tmp_path: FilePath) -> None:
    answer = await ask(tmp_path, "Diff", OneNode(rows=[Row()]))
    assert [(row.kind, row.action, row.object) for row in answer.differences] == [
        ("route", "missing", "10.1.2.0/24")
    ]


async def test_a_kernel_that_cannot_be_read_is_an_error_in_words(tmp_path: FilePath) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await ask(tmp_path, "Diff", OneNode(rows=DatapathError("routes can't be read: no memory")))
    assert raised.value.code() == grpc.StatusCode.INTERNAL
    assert raised.value.details() == "routes can't be read: no memory"


async def test_the_socket_is_roots_alone_and_replaces_one_left_over(tmp_path: FilePath) -> None:
    path = tmp_path / "run" / "admin.sock"
    path.parent.mkdir(mode=0o700)
    path.write_text("left over")
    server = await serve(str(path), AdminService(OneNode().sources()))
    try:
        assert os.stat(path).st_mode & 0o777 == 0o600
    finally:
        await server.stop(None)


async def test_a_directory_that_is_none_is_an_error_in_words(tmp_path: FilePath) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AdminSocketError, match="must exist and be writable"):
        await serve(str(tmp_path / "file" / "admin.sock"), AdminService(OneNode().sources()))


def test_namespaces_are_told_from_files(tmp_path: FilePath) -> None:
    (tmp_path / "plain").write_text("")
    assert is_namespace("/proc/self/ns/net")
    assert not is_namespace(str(tmp_path / "plain"))
    assert not is_namespace(str(tmp_path / "nothing"))


async def test_policies_are_listed_and_explained(tmp_path: FilePath) -> None:
    (policy,) = (await ask(tmp_path, "ListPolicies", OneNode())).policies
    assert (policy.name, list(policy.pods)) == ("shop/p", ["shop/db"])
    question = {"source": "10.244.1.10", "destination": "shop/db", "protocol": "tcp", "port": 80}
    (verdict,) = (await ask(tmp_path, "ExplainPolicy", OneNode(), **question)).verdicts
    assert not verdict.allowed


async def test_a_question_that_can_t_be_answered_here_says_what_to_do(tmp_path: FilePath) -> None:
    question = {"source": "shop/nobody", "destination": "shop/db", "protocol": "tcp", "port": 80}
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ask(tmp_path, "ExplainPolicy", OneNode(), **question)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "give its address" in (refused.value.details() or "")


async def test_who_is_told_that_it_listens_misses_nothing() -> None:
    sources = OneNode().sources()
    answers = AdminService(sources).monitor()
    assert await anext(answers) is None
    address = bytes([10, 244, 1, 11])
    sources.policies.denials.take([DeniedPacket(Direction.INGRESS, bytes([8, 8, 8, 8]), address, 6, 1, 2)])
    found = await asyncio.wait_for(anext(answers), 5)
    assert found is not None
    assert (found.pod, found.source) == ("shop/db", "8.8.8.8")


async def test_denied_packets_are_streamed_to_a_few(tmp_path: FilePath) -> None:
    node = OneNode()
    sources = node.sources()
    denials = sources.policies.denials
    server = await serve(str(tmp_path / "admin.sock"), AdminService(sources))
    try:
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/admin.sock") as channel:
            ask_for_all = channel.unary_stream(
                "/weft.admin.v1.Admin/Monitor",
                request_serializer=lambda request: request.SerializeToString(),
                response_deserializer=admin_pb2.Denial.FromString,
            )
            calls = [ask_for_all(admin_pb2.MonitorRequest()) for _ in range(WATCHERS)]
            for call in calls:
                await call.initial_metadata()
            address = bytes([10, 244, 1, 11])
            denials.take([DeniedPacket(Direction.INGRESS, bytes([8, 8, 8, 8]), address, 6, 1, 2)])
            for call in calls:
                found: Any = await call.read()
                assert (found.pod, found.source, found.destination_port) == ("shop/db", "8.8.8.8", 2)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask_for_all(admin_pb2.MonitorRequest()).read()
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            calls[0].cancel()
            await asyncio.sleep(0.1)
            again = ask_for_all(admin_pb2.MonitorRequest())
            await again.initial_metadata()
    finally:
        await server.stop(None)
