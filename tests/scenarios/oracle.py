"""What must become of a new connection to a Service: the rules of kube-proxy, for the matrix.

Written from the documentation of Services (virtual IPs, traffic policies, KEP-1669, KEP-2086), not from the
code that is tested: it knows pods, nodes and policies, and no rule of a packet filter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.scenarios.model import DROPPED, REFUSED, Answer, Fate, Outcome, Source, answered
from tests.scenarios.topology import OLD, SERVERS, SETS

if TYPE_CHECKING:
    from tests.scenarios.model import Client, Target


@dataclass(frozen=True, slots=True)
class Policies:
    """What decides about a Service's traffic: the set of its pods, and two policies."""

    pods: str
    external_local: bool = False
    internal_local: bool = False


def fate(client: Client, target: Target, policies: Policies) -> Fate:
    """The fate of a connection to a Service of type LoadBalancer with externalIPs."""
    balancing = target.node or client.node
    # Who asks the node port of another node comes to that node from outside, by the address of its own.
    arrives = "outside" if balancing != client.node and client.kind != "outside" else client.kind
    ready = {name: node for name, node in SERVERS.items() if name in SETS[policies.pods]}
    draining = {name: node for name, node in OLD.items() if name in SETS[policies.pods]}
    anywhere = ready or draining
    here = _on(balancing, ready) or _on(balancing, draining)
    if not anywhere:
        return REFUSED
    if target.kind == "cluster":
        chosen = here if policies.internal_local else anywhere
        replaced = arrives != "pod"
    elif policies.external_local:
        chosen = here if arrives == "outside" else anywhere
        replaced = arrives == "node"
    else:
        chosen, replaced = anywhere, True
    if not chosen:
        return DROPPED
    if replaced:
        answers = {
            Answer(name, Source.NODE if node == balancing else Source.TUNNEL) for name, node in chosen.items()
        }
        return Fate(Outcome.ANSWERED, frozenset(answers))
    kept = Source.CLIENT if arrives == client.kind else Source.CLIENT_NODE
    return answered(kept, *chosen)


def _on(node: int, pods: dict[str, int]) -> dict[str, int]:
    return {name: place for name, place in pods.items() if place == node}
