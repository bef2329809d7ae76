"""`weftctl nodes`: how this node reaches every other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ctl.invocation import shared_options, watch_option
from ctl.render import Column, Report, Table

if TYPE_CHECKING:
    from ctl.invocation import Invocation
    from weft_rpc.admin_pb2 import Node

_COLUMNS = (
    Column("NAME", lambda node: node.name),
    Column("PATH", lambda node: node.path, style=lambda node: "" if node.path != "none" else "red"),
    Column("ADDRESSES", lambda node: ", ".join(node.internal_ips)),
    Column("POD CIDRS", lambda node: ", ".join(node.pod_cidrs)),
    Column("VTEP", lambda node: node.mac, wide=True),
    Column("PROBLEM", lambda node: node.problem, style=lambda _node: "yellow"),
)


@click.command()
@shared_options
@watch_option
@click.pass_obj
def nodes(invocation: Invocation) -> None:
    """Show how this node reaches the others.

    PATH is local (this node), direct (routed on the segment), vxlan, or none; PROBLEM says why a node cannot
    be reached, and the exit code is 1 then.
    """

    def load() -> Report:
        from weft_rpc import admin_pb2

        answer = invocation.ask("ListNodes", admin_pb2.ListNodesRequest(), admin_pb2.ListNodesResponse)
        return Report(
            answer,
            [Table(_COLUMNS, sorted(answer.nodes, key=_order), "No node is known yet.")],
            failed=any(node.problem for node in answer.nodes),
        )

    invocation.show(load)


def _order(node: Node) -> tuple[bool, str]:
    return (node.path != "local", node.name)
