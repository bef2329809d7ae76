"""Stories of policies together with what is around them: Services, nodes, pods that change or end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.scenarios.manifests import service
from tests.scenarios.model import DROPPED, REFUSED, Client, Scenario, Source, Step, Target, answered
from tests.scenarios.policy_words import (
    ALL,
    EVERYBODY,
    FROM_GUEST,
    NEAR,
    NODE_1,
    NODE_2,
    NODE_3,
    OUT,
    OUTSIDE_1,
    OUTSIDE_3,
    POD_1,
    POD_3,
    SERVER_1,
    at,
    block,
    blocks,
    closed_to,
    host_pod,
    named,
    open_to,
    pods,
    policy,
)
from tests.scenarios.stories import probes
from tests.scenarios.topology import FAMILIES, GUESTS, PLACES, PORT, pod

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.api.resources import Object
    from tests.scenarios.model import Fate, Probe

OLD_1 = Client("old-1", 1)
WEB = Target("cluster", "web")
UNUSED_PORT = 9999
"""At a node nobody listens there: who is refused has got through."""


def services() -> Iterator[Scenario]:
    """Policies see who answers for a Service, and who really asks."""
    web = service("web", "near")
    cluster_ip = {"clusterIP": "10.96.200.9", "clusterIPs": ["10.96.200.9", "fd96::c809"]}
    fixed = service("web", "near", **cluster_ip)
    first = answered(Source.CLIENT, "server-1")
    out = named("client-3")
    yield Scenario(
        "egress is matched behind the Service",
        (
            Step(
                (*probes(POD_3, WEB, first), *closed_to(POD_3, "server-2")),
                (fixed, policy(out, policyTypes=OUT, egress=[{"to": [pods(NEAR)]}])),
                label="the pod behind it",
            ),
            Step(
                (
                    *probes(POD_3, WEB, first, protocols=("tcp",)),
                    *probes(POD_3, WEB, DROPPED, protocols=("udp",)),
                ),
                (policy(out, policyTypes=OUT, egress=[{"ports": [{"port": PORT}]}]),),
                label="the port behind it",
            ),
            Step(
                probes(POD_3, WEB, DROPPED),
                (policy(out, policyTypes=OUT, egress=[{"ports": [{"port": 80}]}]),),
                label="its own port",
            ),
            Step(
                probes(POD_3, WEB, DROPPED),
                (
                    policy(
                        out,
                        policyTypes=OUT,
                        egress=[{"to": [block("10.96.200.9/32"), block("fd96::c809/128")]}],
                    ),
                ),
                label="its own address",
            ),
        ),
    )
    yield Scenario(
        "ingress by a Service is matched at the pod",
        (
            Step(
                (*probes(POD_3, WEB, first), *probes(POD_1, WEB, DROPPED)),
                (web, policy(NEAR, ingress=[{"from": [pods(out)]}])),
                label="a peer",
            ),
            Step(
                (*probes(POD_3, WEB, DROPPED), *probes(NODE_1, WEB, answered(Source.NODE, "server-1"))),
                (policy(NEAR),),
                label="its own node, by the Service",
            ),
        ),
    )
    shut = policy(NEAR, policyTypes=ALL)
    others = (*closed_to(SERVER_1, "server-2"), *closed_to(POD_1, "server-1"))
    for traffic in ("Cluster", "Local"):
        own = service("web", "near", type="LoadBalancer", externalTrafficPolicy=traffic)
        hairpins = tuple(
            probe
            for kind in ("cluster", "nodeport", "balancer")
            for probe in probes(SERVER_1, Target(kind, "web"), answered(Source.NODE, "server-1"))
        )
        yield Scenario(
            f"a pod reaches itself whatever policies say, {traffic}",
            (Step((*hairpins, *others), (own, shut)),),
        )


def node_ports() -> Iterator[Scenario]:
    """Whose address comes from outside."""
    local = service("web", "near", type="LoadBalancer", externalTrafficPolicy="Local")
    wide = service("web", "near", type="LoadBalancer", externalTrafficPolicy="Cluster")
    targets = (Target("nodeport", "web"), Target("balancer", "web"))
    kept, replaced = answered(Source.CLIENT, "server-1"), answered(Source.TUNNEL, "server-1")

    def asked(client: Client, fate: Fate) -> tuple[Probe, ...]:
        return tuple(probe for target in targets for probe in probes(client, target, fate))

    def let_in(name: str) -> Object:
        return policy(NEAR, ingress=[{"from": blocks(name)}])

    yield Scenario(
        "policy Local keeps the client's address",
        (
            Step(asked(OUTSIDE_1, kept), (local, let_in("outside")), label="it"),
            Step(asked(OUTSIDE_1, DROPPED), (let_in("node-1"),), label="its entrance"),
        ),
    )
    yield Scenario(
        "policy Cluster shows the node where the client came in",
        (
            Step(asked(OUTSIDE_3, replaced), (wide, let_in("node-3")), label="that node"),
            Step(asked(OUTSIDE_3, DROPPED), (let_in("outside"),), label="the client"),
            Step(asked(OUTSIDE_3, DROPPED), (let_in("node-2"),), label="another node"),
        ),
    )


def nodes() -> Iterator[Scenario]:
    """Nodes, and pods in their own networks."""
    shut = policy(EVERYBODY, policyTypes=ALL)
    yield Scenario(
        "a node reaches its own pods under default-deny",
        (
            Step(
                (
                    *open_to(NODE_1, "server-1"),
                    *open_to(NODE_2, "server-2"),
                    *closed_to(NODE_3, "server-1"),
                    *closed_to(POD_1, "server-1"),
                ),
                (shut,),
            ),
        ),
    )
    seen = answered(Source.TUNNEL, "server-1")
    yield Scenario(
        "another node is an address, also through the overlay",
        (
            Step(
                (*probes(NODE_3, at("server-1"), seen), *closed_to(NODE_2, "server-1")),
                (policy(NEAR, ingress=[{"from": blocks("node-3")}]),),
                label="its own",
            ),
            Step(
                (*closed_to(NODE_3, "server-1"), *open_to(POD_3, "server-1")),
                (policy(NEAR, ingress=[{"from": [block("10.244.0.0/16"), block("fd10:244::/48")]}]),),
                label="not that of its tunnel",
            ),
        ),
    )
    reached = probes(SERVER_1, at("node-1", UNUSED_PORT), REFUSED)
    yield Scenario(
        "a pod reaches its own node as egress allows",
        (
            Step(
                closed_to(SERVER_1, "node-1", UNUSED_PORT),
                (policy(NEAR, policyTypes=OUT, egress=[{"to": [pods(EVERYBODY)]}]),),
                label="pods only",
            ),
            Step(
                (*reached, *closed_to(SERVER_1, "node-3", UNUSED_PORT)),
                (policy(NEAR, policyTypes=OUT, egress=[{"to": blocks("node-1")}]),),
                label="its address",
            ),
        ),
    )
    agents = {"matchLabels": {"agent": "yes"}}
    yield Scenario(
        "pods in their node's network are no subjects and no peers",
        (
            Step(
                (
                    *probes(POD_1, at("node-1", UNUSED_PORT), REFUSED),
                    *probes(POD_3, at("node-1", UNUSED_PORT), REFUSED),
                    *open_to(NODE_1, "client-1"),
                    *probes(NODE_1, at("server-2"), answered(Source.TUNNEL, "server-2")),
                ),
                (host_pod(1), host_pod(3), policy(agents, policyTypes=ALL)),
                label="subjects",
            ),
            Step(
                (*closed_to(NODE_3, "server-1"), *open_to(NODE_1, "server-1")),
                (policy(NEAR, ingress=[{"from": [pods(agents), {"namespaceSelector": {}}]}]),),
                label="peers",
            ),
        ),
    )


def lives() -> Iterator[Scenario]:
    """Pods that end, and pods and namespaces that get other labels."""
    friends = {"matchLabels": {"friend": "yes"}}
    let_in = policy(NEAR, ingress=[{"from": [pods(friends)]}])

    def ended(phase: str) -> Object:
        """A pod that has ended, with labels of a friend and the address that another has now."""
        made = pod("done-9", 9)
        made["metadata"]["labels"]["friend"] = "yes"
        ips = [{"ip": f"@client-3/{family}"} for family in FAMILIES]
        return {**made, "status": {"phase": phase, "podIPs": ips}}

    shut = closed_to(POD_3, "server-1")
    yield Scenario(
        "a pod that has ended is no peer, and its address is another's",
        (
            Step(shut, (let_in, ended("Succeeded")), label="Succeeded"),
            Step(shut, delete=(("Pod", "done-9"),), label="gone"),
            Step(shut, (ended("Failed"),), label="Failed"),
        ),
    )
    old = {"matchLabels": {"old": "yes"}}
    yield Scenario(
        "a terminating pod is subject and peer",
        (
            Step(closed_to(POD_3, "old-1"), (policy(old),), label="subject"),
            Step(
                (*open_to(OLD_1, "server-1"), *shut),
                (policy(NEAR, ingress=[{"from": [pods(old)]}]),),
                label="peer",
            ),
        ),
    )

    def labelled(name: str, **labels: str) -> Object:
        made = pod(name, PLACES[name])
        made["metadata"]["labels"] |= labels
        return made

    through = open_to(POD_3, "server-1")
    yield Scenario(
        "labels of a pod count at once",
        (
            Step(shut, (let_in,), label="a stranger"),
            Step(through, (labelled("client-3", friend="yes"),), label="a friend"),
            Step(shut, (labelled("client-3", friend="no"),), label="no friend any more"),
            Step(
                (*through, *closed_to(POD_1, "client-3")),
                (
                    policy(friends),
                    labelled("client-3", friend="yes"),
                    policy(NEAR, ingress=[{}], name="open"),
                ),
                label="a subject",
            ),
            Step(
                (*through, *open_to(POD_1, "client-3")), (labelled("client-3"),), label="no subject any more"
            ),
        ),
    )

    def team(name: str) -> Object:
        metadata = {"name": GUESTS, "labels": {"team": name}}
        return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}

    hosts = policy(NEAR, ingress=[{"from": [{"namespaceSelector": {"matchLabels": {"team": "hosts"}}}]}])
    yield Scenario(
        "labels of a namespace count at once",
        (
            Step(closed_to(FROM_GUEST, "server-1"), (hosts,), label="guests"),
            Step(open_to(FROM_GUEST, "server-1"), (team("hosts"),), label="hosts"),
            Step(closed_to(FROM_GUEST, "server-1"), (team("guests"),), label="guests again"),
        ),
    )
    yield Scenario(
        "the last policy of several opens the pod again",
        (
            Step(shut, (policy(NEAR, "one"), policy(NEAR, "two")), label="two"),
            Step(shut, delete=(("NetworkPolicy", "one"),), label="one"),
            Step(through, delete=(("NetworkPolicy", "two"),), label="none"),
        ),
    )


def surroundings() -> Iterator[Scenario]:
    """All of these."""
    for chapter in (services, node_ports, nodes, lives):
        yield from chapter()
