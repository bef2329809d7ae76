"""What policies mean for connections under way: which may go on, and when that may have changed. Pure.

Answers from the model's own verdicts (`policy_verdict`): a connection goes on exactly where it could begin.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeVar

from daemon.compile.policy_verdict import Flow, Reason, verdict

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from daemon.compile.policy import Changes, Policies
    from datapath.desired import Address
    from datapath.marking import Ends
    from datapath.policy import Subject

Element = TypeVar("Element")
WITH_PORTS = frozenset({6, 17, 33, 132, 136})
"""TCP, UDP, DCCP, SCTP, UDP-Lite: of these connection tracking knows ports, of others it may tell numbers."""


class Effect(IntEnum):
    """What a change can do to connections under way."""

    NONE = 0
    LOOSER = 1
    """Some that were cut may go on."""
    STRICTER = 2
    """Some have to be cut."""


def effect(policies: Policies, changes: Changes) -> Effect:
    """Return what changes that the model has told of may do; rather too much than too little."""
    if not changes:
        return Effect.NONE
    if not isolated(policies):
        # Nothing can be forbidden; what was cut may go on.
        return Effect.LOOSER
    closed = any(_isolated(policies.subjects.get(link)) for link in changes.subjects)
    lost = (
        _lost(changes.peers, policies.peers)
        or _lost(changes.nodes, policies.nodes)
        or _lost(changes.ports, policies.ports)
    )
    # A tunnel's address counts as its node's from now on, whose blocks may hold the one and not the other.
    return Effect.STRICTER if closed or lost or changes.rules or changes.tunnels else Effect.LOOSER


def isolated(policies: Policies) -> frozenset[Address]:
    """Return the addresses of all pods of this node that are isolated in any direction."""
    return frozenset(
        address
        for subject in policies.subjects.values()
        if _isolated(subject)
        for address in subject.addresses
    )


def may_go_on(
    policies: Policies, ends: Ends, local: Collection[Address] = (), *, complete: bool = True
) -> bool | None:
    """Return whether a connection may go on; None where that is not known yet.

    Args:
        policies: the model, with nothing pending.
        ends: of the connection.
        local: all addresses of this node, which reaches its own pods whatever policies say.
        complete: pods of other nodes are known; else nothing is known of those who are let in or out as such.
    """
    port = ends.port if ends.protocol in WITH_PORTS else None
    found = verdict(policies, Flow(ends.source, ends.destination, ends.protocol, port))
    allowed: bool | None = True
    for decision in (found.egress, found.ingress):
        if decision is None or decision.reason.allows:
            continue
        if decision is found.ingress and ends.source in local:
            continue
        if decision.reason is Reason.UNKNOWN or not (complete or _both_here(policies, ends)):
            allowed = None
        else:
            return False
    return allowed


def judge(
    policies: Policies, found: Iterable[Ends], local: Collection[Address] = (), *, complete: bool = True
) -> dict[Ends, bool]:
    """Return whether connections must be cut, by their ends; without those of which it is not known.

    Args are those of `may_go_on`.
    """
    judged = {}
    for ends in found:
        allowed = may_go_on(policies, ends, local, complete=complete)
        if allowed is not None:
            judged[ends] = not allowed
    return judged


def _both_here(policies: Policies, ends: Ends) -> bool:
    return policies.subject(ends.source) is not None and policies.subject(ends.destination) is not None


def _isolated(subject: Subject | None) -> bool:
    return subject is not None and (subject.ingress is not None or subject.egress is not None)


def _lost(changed: Mapping[str, set[Element]], sets: Mapping[str, Mapping[Element, int]]) -> bool:
    """Whether an element has left one of the sets."""
    return any(not elements <= sets.get(name, _EMPTY).keys() for name, elements in changed.items())


_EMPTY: Mapping[Any, int] = {}
