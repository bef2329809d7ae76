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
    from ipam.audit import Fault
    from ipam.pool import Usage
    from ipam.record import Record

_LEVELS = {"ok": admin_pb2.LEVEL_OK, "warning": admin_pb2.LEVEL_WARNING, "error": admin_pb2.LEVEL_ERROR}
_MOST = 2**64 - 1
"""An IPv6 pool shorter than /64 has more addresses than the messages' numbers can say."""


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


def attachments(records: Iterable[Record], *, now: float) -> admin_pb2.ListAttachmentsResponse:
    """Lists attachments; `now` is in seconds of CLOCK_BOOTTIME."""
    return admin_pb2.ListAttachmentsResponse(attachments=[_attachment(record, now) for record in records])


def _attachment(record: Record, now: float) -> admin_pb2.Attachment:
    return admin_pb2.Attachment(
        network=record.key.network,
        container_id=record.key.container_id,
        ifname=record.key.ifname,
        netns=record.netns,
        host_link=record.host_link,
        mac=text.mac(record.mac),
        mtu=record.mtu,
        addresses=[text.address(address) for address in record.addresses],
        pod_namespace=record.pod_namespace,
        pod_name=record.pod_name,
        pod_uid=record.pod_uid,
        state=record.state.name.lower(),
        age_seconds=max(0.0, now - record.created),
    )


def pools(local: Local | None) -> tuple[Pool, ...]:
    """Returns this node's pools, in the order of its pod CIDRs."""
    return tuple(Pool(cidr.address, cidr.length) for cidr in local.pod_cidrs) if local is not None else ()


def usage(figures: Iterable[Usage]) -> admin_pb2.ShowIpamResponse:
    """Lists each pool's figures."""
    return admin_pb2.ShowIpamResponse(
        pools=[
            admin_pb2.Pool(
                cidr=each.pool.text,
                size=min(each.size, _MOST),
                used=each.used,
                cooling=each.cooling,
                free=min(each.free, _MOST),
            )
            for each in figures
        ]
    )


def leaks(faults: Iterable[Fault]) -> admin_pb2.CheckIpamResponse:
    """Lists what an audit found, one row for each address."""
    return admin_pb2.CheckIpamResponse(
        leaks=[
            admin_pb2.Leak(
                address=text.address(address) if address else "",
                container_id=fault.container_id,
                reason=fault.reason,
            )
            for fault in faults
            for address in (fault.addresses or (b"",))
        ]
    )


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
