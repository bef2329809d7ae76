"""The large part of the table: every client, frontend, policy, state of endpoints, protocol and family.

All its Services exist at once, so that the order of rows means nothing.
"""

from __future__ import annotations

import itertools

from tests.scenarios.manifests import external, service
from tests.scenarios.model import Client, Probe, Scenario, Step, Target
from tests.scenarios.oracle import Policies, fate
from tests.scenarios.topology import FAMILIES, PROTOCOLS

_CLIENTS = tuple(Client(kind, node) for kind in ("pod", "node", "outside") for node in (1, 3))
_EXTERNAL = ("nodeport", "balancer", "external")
_PODS = ("both", "none", "old", "far", "mixed", "unready")


def _services() -> dict[str, Policies]:
    found: dict[str, Policies] = {}
    for pods in _PODS:
        found[f"{pods}-cluster"] = Policies(pods)
        found[f"{pods}-local"] = Policies(pods, external_local=True)
        found[f"{pods}-internal"] = Policies(pods, internal_local=True)
    return found


def _targets(name: str, policies: Policies, client: Client) -> list[Target]:
    if policies.internal_local:
        return [Target("cluster", name)]
    kinds = _EXTERNAL if policies.external_local else ("cluster", *_EXTERNAL)
    targets = [Target(kind, name) for kind in kinds]
    if client.kind != "outside" and client.node != 1:
        targets.append(Target("nodeport", name, node=1))
    return targets


def matrix() -> Scenario:
    """One scenario of one step."""
    services = _services()
    probes = tuple(
        Probe(client, target, protocol, family, fate(client, target, policies))
        for name, policies in services.items()
        for client in _CLIENTS
        for target in _targets(name, policies, client)
        for protocol, family in itertools.product(PROTOCOLS, FAMILIES)
    )
    objects = tuple(
        service(
            name,
            policies.pods,
            type="LoadBalancer",
            externalIPs=external(number),
            externalTrafficPolicy="Local" if policies.external_local else "Cluster",
            internalTrafficPolicy="Local" if policies.internal_local else "Cluster",
        )
        for number, (name, policies) in enumerate(services.items(), 1)
    )
    return Scenario("matrix", (Step(probes, objects),))
