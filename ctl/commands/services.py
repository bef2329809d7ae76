"""`weftctl services [NAME]`: what this node does with connections to Services."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import click

from ctl.invocation import shared_options, watch_option
from ctl.render import Column, Report, Table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ctl.invocation import Invocation
    from weft_rpc.admin_pb2 import Endpoint, Frontend, Service

_TOLD = 3
_SOURCES = {"nobody": "kept", "strangers": "kept for pods", "everybody": "replaced"}


class _Line(NamedTuple):
    """One frontend, and whose it is."""

    service: Service
    frontend: Frontend


class _Choice(NamedTuple):
    """One endpoint of one frontend."""

    frontend: Frontend
    endpoint: Endpoint


_FRONTENDS = (
    Column("SERVICE", lambda line: line.service.name),
    Column("KIND", lambda line: line.frontend.kind),
    Column("FRONTEND", lambda line: f"{line.frontend.protocol} {line.frontend.address}"),
    Column("ENDPOINTS", lambda line: _some(line.frontend), style=lambda line: _style(line.frontend)),
    Column("LOCAL", lambda line: str(sum(each.local for each in line.frontend.endpoints)), right=True),
    Column("SOURCE", lambda line: _SOURCES.get(line.frontend.source, line.frontend.source), wide=True),
    Column("AFFINITY", lambda line: _affinity(line.frontend), wide=True),
    Column("FROM", lambda line: ", ".join(line.frontend.source_ranges) or "everywhere", wide=True),
)
_ENDPOINTS = (
    Column("FRONTEND", lambda choice: f"{choice.frontend.protocol} {choice.frontend.address}"),
    Column("ENDPOINT", lambda choice: choice.endpoint.address),
    Column("NODE", lambda choice: "this" if choice.endpoint.local else "other"),
    Column("SERVES", lambda choice: "everybody" if choice.endpoint.outside else "pods and this node"),
)


@click.command()
@click.argument("name", required=False, default="")
@shared_options
@watch_option
@click.pass_obj
def services(invocation: Invocation, name: str) -> None:
    """Show Services as this node serves them; with NAMESPACE/NAME, one of them with its endpoints.

    SOURCE says whether servers see the client's own address, AFFINITY for how long a client stays with its
    endpoint. The exit code is 1 when there is no such Service here.
    """

    def load() -> Report:
        from weft_rpc import admin_pb2

        wanted = f"default/{name}" if name and "/" not in name else name
        request = admin_pb2.ListServicesRequest(name=wanted)
        answer = invocation.ask("ListServices", request, admin_pb2.ListServicesResponse)
        empty = f"Service {wanted} is not served here: no such object, headless, or ExternalName."
        tables = [Table(_FRONTENDS, _lines(answer.services), empty if name else "There is no Service yet.")]
        if name:
            tables.append(Table(_ENDPOINTS, _choices(answer.services), "It has no endpoints."))
        return Report(answer, tables, failed=bool(name) and not answer.services)

    invocation.show(load)


def _lines(found: Iterable[Service]) -> list[_Line]:
    return [_Line(service, frontend) for service in found for frontend in service.frontends]


def _choices(found: Iterable[Service]) -> list[_Choice]:
    lines = _lines(found)
    return [_Choice(frontend, endpoint) for _, frontend in lines for endpoint in frontend.endpoints]


def _some(frontend: Frontend) -> str:
    if frontend.holder:
        return f"none: Service {frontend.holder} has this"
    if not frontend.endpoints:
        return "none: refused" if frontend.absence == "refuse" else "none here: dropped"
    named = [each.address for each in frontend.endpoints[:_TOLD]]
    more = len(frontend.endpoints) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def _style(frontend: Frontend) -> str:
    return "yellow" if frontend.holder or not frontend.endpoints else ""


def _affinity(frontend: Frontend) -> str:
    return f"{frontend.affinity_seconds} s" if frontend.affinity_seconds else "none"
