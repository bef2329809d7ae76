"""`weftctl ipam`: this node's address pools, and leases that nothing uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ctl.invocation import shared_options, watch_option
from ctl.render import Column, Report, Table, count

if TYPE_CHECKING:
    from ctl.invocation import Invocation

_POOL_COLUMNS = (
    Column("POOL", lambda pool: pool.cidr),
    Column("SIZE", lambda pool: count(pool.size), right=True),
    Column("USED", lambda pool: str(pool.used), right=True),
    Column("COOLING", lambda pool: str(pool.cooling), right=True),
    Column("FREE", lambda pool: count(pool.free), style=lambda pool: "" if pool.free else "red", right=True),
    Column("USED %", lambda pool: f"{100 * pool.used / pool.size:.1f}" if pool.size else "", right=True),
)
_LEAK_COLUMNS = (
    Column("ADDRESS", lambda leak: leak.address),
    Column("CONTAINER", lambda leak: leak.container_id),
    Column("REASON", lambda leak: leak.reason, style=lambda _leak: "yellow"),
)


@click.group()
@shared_options
def ipam() -> None:
    """Address pools and leases of this node."""


@ipam.command()
@shared_options
@watch_option
@click.pass_obj
def show(invocation: Invocation) -> None:
    """Show the address pools: size, used, cooling and free addresses.

    Works without the daemon: the node's state is read then.
    """

    def load() -> Report:
        from weft_rpc import admin_pb2

        answer, source = invocation.ask_or_read(
            "ShowIpam", admin_pb2.ShowIpamRequest(), admin_pb2.ShowIpamResponse, lambda state: state.pools()
        )
        return Report(answer, [Table(_POOL_COLUMNS, answer.pools, "This node has no pod CIDR yet.")], source)

    invocation.show(load)


@ipam.command()
@shared_options
@watch_option
@click.pass_obj
def check(invocation: Invocation) -> None:
    """Look for leases without a pod and pods without a lease.

    The exit code is 1 when there are any. The daemon takes such leases back by itself, at its start and by
    timer. Works without the daemon: the node's state and kernel are read then.
    """

    def load() -> Report:
        from weft_rpc import admin_pb2

        answer, source = invocation.ask_or_read(
            "CheckIpam",
            admin_pb2.CheckIpamRequest(),
            admin_pb2.CheckIpamResponse,
            lambda state: state.leaks(),
        )
        table = Table(_LEAK_COLUMNS, answer.leaks, "No leak: every lease has its pod, every pod its lease.")
        return Report(answer, [table], source, failed=bool(answer.leaks))

    invocation.show(load)
