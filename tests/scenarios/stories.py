"""The part of the table where something changes, or a feature of its own is shown.

Each story stands alone: it makes its objects, and what it leaves is deleted after it.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from lab.underlay import OUTSIDE
from tests.scenarios.manifests import affinity, external, port, service
from tests.scenarios.model import (
    DROPPED,
    REFUSED,
    Answer,
    Client,
    Fate,
    Outcome,
    Probe,
    Scenario,
    Source,
    Spread,
    Step,
    Target,
    answered,
)
from tests.scenarios.topology import FAMILIES, OTHER_PORT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lab.api.resources import Object

POD_1, POD_2, POD_3 = (Client("pod", node) for node in (1, 2, 3))
NODE_1, NODE_3 = Client("node", 1), Client("node", 3)
OUTSIDE_1, OUTSIDE_3 = Client("outside", 1), Client("outside", 3)
SERVER_1 = Client("server-1", 1)
WEB = Target("cluster", "web")
BOTH = answered(Source.CLIENT, "server-1", "server-2")
FIRST = answered(Source.CLIENT, "server-1")
SECOND = answered(Source.CLIENT, "server-2")
FROM_NODE_3 = answered(Source.TUNNEL, "server-1", "server-2")
FROM_NODE_1 = Fate(
    Outcome.ANSWERED,
    frozenset({Answer("server-1", Source.NODE), Answer("server-2", Source.TUNNEL)}),
)
_HIGH = ("10.96.255.250", "fd96::fff0")
"""ClusterIPs that no Service of the scenarios has."""
_PROXY_NAME = "service.kubernetes.io/service-proxy-name"
_SAME_ZONE: Object = {"trafficDistribution": "PreferSameZone"}
OUTSIDE_SERVER = answered(Source.CLIENT_NODE, "outside")
_SHORT_SECONDS = 1
_LONG_SECONDS = 600


def probes(
    client: Client | Iterable[Client],
    target: Target,
    fate: Fate,
    *,
    protocols: Iterable[str] = ("tcp", "udp"),
    families: Iterable[int] = FAMILIES,
    spread: Spread = Spread.ALL,
    pause: float = 0.0,
) -> tuple[Probe, ...]:
    """The same question by several clients, protocols and families."""
    clients = (client,) if isinstance(client, Client) else tuple(client)
    return tuple(
        Probe(each, target, protocol, family, fate, spread, pause)
        for each, protocol, family in itertools.product(clients, tuple(protocols), tuple(families))
    )


def hairpin() -> Iterator[Scenario]:
    """A pod reaches itself through its own Service, and sees its node as the source."""
    own = service("web", "near", type="LoadBalancer", externalIPs=external(100))
    kinds = ("cluster", "nodeport", "balancer", "external")
    for policy in ("Cluster", "Local"):
        one = {**own, "spec": {**own["spec"], "externalTrafficPolicy": policy}}
        asked = tuple(
            probe
            for kind in kinds
            for probe in probes(SERVER_1, Target(kind, "web"), answered(Source.NODE, "server-1"))
        )
        yield Scenario(f"hairpin, {policy}", (Step(asked, (one,)),))
    one_of_two = Fate(
        Outcome.ANSWERED,
        frozenset({Answer("server-1", Source.NODE), Answer("server-2", Source.CLIENT)}),
    )
    yield Scenario("hairpin, one of two", (Step(probes(SERVER_1, WEB, one_of_two), (service("web"),)),))


def session_affinity() -> Iterator[Scenario]:
    """Affinity by client address: kept over frontends, refreshed, expired, switched, and re-picked."""
    kept, stays = Spread.KEPT, Spread.STICKY
    sticky = service("web", externalIPs=external(101), **affinity(_LONG_SECONDS))
    plain = service("web", externalIPs=external(101), sessionAffinity="None")
    yield Scenario(
        "affinity",
        (
            Step(probes(POD_3, WEB, BOTH), (plain,), label="off"),
            Step(probes((POD_1, POD_3), WEB, BOTH, spread=stays), (sticky,), label="switched on"),
            Step(
                probes(POD_3, Target("external", "web"), FROM_NODE_3, spread=kept),
                label="at another frontend",
            ),
            Step(probes(POD_3, WEB, BOTH), (plain,), label="switched off"),
        ),
    )
    yield Scenario(
        "affinity that expires",
        (
            Step(
                probes(POD_3, WEB, BOTH, protocols=("tcp",), pause=_SHORT_SECONDS + 0.5),
                (service("web", **affinity(_SHORT_SECONDS)),),
            ),
        ),
    )
    yield Scenario(
        "affinity refreshed by new connections",
        (
            Step(
                probes(POD_3, WEB, BOTH, spread=Spread.STICKY, protocols=("tcp",), pause=0.5),
                (service("web", **affinity(2)),),
            ),
        ),
    )

    def only(pods: str) -> tuple[Object]:
        return (service("web", pods, **affinity(_LONG_SECONDS)),)

    yield Scenario(
        "affinity to a backend that goes",
        (
            Step(probes(POD_3, WEB, BOTH, spread=stays), only("both"), label="any"),
            Step(probes(POD_3, WEB, SECOND, spread=stays), only("far"), label="second left"),
            Step(probes(POD_3, WEB, BOTH, spread=kept), only("both"), label="both again"),
            Step(probes(POD_3, WEB, FIRST, spread=stays), only("near"), label="first left"),
            Step(probes(POD_3, WEB, BOTH, spread=kept), only("both"), label="both once more"),
        ),
    )


def ports() -> Iterator[Scenario]:
    """Several protocols on one port, ports by name, ports and addresses that nobody has."""
    dns = service(
        "web", ports=[port("tcp"), port("udp", target=OTHER_PORT)], type="NodePort", externalIPs=external(102)
    )
    for kind in ("cluster", "external"):
        fate = BOTH if kind == "cluster" else FROM_NODE_3
        yield Scenario(
            f"protocols with targets of their own, {kind}",
            (Step(probes(POD_3, Target(kind, "web"), fate), (dns,)),),
        )
    shared = service(
        "web",
        type="NodePort",
        ports=[port("tcp", nodePort=31053), port("udp", target=OTHER_PORT, nodePort=31053)],
    )
    yield Scenario(
        "one node port, two protocols",
        (Step(probes(OUTSIDE_3, Target("nodeport", "web"), FROM_NODE_3), (shared,)),),
    )
    named = service("web", ports=[port("tcp", target="web")])
    yield Scenario(
        "a named port that differs by pod",
        (Step(probes((POD_1, POD_3), WEB, BOTH, protocols=("tcp",)), (named,)),),
    )
    only_tcp = service("web", ports=[port("tcp")], type="LoadBalancer", externalIPs=external(103))
    clients = (POD_1, NODE_1, OUTSIDE_1)
    yield Scenario(
        "undefined port",
        (
            Step(
                (
                    *probes(clients, Target("cluster", "web", port=81), REFUSED),
                    *probes(clients, WEB, REFUSED, protocols=("udp",)),
                ),
                (only_tcp,),
            ),
        ),
    )
    nobody = Target("address", addresses=_HIGH)
    yield Scenario(
        "unallocated ClusterIP",
        (Step(probes(clients, nobody, DROPPED), (only_tcp,)),),
    )


def changes() -> Iterator[Scenario]:
    """A Service changes its type, or comes again with the address that it had."""
    name: Object = {"type": "ExternalName", "externalName": "example.org", "selector": None, "ports": []}
    fixed: Object = {"clusterIP": "10.96.200.1", "clusterIPs": ["10.96.200.1", "fd96::c801"]}
    was = Target("address", addresses=("10.96.200.1", "fd96::c801"))
    node_port: Object = {"ports": [port("tcp", nodePort=31080), port("udp", nodePort=31080)]}
    plain_ports: Object = {"ports": [port("tcp"), port("udp")]}
    nodes_port = Target("nodeport", "web", port=31080)
    yield Scenario(
        "changes of type",
        (
            Step(probes(POD_1, was, DROPPED), (service("web", **name),), label="ExternalName"),
            Step(probes(POD_1, WEB, BOTH), (service("web", **fixed, **plain_ports),), label="ClusterIP"),
            Step(
                (*probes(POD_1, WEB, BOTH), *probes(OUTSIDE_3, nodes_port, FROM_NODE_3)),
                (service("web", type="NodePort", **fixed, **node_port),),
                label="NodePort",
            ),
            Step(
                (*probes(POD_1, WEB, BOTH), *probes(OUTSIDE_3, nodes_port, REFUSED)),
                (service("web", **fixed, **plain_ports),),
                label="ClusterIP again",
            ),
            Step(probes(POD_1, was, DROPPED), (service("web", **name),), label="ExternalName again"),
        ),
    )
    yield Scenario(
        "the same ClusterIP again",
        (
            Step(probes(POD_3, WEB, FIRST), (service("web", "near", **fixed),), label="first"),
            Step(probes(POD_3, was, DROPPED), delete=(("Service", "web"),), label="deleted"),
            Step(
                probes(POD_3, Target("cluster", "other"), SECOND),
                (service("other", "far", **fixed),),
                label="under another name",
            ),
        ),
    )
    yield Scenario(
        "endpoints come and go",
        (
            Step(probes(POD_3, WEB, REFUSED), (service("web", "none"),), label="none"),
            Step(probes(POD_3, WEB, BOTH), (service("web", "both"),), label="two"),
            Step(probes(POD_3, WEB, FIRST), (service("web", "near"),), label="one"),
            Step(probes(POD_3, WEB, REFUSED), (service("web", "none"),), label="none again"),
        ),
    )


def proxy_name() -> Iterator[Scenario]:
    """A Service that another proxy serves is left alone, as long as it says so."""
    labelled = service("web", clusterIP="10.96.200.2", clusterIPs=["10.96.200.2", "fd96::c802"])
    other = {**labelled, "metadata": {**labelled["metadata"], "labels": {_PROXY_NAME: "other"}}}
    mine = {**labelled, "metadata": {**labelled["metadata"], "labels": {}}}
    yield Scenario(
        "another proxy's Service",
        (
            Step(probes(POD_3, WEB, DROPPED), (other,), label="labelled"),
            Step(probes(POD_3, WEB, BOTH), (mine,), label="label removed"),
            Step(probes(POD_3, WEB, DROPPED), (other,), label="labelled again"),
        ),
    )


def source_ranges() -> Iterator[Scenario]:
    """loadBalancerSourceRanges guard the load balancer's address, and nothing else."""
    client = [f"{OUTSIDE[4]}/32", f" {OUTSIDE[6]}/128 "]
    balancer = Target("balancer", "web")

    def guarded(ranges: list[str]) -> tuple[Object]:
        made = service("web", type="LoadBalancer", externalIPs=external(104), loadBalancerSourceRanges=ranges)
        return (made,)

    others = (
        *probes(OUTSIDE_3, Target("nodeport", "web"), FROM_NODE_3),
        *probes(OUTSIDE_3, Target("external", "web"), FROM_NODE_3),
        *probes(OUTSIDE_3, WEB, FROM_NODE_3),
        *probes(POD_3, WEB, BOTH),
    )
    yield Scenario(
        "source ranges",
        (
            Step(
                (
                    *probes(OUTSIDE_3, balancer, FROM_NODE_3),
                    *probes((POD_3, NODE_3), balancer, DROPPED),
                    *others,
                ),
                guarded(client),
                label="of the client",
            ),
            Step(
                (*probes(OUTSIDE_3, balancer, DROPPED), *others),
                guarded(["192.0.2.128/25", "2001:db8:ffff:1::/64"]),
                label="of others",
            ),
            Step(
                (*probes(POD_3, balancer, FROM_NODE_3), *probes((OUTSIDE_3, NODE_3), balancer, DROPPED)),
                guarded(["10.244.0.0/16", "fd10:244::/48"]),
                label="of pods",
            ),
            Step(
                (*probes(NODE_3, balancer, FROM_NODE_3), *probes((OUTSIDE_3, POD_3), balancer, DROPPED)),
                guarded(["172.31.0.0/16", "fd31::/16"]),
                label="of nodes",
            ),
            Step(
                probes((OUTSIDE_3, POD_3), balancer, FROM_NODE_3),
                guarded(["0.0.0.0/0", "::/0"]),
                label="of everybody",
            ),
            Step(
                (
                    *probes(OUTSIDE_3, balancer, FROM_NODE_3, families=(6,)),
                    *probes(OUTSIDE_3, balancer, DROPPED, families=(4,)),
                ),
                guarded(["192.0.2.128/25"]),
                label="of one family",
            ),
        ),
    )


