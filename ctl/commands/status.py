"""`weftctl status`: whether this node's network is well, and what is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ctl.invocation import shared_options, watch_option
from ctl.render import Column, Report, Table, age, count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctl.invocation import Invocation
    from weft_rpc.admin_pb2 import Finding, ShowIpamResponse, StatusResponse

_LEVELS = {1: ("ok", "green"), 2: ("warning", "yellow"), 3: ("error", "bold red")}
_OK = 1
_ROW_COLUMNS = (
    Column("", lambda row: row[0], style=lambda _row: "bold"),
    Column("", lambda row: row[1], style=lambda row: row[2]),
)
_FINDING_COLUMNS = (
    Column("LEVEL", lambda row: _level(row)[0], style=lambda row: _level(row)[1]),
    Column("FINDING", lambda row: row.name),
    Column("MESSAGE", lambda row: row.message),
)


@click.command()
@shared_options
@watch_option
@click.option("-v", "--verbose", is_flag=True, help="Show address pools, and the checks that found nothing.")
@click.pass_obj
def status(invocation: Invocation, verbose: bool) -> None:
    """Show whether this node's network is well.

    The exit code is 1 when the node is not ready or a check found a warning or an error.
    """

    def load() -> Report:
        from weft_rpc import admin_pb2

        answer = invocation.ask("Status", admin_pb2.StatusRequest(), admin_pb2.StatusResponse)
        pools = None
        if verbose and invocation.form in {"table", "wide"}:
            pools = invocation.ask("ShowIpam", admin_pb2.ShowIpamRequest(), admin_pb2.ShowIpamResponse)
        findings = [row for row in answer.findings if verbose or row.level != _OK]
        findings.sort(key=lambda row: (-row.level, row.name))
        return Report(
            answer,
            [Table(_ROW_COLUMNS, _rows(answer, pools)), Table(_FINDING_COLUMNS, findings, "No warnings.")],
            failed=not answer.ready or any(row.level > _OK for row in answer.findings),
        )

    invocation.show(load)


def _level(row: Finding) -> tuple[str, str]:
    return _LEVELS.get(row.level, ("unknown", ""))


def _rows(answer: StatusResponse, pools: ShowIpamResponse | None) -> Iterator[tuple[str, str, str]]:
    """Yields name, text and style of each line."""
    yield ("Node", answer.node_name, "")
    yield ("State", "ready", "green") if answer.ready else ("State", "not ready", "bold red")
    yield ("Daemon", f"weftd {answer.version}, up {age(answer.uptime_seconds)}", "")
    connected = answer.api_server_connected
    yield ("API server", "connected" if connected else "not connected", "" if connected else "yellow")
    yield ("Addresses", ", ".join(answer.internal_ips), "")
    yield ("Pod CIDRs", ", ".join(answer.pod_cidrs) or "none yet", "" if answer.pod_cidrs else "yellow")
    for pool in pools.pools if pools else ():
        yield (
            "Pool",
            (
                f"{pool.cidr}: {pool.used} of {count(pool.size)} used, {pool.cooling} cooling, "
                f"{count(pool.free)} free"
            ),
            "" if pool.free else "red",
        )
    yield ("Overlay", f"{answer.overlay}, MTU of pods {answer.mtu}" if answer.mtu else answer.overlay, "")
    yield ("Attachments", str(answer.attachments), "")
    yield ("Nodes", str(answer.nodes), "")
    never = answer.seconds_since_sync < 0
    when = "not yet" if never else f"{age(answer.seconds_since_sync)} ago"
    yield ("Last sync", f"{when}, {answer.repairs} foreign changes repaired", "yellow" if never else "")
    waiting = answer.pending_deletions
    yield ("Deletions", f"{waiting} waiting" if waiting else "none waiting", "yellow" if waiting else "")
