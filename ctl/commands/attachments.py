"""`weftctl attachments`: the pods' interfaces on this node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ctl.invocation import shared_options, watch_option
from ctl.render import Column, Report, Table, age

if TYPE_CHECKING:
    from ctl.invocation import Invocation
    from weft_rpc import admin_pb2


def _port(port: admin_pb2.HostPort) -> str:
    """Render a host port as the daemon's messages do: 192.0.2.1:8080->80/tcp."""
    host = f"[{port.host_ip}]:" if ":" in port.host_ip else f"{port.host_ip}:" if port.host_ip else ""
    return f"{host}{port.host_port}->{port.container_port}/{port.protocol}"


_COLUMNS = (
    Column("NAMESPACE", lambda row: row.pod_namespace),
    Column("POD", lambda row: row.pod_name),
    Column("ADDRESSES", lambda row: ", ".join(row.addresses)),
    Column("INTERFACE", lambda row: row.ifname),
    Column("HOST LINK", lambda row: row.host_link),
    Column("STATE", lambda row: row.state, style=lambda row: "" if row.state == "attached" else "yellow"),
    Column("AGE", lambda row: age(row.age_seconds), right=True),
    Column("CONTAINER", lambda row: row.container_id[:12]),
    Column("HOST PORTS", lambda row: ", ".join(map(_port, row.ports)), wide=True),
    Column("NETWORK", lambda row: row.network, wide=True),
    Column("MAC", lambda row: row.mac, wide=True),
    Column("MTU", lambda row: str(row.mtu or ""), wide=True, right=True),
    Column("NETNS", lambda row: row.netns, wide=True),
    Column("POD UID", lambda row: row.pod_uid, wide=True),
)


@click.command()
@shared_options
@watch_option
@click.option("-n", "--namespace", help="Only pods of this namespace.")
@click.argument("pod", required=False)
@click.pass_obj
def attachments(invocation: Invocation, namespace: str | None, pod: str | None) -> None:
    """Show the interfaces of this node's pods, of one POD when named.

    Works without the daemon: the node's state database is read then.
    """

    def load() -> Report:
        from weft_rpc import admin_pb2

        answer, source = invocation.ask_or_read(
            "ListAttachments",
            admin_pb2.ListAttachmentsRequest(),
            admin_pb2.ListAttachmentsResponse,
            lambda state: state.attachments(),
        )
        rows = [
            row
            for row in answer.attachments
            if namespace in {None, row.pod_namespace} and pod in {None, row.pod_name}
        ]
        rows.sort(key=lambda row: (row.pod_namespace, row.pod_name, row.container_id, row.ifname))
        shown = admin_pb2.ListAttachmentsResponse(attachments=rows)
        return Report(shown, [Table(_COLUMNS, rows, "No pod is attached.")], source)

    invocation.show(load)
