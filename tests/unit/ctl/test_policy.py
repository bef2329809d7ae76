"""weftctl policy: what is printed of policies and of verdicts, and how it exits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeAlias

import grpc
import pytest

from ctl.exits import Exit
from weft_rpc import admin_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    from .conftest import FakeDaemon

    Weftctl: TypeAlias = Callable[..., Result]

LISTED = admin_pb2.ListPoliciesResponse(
    policies=[
        admin_pb2.Policy(
            name="shop/p",
            direction="ingress",
            pods=["shop/a", "shop/b", "shop/c", "shop/d", "shop/e"],
            rules=["from anybody, at TCP 80"],
            packets=12,
            bytes=720,
        ),
        admin_pb2.Policy(name="shop/q", direction="egress", pods=["shop/a"]),
    ],
    pods=[
        admin_pb2.IsolatedPod(name="shop/a", direction="ingress", policies=["shop/p"], denied_packets=3),
        admin_pb2.IsolatedPod(name="shop/new", direction="ingress"),
    ],
)


def verdict(
    *, allowed: bool, kernel: str = "agrees", differences: tuple[str, ...] = ()
) -> admin_pb2.FlowVerdict:
    rules = [admin_pb2.AllowingRule(policy="shop/p", rule="from anybody, at TCP 80")] if allowed else []
    return admin_pb2.FlowVerdict(
        family="IPv4",
        source="10.1.1.7",
        destination="10.1.1.8",
        allowed=allowed,
        ends=[
            admin_pb2.EndVerdict(direction="egress", allowed=True, reason="no pod of this node"),
            admin_pb2.EndVerdict(
                direction="ingress",
                pod="shop/db",
                allowed=allowed,
                reason="a policy allows it" if allowed else "no policy allows it",
                isolating=["shop/p", "shop/q"],
                allowing=rules,
                kernel=kernel,
                differences=differences,
            ),
        ],
    )


def test_policies_and_isolated_pods(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    daemon.answers["ListPolicies"] = LISTED
    result = weftctl("policy", "list")
    assert result.exit_code == Exit.OK, result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert lines[0] == ["POLICY", "DIRECTION", "PODS", "PACKETS", "PROBLEMS"]
    assert " ".join(lines[1]) == "shop/p ingress shop/a, shop/b, shop/c and 2 more 12 none"
    assert ["shop/a", "ingress", "shop/p", "3"] in lines
    assert "its labels are not known yet" in result.output
    wide = weftctl("policy", "list", "-o", "wide").output
    assert "from anybody, at TCP 80" in wide
    assert "nothing" in wide.splitlines()[2], "a policy without rules"


def test_without_policies(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    daemon.answers["ListPolicies"] = admin_pb2.ListPoliciesResponse()
    result = weftctl("policy", "list")
    assert result.exit_code == Exit.OK
    assert "No policy selects a pod of this node." in result.output


def test_a_problem_is_found(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    daemon.answers["ListPolicies"] = admin_pb2.ListPoliciesResponse(
        policies=[admin_pb2.Policy(name="shop/p", direction="ingress", problems=["half of it is unknown"])]
    )
    result = weftctl("policy", "list")
    assert result.exit_code == Exit.FOUND
    assert "half of it is unknown" in result.output


def test_policies_as_json(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    daemon.answers["ListPolicies"] = LISTED
    found = json.loads(weftctl("policy", "list", "-o", "json").output)
    assert found["policies"][0]["packets"] == 12
    assert found["pods"][0]["deniedPackets"] == 3


def test_an_allowed_flow_names_policy_and_rule(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    daemon.answers["ExplainPolicy"] = admin_pb2.ExplainPolicyResponse(verdicts=[verdict(allowed=True)])
    result = weftctl("policy", "explain", "10.1.1.7", "shop/db", "80")
    assert result.exit_code == Exit.OK, result.output
    assert "policy shop/p, from anybody, at TCP 80" in result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert lines[1][3:7] == ["egress", "-", "not", "here"]
    assert lines[2][3:6] == ["ingress", "shop/db", "yes"]
    assert lines[2][-1] == "agrees"


def test_a_denied_flow_exits_1(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    daemon.answers["ExplainPolicy"] = admin_pb2.ExplainPolicyResponse(verdicts=[verdict(allowed=False)])
    result = weftctl("policy", "explain", "10.1.1.7", "shop/db", "80")
    assert result.exit_code == Exit.FOUND
    assert "no policy allows it (isolated by shop/p, shop/q)" in result.output


def test_a_kernel_that_differs_exits_1(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    found = verdict(allowed=True, kernel="differs", differences=("the pod is not isolated there",))
    daemon.answers["ExplainPolicy"] = admin_pb2.ExplainPolicyResponse(verdicts=[found])
    result = weftctl("policy", "explain", "10.1.1.7", "shop/db", "80")
    assert result.exit_code == Exit.FOUND
    assert "differs: the pod is not isolated there" in result.output


@pytest.mark.parametrize(
    ("given", "protocol", "port"),
    [("80", "tcp", 80), ("53/UDP", "udp", 53), ("9/sctp", "sctp", 9), ("icmp", "icmp", 0)],
)
def test_ports(daemon: FakeDaemon, weftctl: Weftctl, given: str, protocol: str, port: int) -> None:
    daemon.answers["ExplainPolicy"] = admin_pb2.ExplainPolicyResponse()
    weftctl("policy", "explain", "shop/web", "shop/db", given)
    assert daemon.requests == [
        admin_pb2.ExplainPolicyRequest(source="shop/web", destination="shop/db", protocol=protocol, port=port)
    ]


@pytest.mark.parametrize("given", ["http", "80/gre", "80/", "-1"])
def test_what_is_no_port_is_wrong_usage(daemon: FakeDaemon, weftctl: Weftctl, given: str) -> None:
    result = weftctl("policy", "explain", "shop/web", "shop/db", "--", given)
    assert result.exit_code == Exit.USAGE
    assert not daemon.asked


def test_what_can_t_be_answered_is_told_in_the_daemon_s_own_words(
    daemon: FakeDaemon, weftctl: Weftctl
) -> None:
    daemon.refusals["ExplainPolicy"] = (grpc.StatusCode.FAILED_PRECONDITION, "ask on node there")
    result = weftctl("policy", "explain", "shop/web", "shop/db", "80")
    assert result.exit_code == Exit.FAILED
    assert result.output.strip() == "Error: ask on node there"
