"""The model's own answer: may this packet start a connection, and which policies say so. Pure.

Answers from the compiled values that program the kernel, never from the objects, so that what people are told
is what happens. Only this node's part is answered: what leaves its pods, and what reaches them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from datapath.policy import Direction, Members, Ports, Rules, Target, contains

if TYPE_CHECKING:
    from daemon.compile.policy import Policies
    from datapath.policy import Blocks, Rule, Subject


_NONE = Rules()


class Reason(Enum):
    """Why a packet passes at one end or does not."""

    NOT_ISOLATED = "no policy isolates the pod in this direction"
    SELF = "a pod always reaches itself"
    OWN_NODE = "its own node always reaches a pod"
    ALLOWED = "a policy allows it"
    DENIED = "the pod is isolated, and no policy allows it"
    UNKNOWN = "the pod's labels are not known yet, and policies may select it"

    @property
    def allows(self) -> bool:
        """Whether the packet passes."""
        return self not in {Reason.DENIED, Reason.UNKNOWN}


class Flow(NamedTuple):
    """What starts a connection, as seen at the pod: after service DNAT, before masquerade.

    Addresses are of one family; `port` is None for a protocol without ports.
    """

    source: bytes
    destination: bytes
    protocol: int
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens at one end.

    Attributes:
        subject: the pod of this node whose policies decide.
        direction: egress at the source, ingress at the destination.
        reason: why.
        isolating: all policies that isolate the pod in this direction.
        allowing: those of them that allow the flow.
    """

    subject: Subject
    direction: Direction
    reason: Reason
    isolating: tuple[str, ...] = ()
    allowing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happens at both ends; None where that end is no pod of this node, so that others decide."""

    egress: Decision | None
    ingress: Decision | None

    @property
    def allowed(self) -> bool:
        """Whether this node lets the flow pass."""
        return all(each is None or each.reason.allows for each in (self.egress, self.ingress))


def verdict(policies: Policies, flow: Flow) -> Verdict:
    """Return what this node does with the first packet of a flow."""
    source, destination = policies.subject(flow.source), policies.subject(flow.destination)
    itself = source is not None and source is destination
    return Verdict(
        egress=_decide(policies, source, Direction.EGRESS, flow, itself=itself),
        ingress=_decide(policies, destination, Direction.INGRESS, flow, itself=itself),
    )


def accepts(policies: Policies, rule: Rule, direction: Direction, flow: Flow) -> bool:
    """Return whether one rule accepts a flow."""
    peer = flow.source if direction is Direction.INGRESS else flow.destination
    if isinstance(rule.peer, Members):
        if peer not in policies.peers[rule.peer.name]:
            return False
    elif rule.peer is not None and not _within(policies, rule.peer, peer):
        return False
    if rule.ports is None:
        return True
    if flow.port is None:
        return False
    if isinstance(rule.ports, Ports):
        return any(
            protocol == flow.protocol and first <= flow.port <= last
            for protocol, first, last in rule.ports.ranges
        )
    return Target(flow.destination, flow.protocol, flow.port) in policies.ports[rule.ports.name]


def _decide(
    policies: Policies, subject: Subject | None, direction: Direction, flow: Flow, *, itself: bool
) -> Decision | None:
    if subject is None:
        return None
    isolating = subject.isolation(direction)
    if isolating is None:
        return Decision(subject, direction, Reason.NOT_ISOLATED)
    if itself:
        return Decision(subject, direction, Reason.SELF, isolating)
    if direction is Direction.INGRESS and flow.source in policies.own_addresses:
        return Decision(subject, direction, Reason.OWN_NODE, isolating)
    if not isolating:
        return Decision(subject, direction, Reason.UNKNOWN)
    allowing = tuple([name for name in isolating if _allows(policies, name, direction, flow)])
    return Decision(subject, direction, Reason.ALLOWED if allowing else Reason.DENIED, isolating, allowing)


def _allows(policies: Policies, name: str, direction: Direction, flow: Flow) -> bool:
    rules = policies.rules.get((name, direction), _NONE).of(flow.source)
    return any(accepts(policies, rule, direction, flow) for rule in rules)


def _within(policies: Policies, blocks: Blocks, address: bytes) -> bool:
    if blocks.nodes and address in policies.tunnels:
        return address in policies.nodes[blocks.nodes]
    return contains(blocks.ranges, address)
