"""Turns what the daemon knows into weft.admin.v1 messages. Pure: values in, messages out, text made here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datapath import text
from ipam.pool import Pool
from weft_rpc import admin_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

    from daemon.admin.sources import Difference, Health, Local, Path
    from daemon.cluster.model import Node
    from daemon.findings import Finding

_LEVELS = {"ok": admin_pb2.LEVEL_OK, "warning": admin_pb2.LEVEL_WARNING, "error": admin_pb2.LEVEL_ERROR}


def status(
    health: Health, local: Local | None, findings: Iterable[Finding], *, uptime: float
) -> admin_pb2.StatusResponse:
    """Makes the status; the caller adds what it knows by name (version, node, overlay, counts)."""
    answer = admin_pb2.StatusResponse(
        ready=health.ready,
        uptime_seconds=uptime,
        api_server_connected=health.api_connected,
        seconds_since_sync=health.seconds_since_sync,
        repairs=health.repairs,
        pending_deletions=health.pending_deletions,
        findings=[
            admin_pb2.Finding(name=row.name, level=_LEVELS[row.level], message=row.message, key=row.key)
            for row in findings
        ],
    )
    if local is not None:
        answer.pod_cidrs.extend(text.prefix(*cidr) for cidr in local.pod_cidrs)
        answer.internal_ips.extend(text.address(address) for address in local.internal_ips)
        answer.mtu = local.mtu
    return answer


def pools(local: Local | None) -> tuple[Pool, ...]:
    """Returns this node's pools, in the order of its pod CIDRs."""
    return tuple(Pool(cidr.address, cidr.length) for cidr in local.pod_cidrs) if local is not None else ()


def node(value: Node, path: Path) -> admin_pb2.Node:
    """Describes a node and how it is reached."""
    return admin_pb2.Node(
        name=value.name,
        internal_ips=[text.address(address) for address in value.internal_ips],
        pod_cidrs=[text.prefix(*cidr) for cidr in value.pod_cidrs],
        path=path.kind,
        mac=text.mac(path.mac) if path.mac is not None else "",
        problem=path.problem,
    )


def differences(rows: Iterable[Difference], *, age: float) -> admin_pb2.DiffResponse:
    """Lists differences between the kernel and a desired state of that age in seconds."""
    return admin_pb2.DiffResponse(
        differences=[
            admin_pb2.Difference(kind=row.kind, action=row.action, object=row.object) for row in rows
        ],
        desired_age_seconds=max(0.0, age),
    )
