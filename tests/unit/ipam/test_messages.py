"""IPAM's values as messages of weft.admin.v1."""

from __future__ import annotations

from ipam import messages
from ipam.audit import Fault
from ipam.pool import Pool, Usage
from ipam.ports import PortMapping
from ipam.record import AttachmentKey, Record, State
from weft_rpc import admin_pb2


def test_an_attachment_keeps_every_field() -> None:
    record = Record(
        key=AttachmentKey("weft", "c1", "eth0"),
        netns="/run/netns/a",
        host_link="weft0000000000a",
        mac=bytes([2, 0, 0, 0, 0, 1]),
        mtu=1450,
        addresses=(bytes([10, 1, 1, 7]), b"\xfd" + bytes(14) + b"\x07"),
        pod_namespace="default",
        pod_name="web",
        pod_uid="u",
        state=State.RELEASING,
        created=100.0,
        ports=(PortMapping(b"", 6, 8080, 80), PortMapping(bytes((192, 0, 2, 1)), 17, 53, 5353)),
    )
    (row,) = messages.attachments([record], now=160.0).attachments
    assert row == admin_pb2.Attachment(
        network="weft",
        container_id="c1",
        ifname="eth0",
        netns="/run/netns/a",
        host_link="weft0000000000a",
        mac="02:00:00:00:00:01",
        mtu=1450,
        addresses=["10.1.1.7", "fd00::7"],
        pod_namespace="default",
        pod_name="web",
        pod_uid="u",
        state="releasing",
        age_seconds=60.0,
        ports=[
            admin_pb2.HostPort(host_port=8080, container_port=80, protocol="tcp"),
            admin_pb2.HostPort(host_ip="192.0.2.1", host_port=53, container_port=5353, protocol="udp"),
        ],
    )
    assert {field.name for field, _ in row.ListFields()} == set(
        admin_pb2.Attachment.DESCRIPTOR.fields_by_name
    )


def test_a_pool_larger_than_the_message_can_say_is_cut_short() -> None:
    huge = Pool(b"\xfd" + bytes(15), 48)
    (row,) = messages.usage([Usage(huge, huge.size, 2, 1)]).pools
    assert (row.size, row.used, row.cooling, row.free) == (2**64 - 1, 2, 1, 2**64 - 1)


def test_a_leak_is_a_row_for_each_address() -> None:
    both = Fault((bytes([10, 1, 1, 7]), b"\xfd" + bytes(15)), "c1", "l1", "gone")
    bare = Fault((), "", "l2", "odd")
    rows = messages.leaks([both, bare]).leaks
    assert [(row.address, row.container_id, row.reason) for row in rows] == [
        ("10.1.1.7", "c1", "gone"),
        ("fd00::", "c1", "gone"),
        ("", "", "odd"),
    ]