def topology() -> Iterator[Scenario]:
    """trafficDistribution keeps connections in the zone or on the node, if anybody is there."""
    near = (*probes((POD_1, POD_3), WEB, FIRST), *probes(POD_2, WEB, SECOND))
    for distribution in ("PreferClose", "PreferSameZone"):
        made = service("web", trafficDistribution=distribution)
        yield Scenario(f"topology, {distribution}", (Step(near, (made,)),))
    yield Scenario(
        "topology, PreferSameNode",
        (
            Step(
                (*probes(POD_1, WEB, FIRST), *probes(POD_2, WEB, SECOND), *probes(POD_3, WEB, FIRST)),
                (service("web", trafficDistribution="PreferSameNode"),),
            ),
        ),
    )
    yield Scenario(
        "topology, nobody in the zone",
        (Step(probes((POD_1, POD_2, POD_3), WEB, SECOND), (service("web", "far", **_SAME_ZONE),)),),
    )
    yield Scenario(
        "topology, terminating ones only",
        (
            Step(
                probes(POD_2, WEB, answered(Source.CLIENT, "old-1", "old-2")),
                (service("web", "old", **_SAME_ZONE),),
            ),
        ),
    )
    local = service("web", type="LoadBalancer", externalTrafficPolicy="Local", **_SAME_ZONE)
    yield Scenario(
        "topology does not count for policy Local",
        (
            Step(
                (
                    *probes(OUTSIDE_1, Target("balancer", "web"), FIRST),
                    *probes(OUTSIDE_3, Target("balancer", "web"), DROPPED),
                    *probes(POD_3, Target("balancer", "web"), FIRST),
                ),
                (local,),
            ),
        ),
    )


