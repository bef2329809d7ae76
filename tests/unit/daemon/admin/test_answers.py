"""Values of the daemon as messages of weft.admin.v1."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.admin import answers
from daemon.admin.sources import Health, Path
from daemon.cluster.model import Node, Prefix
from daemon.findings import Finding
from weft_rpc import admin_pb2

HEALTH = Health(ready=True, api_connected=True, seconds_since_sync=2.5, repairs=3, pending_deletions=1)


@dataclass(frozen=True)
class Local:
    internal_ips: tuple[bytes, ...] = (bytes([172, 20, 0, 2]),)
    pod_cidrs: tuple[Prefix, ...] = (Prefix(bytes([10, 1, 1, 0]), 24), Prefix(b"\xfd" + bytes(15), 64))
    mtu: int = 1450


@dataclass(frozen=True)
class Row:
    kind: str
    action: str
    object: str


def test_status_before_the_node_is_known() -> None:
    answer = answers.status(HEALTH, None, [], uptime=1)
    assert answer.mtu == 0
    assert not answer.pod_cidrs
    assert answer.repairs == 3
    assert answer.pending_deletions == 1


def test_status_of_a_node() -> None:
    findings = [
        Finding("RivalConflist", "warning", "w", "k"),
        Finding("X", "error", "e"),
        Finding("Y", "ok", "o"),
    ]
    answer = answers.status(HEALTH, Local(), findings, uptime=1)
    assert list(answer.pod_cidrs) == ["10.1.1.0/24", "fd00::/64"]
    assert list(answer.internal_ips) == ["172.20.0.2"]
    assert [row.level for row in answer.findings] == [
        admin_pb2.LEVEL_WARNING,
        admin_pb2.LEVEL_ERROR,
        admin_pb2.LEVEL_OK,
    ]
    assert answer.findings[0].key == "k"


def test_pools_follow_the_pod_cidrs() -> None:
    assert answers.pools(None) == ()
    assert [pool.text for pool in answers.pools(Local())] == ["10.1.1.0/24", "fd00::/64"]


def test_a_node() -> None:
    value = Node("n2", "uid", (bytes([172, 20, 0, 3]),), (Prefix(bytes([10, 1, 2, 0]), 24),))
    row = answers.node(value, Path("vxlan", bytes([2, 0, 0, 0, 0, 9])))
    assert row == admin_pb2.Node(
        name="n2",
        internal_ips=["172.20.0.3"],
        pod_cidrs=["10.1.2.0/24"],
        path="vxlan",
        mac="02:00:00:00:00:09",
    )
    assert answers.node(value, Path("none", problem="why")).problem == "why"


def test_differences() -> None:
    answer = answers.differences([Row("route", "missing", "10.1.2.0/24")], age=-1.0)
    assert answer == admin_pb2.DiffResponse(
        differences=[admin_pb2.Difference(kind="route", action="missing", object="10.1.2.0/24")]
    )
