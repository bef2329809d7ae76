"""Random clusters as manifests, small enough that everything in them meets everything else."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Raw = dict[str, Any]

NODES = ("n1", "n2")
SPACES = ("a", "b")
MOST_PODS = 5
KEYS = ("app", "tier")
VALUES = ("x", "y")
PORT_NAMES = ("http", "dns")
PROTOCOLS = ("TCP", "TCP", "UDP", "SCTP")
NUMBERS = (53, 80, 81, 443)
OUTSIDE = ("8.8.8.8", "10.1.2.3", "2001:db8::8")

WIDE4 = ("0.0.0.0/0", "10.0.0.0/8", "10.244.0.0/16", "192.168.7.0/24")
NARROW4 = (
    "10.244.1.0/24",
    "10.244.2.0/25",
    "10.244.1.2/31",
    "10.244.1.3/32",
    "192.168.7.1/32",
    "192.168.7.2/32",
    "8.8.8.8/32",
    "10.244.2.0/32",
    "10.244.1.77/29",
)
WIDE6 = ("::/0", "fd00::/16", "2001:db8::/32")
NARROW6 = ("fd00:0:0:1::/64", "fd00:0:0:1::2/127", "fd07::2/128", "fd00:0:0:2::5/64")
"""Some have host bits, as clusters have them."""

NOTHING: list[Any] = [None, []]

label_sets = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=2)
values = st.lists(st.sampled_from(VALUES), min_size=1, max_size=2)


@st.composite
def expressions(draw: st.DrawFn) -> Raw:
    key = draw(st.sampled_from(KEYS))
    operator = draw(st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"]))
    raw: Raw = {"key": key, "operator": operator}
    if operator in {"In", "NotIn"}:
        raw["values"] = draw(values)
    return raw


def often(draw: st.DrawFn) -> bool:
    """Three times of four."""
    return draw(st.sampled_from([True, True, True, False]))


@st.composite
def selectors(draw: st.DrawFn) -> Raw:
    kind = draw(st.sampled_from(["everything", "labels", "expressions", "expressions", "both"]))
    raw: Raw = {}
    if kind in {"labels", "both"}:
        raw["matchLabels"] = {draw(st.sampled_from(KEYS)): draw(st.sampled_from(VALUES))}
    if kind in {"expressions", "both"}:
        raw["matchExpressions"] = draw(st.lists(expressions(), min_size=1, max_size=2))
    return raw


@st.composite
def blocks(draw: st.DrawFn) -> Raw:
    """Most exceptions are inside of their block and hold addresses of the cluster."""
    wide, narrow = draw(st.sampled_from([(WIDE4, NARROW4), (WIDE4, NARROW4), (WIDE6, NARROW6)]))
    raw: Raw = {"cidr": draw(st.sampled_from(wide + narrow))}
    if often(draw):
        raw["except"] = draw(st.lists(st.sampled_from(narrow), min_size=1, max_size=2))
    return raw


@st.composite
def peers(draw: st.DrawFn) -> Raw:
    kind = draw(st.sampled_from(["pods", "spaces", "both", "block", "block"]))
    if kind == "block":
        return {"ipBlock": draw(blocks())}
    raw: Raw = {}
    if kind != "spaces":
        raw["podSelector"] = draw(selectors())
    if kind != "pods":
        raw["namespaceSelector"] = draw(selectors())
    return raw


@st.composite
def policy_ports(draw: st.DrawFn) -> Raw:
    raw: Raw = {"protocol": draw(st.sampled_from(PROTOCOLS))} if draw(st.booleans()) else {}
    kind = draw(st.sampled_from(["none", "name", "name", "number", "range"]))
    if kind == "name":
        raw["port"] = draw(st.sampled_from(PORT_NAMES))
    elif kind != "none":
        raw["port"] = draw(st.sampled_from(NUMBERS))
    if kind == "range":
        raw["endPort"] = draw(st.integers(raw["port"], raw["port"] + 400))
    return raw


@st.composite
def rules(draw: st.DrawFn, side: str) -> Raw:
    """A rule with one field or both; a field may be empty or null."""
    raw: Raw = {}
    if often(draw):
        some = st.lists(peers(), min_size=1, max_size=3)
        raw[side] = draw(some) if often(draw) else draw(st.sampled_from(NOTHING))
    if draw(st.booleans()):
        some = st.lists(policy_ports(), min_size=1, max_size=3)
        raw["ports"] = draw(some) if often(draw) else draw(st.sampled_from(NOTHING))
    return raw


@st.composite
def policies(draw: st.DrawFn, names: st.SearchStrategy[str]) -> Raw:
    spec: Raw = {}
    selector = draw(st.sampled_from(["absent", "null", "some", "some"]))
    if selector != "absent":
        spec["podSelector"] = draw(selectors()) if selector == "some" else None
    for field, side in (("ingress", "from"), ("egress", "to")):
        if often(draw):
            some = st.lists(rules(side), min_size=1, max_size=2)
            spec[field] = draw(some) if often(draw) else draw(st.sampled_from(NOTHING))
    if draw(st.booleans()):
        types = [None, [], ["Ingress"], ["Egress"], ["Ingress", "Egress"], ["Ingress", "Egress"]]
        spec["policyTypes"] = draw(st.sampled_from(types))
    return {
        "kind": "NetworkPolicy",
        "metadata": {"namespace": draw(st.sampled_from(SPACES)), "name": draw(names)},
        "spec": spec,
    }


ports = st.fixed_dictionaries(
    {"name": st.sampled_from(PORT_NAMES), "containerPort": st.sampled_from(NUMBERS)},
    optional={"protocol": st.sampled_from(PROTOCOLS)},
)
containers = st.lists(
    st.fixed_dictionaries({"ports": st.lists(ports, min_size=1, max_size=3)}), min_size=1, max_size=2
)
init_containers = st.lists(
    st.fixed_dictionaries(
        {"ports": st.lists(ports, max_size=1)}, optional={"restartPolicy": st.just("Always")}
    ),
    max_size=1,
)


def pod_addresses(node: int, number: int) -> tuple[str, str]:
    """What the pod of a number has on a node."""
    return f"10.244.{node}.{number + 2}", f"fd00:0:0:{node}::{number + 2}"


def link_name(number: int) -> str:
    """The host link of the pod of a number, as Town calls it."""
    return f"weft-{SPACES[number % len(SPACES)]}-p{number}"


@st.composite
def pods(draw: st.DrawFn, number: int) -> Raw:
    """The pod of a number, which says its address on whichever node it is, so that no two share one."""
    node = draw(st.integers(1, len(NODES)))
    host = draw(st.sampled_from([False] * 7 + [True]))
    ips = node_addresses(node)[:2] if host else pod_addresses(node, number)
    spec: Raw = {"nodeName": NODES[node - 1], "containers": draw(containers)}
    if host:
        spec["hostNetwork"] = True
    init = draw(init_containers)
    if init:
        spec["initContainers"] = init
    return {
        "kind": "Pod",
        "metadata": {
            "namespace": SPACES[number % len(SPACES)],
            "name": f"p{number}",
            "uid": f"u{number}",
            "labels": draw(label_sets),
        },
        "spec": spec,
        "status": {
            "phase": draw(st.sampled_from(["Running"] * 8 + ["Pending", "Succeeded", "Failed"])),
            "podIPs": [{"ip": each} for each in ips[: draw(st.sampled_from([1, 2, 2, 2]))]],
        },
    }


def node_addresses(number: int) -> tuple[str, str, str, str]:
    """The addresses that a node speaks from: its own, and those of its end of the tunnel."""
    return f"192.168.7.{number}", f"fd07::{number}", f"10.244.{number}.0", f"fd00:0:0:{number}::"


def pod_networks(number: int) -> tuple[str, str]:
    """The podCIDRs of a node."""
    return f"10.244.{number}.0/24", f"fd00:0:0:{number}::/64"


def nodes() -> list[Raw]:
    return [
        {
            "kind": "Node",
            "metadata": {"name": name},
            "spec": {"podCIDRs": list(pod_networks(number))},
            "status": {
                "addresses": [
                    {"type": "InternalIP", "address": address} for address in node_addresses(number)[:2]
                ]
            },
        }
        for number, name in enumerate(NODES, 1)
    ]


def namespaces() -> st.SearchStrategy[list[Raw]]:
    return st.tuples(*[label_sets for _ in SPACES]).map(
        lambda found: [
            {"kind": "Namespace", "metadata": {"name": name, "labels": labels}}
            for name, labels in zip(SPACES, found, strict=True)
        ]
    )


@st.composite
def clusters(draw: st.DrawFn) -> dict[str, list[Raw]]:
    """Lists of manifests by what they are."""
    return {
        "nodes": nodes(),
        "namespaces": draw(namespaces()),
        "pods": [draw(pods(number)) for number in range(draw(st.integers(2, MOST_PODS)))],
        "policies": [draw(policies(st.just(f"policy{number}"))) for number in range(draw(st.integers(2, 5)))],
    }


def addresses(cluster: dict[str, list[Raw]]) -> list[str]:
    """Every address worth trying: of pods, of nodes, of their tunnels, and of others."""
    found = dict.fromkeys(OUTSIDE)
    for pod in cluster["pods"]:
        found |= dict.fromkeys(entry["ip"] for entry in pod["status"]["podIPs"])
    for number in range(1, len(NODES) + 1):
        found |= dict.fromkeys(node_addresses(number))
    return list(found)