def duplicates() -> Iterator[Scenario]:
    """Two Services want one externalIP and port: the older has it, and the younger inherits it."""
    asked = Target("external", "web")
    older = service("web", "near", externalIPs=external(105))
    younger = service("rival", "far", externalIPs=external(105))
    first = answered(Source.TUNNEL, "server-1")
    second = answered(Source.TUNNEL, "server-2")
    yield Scenario(
        "one externalIP for two",
        (
            Step(probes(POD_3, asked, first), (older,), label="alone"),
            Step(
                (
                    *probes(POD_3, Target("external", "rival"), first),
                    *probes(POD_3, Target("cluster", "rival"), SECOND),
                ),
                (younger,),
                label="a younger one comes",
                wait=1.1,
            ),
            Step(
                probes(POD_3, Target("external", "rival"), second),
                delete=(("Service", "web"),),
                label="the older one goes",
            ),
        ),
    )


def own_slices() -> Iterator[Scenario]:
    """A Service without a selector serves what its owner's slices name, in several slices at once."""
    bare = service("web", ports=[port("tcp"), port("udp")])
    del bare["spec"]["selector"]
    yield Scenario(
        "slices of one's own",
        (
            Step(probes(POD_3, WEB, REFUSED), (bare,), label="none"),
            Step(
                probes(POD_3, WEB, OUTSIDE_SERVER),
                tuple(_slice(family, str(OUTSIDE[family])) for family in FAMILIES),
                label="outside of the cluster",
            ),
        ),
    )


def _slice(family: int, address: str) -> Object:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"web-own-{family}",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": f"IPv{family}",
        "endpoints": [{"addresses": [address]}],
        "ports": [
            {"name": f"{protocol}-80", "protocol": protocol.upper(), "port": 8080}
            for protocol in ("tcp", "udp")
        ],
    }


def stories() -> Iterator[Scenario]:
    """All of them."""
    for chapter in (
        hairpin,
        session_affinity,
        ports,
        changes,
        proxy_name,
        source_ranges,
        topology,
        duplicates,
        own_slices,
    ):
        yield from chapter()
