"""The part of the table that NetworkPolicies decide: each story is a sentence of what they mean.

Services are asked as well where a policy meets one: policies see packets after a Service has chosen who
answers, and before a client's address is replaced. What is no question between pods (ICMP, path MTU, other
protocols, daemons that are away) is in tests/functional/scenarios/test_policies.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.scenarios.manifests import service
from tests.scenarios.model import DROPPED, Scenario, Step, Target
from tests.scenarios.policy_surroundings import surroundings
from tests.scenarios.policy_words import (
    BOTH,
    EVERYBODY,
    FAR,
    FROM_GUEST,
    NEAR,
    OUT,
    OUTSIDE_1,
    POD_1,
    POD_2,
    POD_3,
    SERVER_1,
    SERVER_2,
    block,
    blocks,
    closed_to,
    named,
    open_to,
    pods,
    policy,
)
from tests.scenarios.stories import probes
from tests.scenarios.topology import GUEST, PORT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.api.resources import Object

TCP: dict[str, Any] = {"protocols": ("tcp",)}
UDP: dict[str, Any] = {"protocols": ("udp",)}
SCTP: dict[str, Any] = {"protocols": ("sctp",)}


def isolation() -> Iterator[Scenario]:
    """A policy isolates the pods that it selects, in the directions that it has."""
    yield Scenario(
        "isolation is by pod and direction",
        (
            Step(
                (
                    *closed_to(POD_1, "server-1"),
                    *closed_to(POD_3, "server-1"),
                    *open_to(POD_3, "server-2"),
                    *open_to(SERVER_1, "server-2"),
                ),
                (policy(NEAR),),
                label="no types: ingress",
            ),
            Step(
                (*closed_to(POD_3, "server-1"), *open_to(SERVER_1, "server-2")),
                (policy(NEAR, egress=[]),),
                label="an empty egress is none",
            ),
            Step(
                (
                    *closed_to(POD_3, "server-1"),
                    *open_to(SERVER_1, "server-2"),
                    *closed_to(SERVER_1, "client-3"),
                ),
                (policy(NEAR, egress=[{"to": [pods(FAR)]}]),),
                label="no types, egress rules: both",
            ),
            Step(
                (*open_to(POD_3, "server-1"), *closed_to(SERVER_1, "client-1")),
                (policy(NEAR, policyTypes=OUT),),
                label="egress alone, replies pass",
            ),
        ),
    )
    yield Scenario(
        "a flow needs egress of its source and ingress of its destination",
        (
            Step(
                (*closed_to(POD_3, "server-1"), *closed_to(POD_1, "server-1")),
                (policy(NEAR, "in"), policy(named("client-3"), "out", policyTypes=OUT, egress=[{}])),
                label="egress alone allows",
            ),
            Step(
                (*closed_to(POD_3, "server-1"), *open_to(POD_1, "server-1")),
                (policy(NEAR, "in", ingress=[{}]), policy(named("client-3"), "out", policyTypes=OUT)),
                label="ingress alone allows",
            ),
            Step(
                open_to(POD_3, "server-1"),
                (policy(named("client-3"), "out", policyTypes=OUT, egress=[{"to": [pods(NEAR)]}]),),
                label="both allow",
            ),
        ),
    )


def emptiness() -> Iterator[Scenario]:
    """What an empty list, an empty rule and nothing at all mean."""
    shut = closed_to(POD_3, "server-1")
    through = open_to(POD_3, "server-1")
    yield Scenario(
        "an empty ingress denies all, an empty rule allows all",
        (
            Step(shut, (policy(NEAR, ingress=[]),), label="ingress []"),
            Step(through, (policy(NEAR, ingress=[{}]),), label="a rule {}"),
            Step(shut, (policy(NEAR, ingress=None),), label="ingress null"),
            Step(through, (policy(NEAR, ingress=[{"from": [], "ports": None}]),), label="empty from"),
            Step(shut, (policy(NEAR),), label="no ingress"),
            Step(through, (policy(NEAR, ingress=[{"from": None, "ports": []}]),), label="empty ports"),
        ),
    )
    everybody = (*closed_to(POD_1, "server-1"), *closed_to(POD_3, "server-2"), *closed_to(POD_1, "client-3"))
    others = open_to(POD_3, GUEST)
    yield Scenario(
        "an empty or absent podSelector is all pods of the namespace",
        (
            Step((*everybody, *others), (policy({}),), label="empty"),
            Step((*everybody, *others), (policy(None),), label="null"),
        ),
    )


def peers() -> Iterator[Scenario]:
    """Pods by their labels and their namespaces."""
    guests = {"namespaceSelector": {"matchLabels": {"team": "guests"}}}
    client, guest, nobody = (open_to(each, "server-1") for each in (POD_3, FROM_GUEST, POD_1))
    no_client, no_guest = closed_to(POD_3, "server-1"), closed_to(FROM_GUEST, "server-1")
    local = service("web", "near", type="NodePort", externalTrafficPolicy="Local")

    def let_in(*items: Object) -> tuple[Object]:
        return (policy(NEAR, ingress=[{"from": list(items)}]),)

    yield Scenario(
        "peers by podSelector and namespaceSelector",
        (
            Step((*client, *no_guest), let_in(pods(EVERYBODY)), label="pods: of the policy's namespace"),
            Step((*guest, *no_client), let_in(guests), label="namespaces: all their pods"),
            Step(
                (*guest, *no_client),
                let_in({**guests, **pods(named(GUEST, "client-3"))}),
                label="both in one item: and",
            ),
            Step(
                (*no_guest, *no_client),
                let_in({**guests, **pods(named("client-3"))}),
                label="both in one item, and nobody",
            ),
            Step(
                (*guest, *client, *closed_to(POD_1, "server-1")),
                let_in(guests, pods(named("client-3"))),
                label="two items: or",
            ),
            Step(
                (
                    *guest,
                    *client,
                    *nobody,
                    *probes(OUTSIDE_1, Target("nodeport", "web"), DROPPED),
                ),
                (local, *let_in({"namespaceSelector": {}})),
                label="every namespace is every pod, not who is outside",
            ),
        ),
    )

    def expression(key: str, operator: str, *values: str) -> tuple[Object]:
        found: Object = {"key": key, "operator": operator}
        if values:
            found["values"] = list(values)
        return let_in(pods({"matchExpressions": [found]}))

    far, no_far = open_to(SERVER_2, "server-1"), closed_to(SERVER_2, "server-1")
    yield Scenario(
        "matchExpressions",
        (
            Step((*far, *no_client), expression("far", "In", "yes"), label="In"),
            Step((*no_far, *client), expression("far", "NotIn", "yes"), label="NotIn, where it is absent"),
            Step((*far, *client), expression("far", "NotIn", "no"), label="NotIn, another value"),
            Step((*far, *no_client), expression("far", "Exists"), label="Exists"),
            Step((*no_far, *client), expression("far", "DoesNotExist"), label="DoesNotExist"),
        ),
    )


def addresses() -> Iterator[Scenario]:
    """ipBlock: plain addresses, of pods too."""
    client = open_to(POD_3, "server-1")
    shut = closed_to(POD_3, "server-1")
    world = [block("0.0.0.0/0"), block("::/0")]
    but = [block("0.0.0.0/0", "@client-3/4/32"), block("::/0", "@client-3/6/128")]

    def let_in(*items: Object) -> tuple[Object]:
        return (policy(NEAR, ingress=[{"from": list(items)}]),)

    yield Scenario(
        "ipBlock",
        (
            Step(
                (*client, *closed_to(POD_2, "server-1")), let_in(*blocks("client-3")), label="a pod's address"
            ),
            Step((*shut, *open_to(POD_2, "server-1")), let_in(*but), label="all but one"),
            Step(
                client,
                (policy(NEAR, ingress=[{"from": but}, {"from": blocks("client-3")}]),),
                label="an exception is no denial",
            ),
            Step(
                (*open_to(POD_3, "server-1", families=(4,)), *closed_to(POD_3, "server-1", families=(6,))),
                let_in(world[0]),
                label="0.0.0.0/0 is not IPv6",
            ),
            Step(
                (*closed_to(POD_3, "server-1", families=(4,)), *open_to(POD_3, "server-1", families=(6,))),
                let_in(world[1]),
                label="::/0 is not IPv4",
            ),
            Step(
                (*client, *open_to(POD_2, "server-1")),
                let_in(block("@client-3/4/8"), block("@client-3/6/32")),
                label="with host bits",
            ),
        ),
    )


def ports() -> Iterator[Scenario]:
    """Ports by number, by name, by protocol."""

    def let_in(*items: Object, selector: Object = BOTH) -> tuple[Object]:
        return (policy(selector, ingress=[{"ports": list(items)}]),)

    own = (*open_to(POD_3, "server-1", PORT + 1, **TCP), *open_to(POD_3, "server-2", PORT + 2, **TCP))
    others = (
        *closed_to(POD_3, "server-1", PORT + 2, **TCP),
        *closed_to(POD_3, "server-2", PORT + 1, **TCP),
        *closed_to(POD_3, "server-1", PORT),
    )
    out = named("client-3")
    yield Scenario(
        "a named port is what the destination calls so",
        (
            Step((*own, *others), let_in({"port": "web"}), label="ingress, other numbers by pod"),
            Step(
                closed_to(POD_3, "server-1", PORT + 1),
                let_in({"port": "nobody"}),
                label="a name that nobody has",
            ),
            Step(
                closed_to(POD_3, "server-1", PORT + 1),
                let_in({"port": "web", "protocol": "UDP"}),
                label="a name of another protocol",
            ),
            Step(
                open_to(POD_3, "server-1", PORT, **TCP),
                let_in({"port": "side"}),
                label="of a sidecar",
            ),
            Step(
                (*own, *others),
                (
                    policy(BOTH, ingress=[{}]),
                    policy(out, "out", policyTypes=OUT, egress=[{"ports": [{"port": "web"}]}]),
                ),
                label="egress, to pods of other nodes",
            ),
        ),
    )
    yield Scenario(
        "ports by number and protocol",
        (
            Step(
                (
                    *open_to(POD_3, "server-1", **UDP),
                    *closed_to(POD_3, "server-1", **TCP),
                    *closed_to(POD_3, "server-1", **SCTP),
                ),
                let_in({"protocol": "UDP"}),
                label="no number: all of the protocol",
            ),
            Step(
                (
                    *open_to(POD_3, "server-1", **TCP),
                    *closed_to(POD_3, "server-1", PORT + 1, **TCP),
                    *closed_to(POD_3, "server-1", **UDP),
                    *closed_to(POD_3, "server-1", **SCTP),
                ),
                let_in({"port": PORT}),
                label="no protocol: TCP",
            ),
            Step(
                (
                    *open_to(POD_3, "server-1", **TCP),
                    *open_to(POD_3, "server-1", PORT + 1, **TCP),
                    *closed_to(POD_3, "server-2", PORT + 2, **TCP),
                ),
                let_in({"port": PORT - 80, "endPort": PORT + 1}),
                label="endPort is included",
            ),
            Step(
                (*open_to(POD_3, "server-1", **SCTP), *closed_to(POD_3, "server-1")),
                let_in({"port": PORT, "protocol": "SCTP"}),
                label="SCTP is not TCP",
            ),
        ),
    )


def policy_stories() -> Iterator[Scenario]:
    """All of them."""
    for chapter in (isolation, emptiness, peers, addresses, ports, surroundings):
        yield from chapter()
