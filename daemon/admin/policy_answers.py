"""Turns policies as they are enforced here into weft.admin.v1 messages. Pure but for what it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.compile.policy_words import rule_words
from datapath.nft.counters import Count
from datapath.policy import Direction
from weft_rpc import admin_pb2

if TYPE_CHECKING:
    from daemon.admin.sources import PolicySources
    from daemon.denials import Denial

_NONE = Count(0, 0)


def denial(found: Denial, left_out: int) -> admin_pb2.Denial:
    """Tells of one denied packet, and how many before it were left out."""
    return admin_pb2.Denial(
        time=found.when,
        direction=found.direction.value,
        pod=found.pod,
        peer=found.peer,
        source=found.source,
        destination=found.destination,
        protocol=found.protocol,
        source_port=found.source_port,
        destination_port=found.destination_port,
        policies=found.policies,
        left_out=left_out,
    )


def listing(source: PolicySources) -> admin_pb2.ListPoliciesResponse:
    """Lists the policies in force, and the pods of this node that they isolate."""
    model, accounts = source.model, source.accounts
    isolated: dict[tuple[str, Direction], list[str]] = {}
    pods = []
    for subject in sorted(model.subjects.values(), key=lambda each: each.pod):
        for direction in Direction:
            policies = subject.isolation(direction)
            if policies is None:
                continue
            for name in policies:
                isolated.setdefault((name, direction), []).append(subject.pod)
            pods.append(
                admin_pb2.IsolatedPod(
                    name=subject.pod,
                    direction=direction.value,
                    policies=policies,
                    denied_packets=accounts.denied.get((subject.pod, direction), 0),
                )
            )
    problems: dict[str, list[str]] = {}
    for problem in model.problems():
        problems.setdefault(problem.key, []).append(problem.message)
    answer = admin_pb2.ListPoliciesResponse(pods=pods)
    for part in sorted(model.rules, key=lambda each: (each[0], each[1].value)):
        name, direction = part
        rules = model.rules[part]
        count = accounts.accepted.get(part, _NONE)
        words = dict.fromkeys(
            rule_words(model, rule, direction) for family in (rules.ipv4, rules.ipv6) for rule in family
        )
        answer.policies.append(
            admin_pb2.Policy(
                name=name,
                direction=direction.value,
                pods=dict.fromkeys(isolated.get(part, ())),
                rules=words,
                packets=count.packets,
                bytes=count.octets,
                problems=problems.get(name, ()),
            )
        )
    return answer
