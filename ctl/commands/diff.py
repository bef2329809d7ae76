"""`weftctl diff`: where the kernel departs from what the daemon wants it to hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ctl.invocation import shared_options, watch_option
from ctl.render import Column, Report, Table, age

if TYPE_CHECKING:
    from ctl.invocation import Invocation

_STYLES = {"missing": "red", "stale": "yellow", "changed": "magenta"}
_COLUMNS = (
    Column("ACTION", lambda row: row.action, style=lambda row: _STYLES.get(row.action, "")),
    Column("KIND", lambda row: row.kind),
    Column("OBJECT", lambda row: row.object),
)


@click.command()
@shared_options
@watch_option
@click.pass_obj
def diff(invocation: Invocation) -> None:
    """Compare the kernel with the desired state; changes nothing.

    missing: the kernel lacks it; stale: it is ours and should be gone; changed: it has other values. The exit
    code is 1 when there is any difference. Works without the daemon: the kernel is compared with the state
    that the daemon applied last.
    """

    def load() -> Report:
        from weft_rpc import admin_pb2

        answer, source = invocation.ask_or_read(
            "Diff", admin_pb2.DiffRequest(), admin_pb2.DiffResponse, lambda state: state.difference()
        )
        empty = f"No difference; the desired state is {age(answer.desired_age_seconds)} old."
        return Report(
            answer, [Table(_COLUMNS, answer.differences, empty)], source, failed=bool(answer.differences)
        )

    invocation.show(load)
