"""Questions about one flow: who may be asked about, what is answered, and what is told instead."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from daemon.admin import explanation
from daemon.admin.explanation import Question, QuestionError
from daemon.cluster.decode import node as decode_node
from daemon.cluster.decode_pods import pod as decode_pod
from datapath.policy import Direction
from tests.unit.daemon.admin.test_policy_answers import sources
from tests.unit.daemon.compile.town import HERE, THERE, block, packed, pods, shop
from weft_rpc import admin_pb2

if TYPE_CHECKING:
    from daemon.admin.sources import PolicySources
    from datapath.nft.policy_inspection import ExpectedVerdict
    from tests.unit.daemon.compile.town import Town

NODES = {"here": decode_node(HERE), "there": decode_node(THERE)}


@pytest.fixture
def town() -> Town:
    found = shop()
    found.policy("shop/closed", "", policyTypes=["Ingress", "Egress"])
    found.policy(
        "shop/web",
        "app=db",
        ingress=[{"from": [pods("app=web")], "ports": [{"port": 80}]}, {"from": [block("10.244.2.0/24")]}],
    )
    return found


async def ask(
    source: PolicySources, one: str, other: str, port: int = 80, protocol: str = "tcp"
) -> list[admin_pb2.FlowVerdict]:
    request = admin_pb2.ExplainPolicyRequest(source=one, destination=other, protocol=protocol, port=port)
    return list((await Question(source, NODES, "here", request).answer()).verdicts)


async def refused(source: PolicySources, one: str, other: str, port: int = 80, protocol: str = "tcp") -> str:
    with pytest.raises(QuestionError) as caught:
        await ask(source, one, other, port, protocol)
    return str(caught.value)


async def test_both_families_and_both_ends(town: Town) -> None:
    found = await ask(sources(town), "shop/web", "shop/db")
    assert [each.family for each in found] == ["IPv4", "IPv6"]
    for each in found:
        assert not each.allowed
        egress, ingress = each.ends
        assert (egress.direction, egress.pod, egress.allowed) == ("egress", "shop/web", False)
        assert list(egress.isolating) == ["shop/closed"]
        assert "no policy allows it" in egress.reason
        assert (ingress.direction, ingress.pod, ingress.allowed) == ("ingress", "shop/db", True)
        assert [(rule.policy, rule.rule) for rule in ingress.allowing] == [
            ("shop/web", "from pods app=web of namespace shop, at TCP 80")
        ]
        assert (egress.kernel, ingress.kernel) == ("agrees", "agrees")


async def test_every_rule_that_accepts_is_named(town: Town) -> None:
    (found,) = await ask(sources(town), "10.244.2.12", "shop/db")
    egress, ingress = found.ends
    assert found.allowed
    assert egress.pod == ""
    assert "for the node that has it" in egress.reason
    assert [rule.rule for rule in ingress.allowing] == [
        "from pods app=web of namespace shop, at TCP 80",
        "from 10.244.2.0/24, at any port",
    ]


async def test_the_own_node_reaches_its_pods_and_the_kernel_has_no_say(town: Town) -> None:
    town.models["here"].put_host_addresses([packed("198.51.100.7")])
    (found,) = await ask(sources(town), "198.51.100.7", "shop/db")
    assert found.allowed
    assert found.ends[1].reason == "its own node always reaches a pod"
    assert found.ends[1].kernel == ""


async def test_echo_has_no_port(town: Town) -> None:
    four, six = await ask(sources(town), "shop/web", "bank/db", 0, "icmp")
    assert not four.allowed
    assert not six.allowed


async def test_the_kernel_is_asked_for_what_decides(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanation, "_SECOND_LOOK", 0.0)
    asked: list[ExpectedVerdict] = []

    async def inspect(expected: ExpectedVerdict) -> tuple[str, ...]:
        asked.append(expected)
        return ("the pod is not isolated there",) if expected.direction is Direction.INGRESS else ()

    (found,) = await ask(replace(sources(town), inspect=inspect), "10.244.1.10", "shop/db")
    egress, ingress = found.ends
    assert (egress.kernel, ingress.kernel) == ("agrees", "differs")
    assert list(ingress.differences) == ["the pod is not isolated there"]
    assert [each.direction.value for each in asked] == ["egress", "ingress", "ingress"], "differences twice"
    expected = asked[-1]
    assert expected.host_link == "weft-shop-db"
    assert expected.dispatch is not None
    assert len(expected.chains) == 1, "a policy that allows nothing has no rules to look at"
    assert {name.partition("-")[0] for name, _, _ in expected.members} == {"peers", "nodes", "tunnels"}
    assert {name.partition("-")[0]: is_in for name, _, is_in in expected.members}["peers"]


@pytest.mark.parametrize("passing", [1, 2])
async def test_a_change_under_way_is_no_difference(
    town: Town, monkeypatch: pytest.MonkeyPatch, passing: int
) -> None:
    monkeypatch.setattr(explanation, "_SECOND_LOOK", 0.0)
    answers = [("other rules",)] * (passing - 1) + [()]

    async def inspect(_expected: ExpectedVerdict) -> tuple[str, ...]:
        return answers.pop(0)

    (found,) = await ask(replace(sources(town), inspect=inspect), "10.244.2.12", "shop/db")
    assert found.ends[1].kernel == "agrees"


async def test_a_pod_of_another_node_is_found_by_name_while_it_is_followed(town: Town) -> None:
    far = decode_pod(town.objects["Pod", "shop/far"])
    found = await ask(replace(sources(town), remote_pods={"shop/far": far}), "shop/far", "shop/db")
    assert [each.allowed for each in found] == [True, True]


async def test_who_is_not_known(town: Town) -> None:
    told = await refused(sources(town), "shop/nobody", "shop/db")
    assert "no pod shop/nobody is known to this node (here)" in told
    assert "give its address" in told


async def test_what_is_no_name_and_no_address(town: Town) -> None:
    assert "neither NAMESPACE/NAME of a pod nor an address" in await refused(sources(town), "web", "shop/db")


async def test_neither_end_here_names_the_nodes_to_ask(town: Town) -> None:
    told = await refused(sources(town), "10.244.2.12", "8.8.8.8")
    assert "neither 10.244.2.12 nor 8.8.8.8 is a pod of this node (here)" in told
    assert "ask on node there" in told
    assert "kubectl get pod" in await refused(sources(town), "9.9.9.9", "8.8.8.8")


async def test_ends_of_different_families(town: Town) -> None:
    assert "no addresses of one family" in await refused(sources(town), "10.244.1.10", "fd00:0:0:1::11")


async def test_pods_that_have_no_address_of_their_own(town: Town) -> None:
    def pod(**more: object) -> dict[str, object]:
        return {"metadata": {"namespace": "shop", "name": "x"}, "spec": {"hostNetwork": False}, **more}

    host = decode_pod(pod(spec={"hostNetwork": True}))
    waiting = decode_pod(pod())
    over = decode_pod(pod(status={"phase": "Succeeded", "podIPs": [{"ip": "10.244.1.10"}]}))
    for known, words in (
        (host, "node's network"),
        (waiting, "no address yet"),
        (over, "no address any more"),
    ):
        told = await refused(replace(sources(town), pods={"shop/x": known}), "shop/x", "shop/db")
        assert words in told


@pytest.mark.parametrize(("port", "protocol"), [(0, "tcp"), (70000, "tcp"), (80, "gre")])
async def test_what_is_no_port(town: Town, port: int, protocol: str) -> None:
    assert "is no port" in await refused(sources(town), "shop/web", "shop/db", port, protocol)
