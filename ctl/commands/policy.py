"""`weftctl policy list` and `explain`: which policies are in force here, and what they decide."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import click

from ctl.invocation import shared_options, watch_option
from ctl.render import Column, Report, Table, count

if TYPE_CHECKING:
    from ctl.invocation import Invocation
    from weft_rpc.admin_pb2 import EndVerdict, FlowVerdict, IsolatedPod, Policy

_NAMED = 3
_PORT = re.compile(r"(?P<icmp>icmp)|(?P<port>\d{1,5})(?:/(?P<protocol>tcp|udp|sctp))?", re.IGNORECASE)

_POLICIES = (
    Column("POLICY", lambda row: row.name),
    Column("DIRECTION", lambda row: row.direction),
    Column("PODS", lambda row: _some(row.pods)),
    Column("ALLOWS", lambda row: "; ".join(row.rules) or "nothing", wide=True),
    Column("PACKETS", lambda row: count(row.packets), right=True),
    Column("BYTES", lambda row: count(row.bytes), right=True, wide=True),
    Column("PROBLEMS", lambda row: "; ".join(row.problems) or "none", style=lambda row: _problem_style(row)),
)
_PODS = (
    Column("POD", lambda row: row.name),
    Column("DIRECTION", lambda row: row.direction),
    Column("ISOLATED BY", lambda row: _isolating(row)),
    Column("DENIED", lambda row: count(row.denied_packets), right=True),
)


class _Line(NamedTuple):
    """What one end of a flow says."""

    flow: FlowVerdict
    end: EndVerdict


_ENDS = (
    Column("FLOW", lambda line: f"{line.flow.source} to {line.flow.destination}"),
    Column("DIRECTION", lambda line: line.end.direction),
    Column("POD", lambda line: line.end.pod),
    Column("ALLOWED", lambda line: _answer(line.end), style=lambda line: _answer_style(line.end)),
    Column("WHY", lambda line: _why(line.end)),
    Column("KERNEL", lambda line: _kernel(line.end), style=lambda line: _kernel_style(line.end)),
)


@click.group()
def policy() -> None:
    """Show NetworkPolicies as this node enforces them, and why a connection passes or does not."""


@policy.command("list")
@shared_options
@watch_option
@click.pass_obj
def list_policies(invocation: Invocation) -> None:
    """Show the policies that select a pod of this node, and the pods that they isolate.

    PACKETS counts first packets of connections that the policy let pass, DENIED what no policy let pass.
    The exit code is 1 when a policy has a problem.
    """

    def load() -> Report:
        from weft_rpc import admin_pb2

        answer = invocation.ask(
            "ListPolicies", admin_pb2.ListPoliciesRequest(), admin_pb2.ListPoliciesResponse
        )
        return Report(
            answer,
            [
                Table(_POLICIES, answer.policies, "No policy selects a pod of this node."),
                Table(_PODS, answer.pods, "No pod of this node is isolated."),
            ],
            failed=any(each.problems for each in answer.policies),
        )

    invocation.show(load)


@policy.command()
@click.argument("source")
@click.argument("destination")
@click.argument("port")
@shared_options
@click.pass_obj
def explain(invocation: Invocation, source: str, destination: str, port: str) -> None:
    """Say whether policies let SOURCE connect to DESTINATION at PORT[/PROTOCOL], and which of them say so.

    SOURCE and DESTINATION are pods (NAMESPACE/NAME) or addresses, as they are seen at the pod: of a Service,
    give an endpoint, not its ClusterIP. PORT is a number with tcp (default), udp or sctp, or the word icmp.
    The exit code is 1 when the connection is denied, or the kernel does not hold what it should.
    """
    named = _PORT.fullmatch(port)
    if named is None:
        raise click.BadParameter(
            f"{port} is no PORT[/PROTOCOL]: give a number with tcp, udp or sctp, as in 80/tcp, or icmp",
            param_hint="PORT",
        )

    def load() -> Report:
        from weft_rpc import admin_pb2

        request = admin_pb2.ExplainPolicyRequest(
            source=source,
            destination=destination,
            protocol="icmp" if named["icmp"] else (named["protocol"] or "tcp").lower(),
            port=int(named["port"] or 0),
        )
        answer = invocation.ask("ExplainPolicy", request, admin_pb2.ExplainPolicyResponse)
        lines = [_Line(flow, end) for flow in answer.verdicts for end in flow.ends]
        return Report(
            answer,
            [Table(_ENDS, lines)],
            failed=any(not flow.allowed for flow in answer.verdicts)
            or any(line.end.kernel == "differs" for line in lines),
        )

    invocation.show(load)


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _problem_style(row: Policy) -> str:
    return "yellow" if row.problems else ""


def _isolating(row: IsolatedPod) -> str:
    return ", ".join(row.policies) or "all: its labels are not known yet"


def _answer(end: EndVerdict) -> str:
    if not end.pod:
        return "not here"
    return "yes" if end.allowed else "no"


def _answer_style(end: EndVerdict) -> str:
    if not end.pod:
        return ""
    return "green" if end.allowed else "bold red"


def _why(end: EndVerdict) -> str:
    if end.allowing:
        return "; ".join(f"policy {each.policy}, {each.rule}" for each in end.allowing)
    return end.reason + (f" (isolated by {', '.join(end.isolating)})" if end.isolating else "")


def _kernel(end: EndVerdict) -> str:
    return f"differs: {'; '.join(end.differences)}" if end.differences else end.kernel


def _kernel_style(end: EndVerdict) -> str:
    return "bold red" if end.differences else ""
