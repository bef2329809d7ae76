"""`weftctl monitor`: what policies deny on this node, as it happens."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from ctl.exits import Exit
from ctl.invocation import shared_options
from ctl.render import printable, write_line

if TYPE_CHECKING:
    from ctl.invocation import Invocation
    from weft_rpc.admin_pb2 import Denial


@click.command()
@shared_options
@click.pass_obj
def monitor(invocation: Invocation) -> None:
    """Show packets that no policy allows, as they come, until interrupted.

    Of many at once the kernel tells some only (policyLogRate); `weftctl policy list` counts all of them.
    """
    from weft_rpc import admin_pb2

    try:
        for each in invocation.listen("Monitor", admin_pb2.MonitorRequest(), admin_pb2.Denial):
            if each.left_out:
                click.echo(f"{each.left_out} packets were left out: this reader is too slow", err=True)
            if invocation.form in {"json", "yaml"}:
                write_line(each, invocation.form)
            else:
                click.echo(printable(_words(each)))
    except KeyboardInterrupt:
        pass
    sys.exit(Exit.OK)


def _words(denial: Denial) -> str:
    when = time.strftime("%H:%M:%S", time.localtime(denial.time))
    source, destination = (
        _end(address, port, pod)
        for address, port, pod in (
            (denial.source, denial.source_port, denial.pod if denial.direction == "egress" else denial.peer),
            (
                denial.destination,
                denial.destination_port,
                denial.pod if denial.direction == "ingress" else denial.peer,
            ),
        )
    )
    by = ", ".join(denial.policies) or "all policies of its namespace: its labels are not known yet"
    return f"{when} {denial.direction} denied: {denial.protocol} {source} to {destination}, isolated by {by}"


def _end(address: str, port: int, pod: str) -> str:
    shown = f"[{address}]" if port and ":" in address else address
    place = f"{shown}:{port}" if port else shown
    return f"{pod} ({place})" if pod else place
