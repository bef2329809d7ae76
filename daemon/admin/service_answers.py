"""Turns Services as this node serves them into weft.admin.v1 messages. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datapath import text
from datapath.nft.frontends import Absence, Snat
from datapath.nft.render import render_range
from datapath.nft.rules import Family, Protocol
from weft_rpc import admin_pb2

if TYPE_CHECKING:
    from collections.abc import Collection

    from daemon.compile.catalog import Row, View
    from datapath.nft.frontends import Backend

_SNAT = {Snat.NEVER: "nobody", Snat.FOREIGN: "strangers", Snat.ALWAYS: "everybody"}
_ABSENCE = {Absence.REFUSE: "refuse", Absence.DROP: "drop"}


def service(view: View) -> admin_pb2.Service:
    """Describes one Service."""
    check = view.health_check
    return admin_pb2.Service(
        name=view.service.key,
        type=view.service.type,
        frontends=[_frontend(row, view.local) for row in view.rows],
        health_check_port=check.port if check is not None else 0,
        local_endpoints=check.local_endpoints if check is not None else len(view.local),
    )


def _frontend(row: Row, local: Collection[Backend]) -> admin_pb2.Frontend:
    frontend, balance = row.frontend, row.balance
    outside = frozenset(balance.outside) if balance.outside is not None else None
    return admin_pb2.Frontend(
        kind=row.kind.value,
        address=_place(frontend.address or b"", frontend.port),
        protocol=Protocol(frontend.protocol).name,
        family="IPv4" if frontend.family is Family.IPV4 else "IPv6",
        endpoints=[
            admin_pb2.Endpoint(
                address=_place(*each), local=each in local, outside=outside is None or each in outside
            )
            for each in balance.backends
        ],
        absence="" if balance.backends else _ABSENCE[balance.absence],
        source=_SNAT[balance.snat],
        affinity_seconds=balance.affinity_seconds,
        source_ranges=[render_range(each) for each in balance.sources or ()],
        holder=row.holder,
    )


def _place(address: bytes, port: int) -> str:
    if not address:
        return f":{port}"
    shown = text.address(address)
    return f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"
