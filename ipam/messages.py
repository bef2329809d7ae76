"""IPAM's values as messages of weft.admin.v1, for the daemon and for weftctl without it. Pure."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from ipam.ports import NAMES
from weft_rpc import admin_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ipam.audit import Fault
    from ipam.pool import Usage
    from ipam.ports import PortMapping
    from ipam.record import Record

_MOST = 2**64 - 1
"""An IPv6 pool shorter than /64 has more addresses than the messages' numbers can say."""


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
        mac=record.mac.hex(":"),
        mtu=record.mtu,
        addresses=[str(ip_address(address)) for address in record.addresses],
        pod_namespace=record.pod_namespace,
        pod_name=record.pod_name,
        pod_uid=record.pod_uid,
        state=record.state.name.lower(),
        age_seconds=max(0.0, now - record.created),
        ports=[_port(each) for each in record.ports],
    )


def _port(port: PortMapping) -> admin_pb2.HostPort:
    return admin_pb2.HostPort(
        host_ip=str(ip_address(port.host_address)) if port.host_address else "",
        host_port=port.host_port,
        container_port=port.container_port,
        protocol=NAMES[port.protocol],
    )


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
                address=str(ip_address(address)) if address else "",
                container_id=fault.container_id,
                reason=fault.reason,
            )
            for fault in faults
            for address in (fault.addresses or (b"",))
        ]
    )
