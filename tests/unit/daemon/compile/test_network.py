"""A change at a time gives what compiling everything anew gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.cluster.model import Node
from daemon.compile.network import LOCAL, SETS, Network, node_key
from daemon.config import Config
from datapath.fragments import Fragments
from tests.unit.daemon.compile.nodes import link, node

if TYPE_CHECKING:
    from datapath.desired import Fragment, FragmentKey
    from datapath.underlay import HostLink

NAMES = ("a", "b", "c", "d")
LINKS = [(link(),), (link(mtu=9000),), (link(addresses="192.168.7.1/16 fd07::1/64"),)]
OWN = node("a", "192.168.7.1 fd07::1", "10.244.1.0/24 fd44:0:0:1::/64")
PEER = node("b", "192.168.7.2", "10.244.2.0/24")


def nodes() -> st.SearchStrategy[Node | None]:
    ips = st.sampled_from(["", "192.168.7.2", "192.168.8.2", "fd07::2", "192.168.7.3 fd07::3"])
    cidrs = st.sampled_from(["", "10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24 fd44:0:0:3::/64"])
    return st.none() | st.builds(lambda i, c: node("x", i, c), ips, cidrs)


def named(value: Node, name: str) -> Node:
    return Node(name, value.uid, value.internal_ips, value.pod_cidrs, value.underlay)


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from(NAMES[1:]), nodes(), st.sampled_from(LINKS)), max_size=8),
    overlay=st.sampled_from(["vxlan", "auto", "direct"]),
)
def test_the_way_does_not_matter(
    steps: list[tuple[str, Node | None, tuple[HostLink, ...]]], overlay: str
) -> None:
    config = Config(overlay=overlay)  # type: ignore[arg-type]
    walked, union = Network("a", config), Fragments()
    present = {"a": OWN}
    links: tuple[HostLink, ...] = LINKS[0]

    def take(changes: dict[FragmentKey, Fragment | None], into: Fragments) -> None:
        for key, fragment in changes.items():
            into.replace(key, fragment)

    take(walked.update(present, present, links), union)
    for name, value, links in steps:
        if value is None:
            present.pop(name, None)
        else:
            present[name] = named(value, name)
        take(walked.update(present, (name,), links), union)
    fresh, direct = Network("a", config), Fragments()
    take(fresh.update(present, present, links), direct)
    assert dict(union.items()) == dict(direct.items())
    assert set(walked.problems()) == set(fresh.problems())


def test_one_changed_node_changes_one_fragment() -> None:
    network = Network("a", Config())
    present = {"a": OWN, "b": PEER}
    assert network.update(present, present, (link(),)).keys() == {LOCAL, SETS, node_key("b")}
    moved = {**present, "b": node("b", "192.168.7.9", "10.244.2.0/24")}
    assert network.update(moved, ("b",), (link(),)).keys() == {node_key("b")}
    assert network.update(moved, ("b", "a"), (link(),)) == {}
    assert network.update(present | {"b": moved["b"]}, (), (link(),)) == {}


def test_pod_cidrs_change_the_sets_where_they_are_not_configured() -> None:
    elsewhere = {"a": OWN, "b": node("b", "192.168.7.2", "10.244.9.0/24")}
    for config, also in ((Config(), {SETS}), (Config(cluster_cidrs=("10.244.0.0/16",)), set())):
        network = Network("a", config)
        network.update({"a": OWN, "b": PEER}, ("a", "b"), (link(),))
        assert network.update(elsewhere, ("b",), (link(),)).keys() == {node_key("b"), *also}


def test_a_node_that_leaves_takes_its_fragment_along() -> None:
    network = Network("a", Config())
    network.update({"a": OWN, "b": PEER}, ("a", "b"), (link(),))
    changes = network.update({"a": OWN}, ("b",), (link(),))
    assert changes[node_key("b")] is None
    assert network.remotes == {}


def test_our_own_node_going_away_leaves_the_network_as_it_was() -> None:
    network = Network("a", Config())
    network.update({"a": OWN, "b": PEER}, ("a", "b"), (link(),))
    before = network.local
    network.update({"b": PEER}, ("a",), (link(),))
    assert network.local == before
    assert [problem.name for problem in network.problems()] == ["NodeMissing"]


def test_an_ipv6_only_peer_brings_the_second_tunnel_and_takes_it_away() -> None:
    network = Network("a", Config())
    network.update({"a": OWN, "b": PEER}, ("a", "b"), (link(),))
    assert network.local is not None
    assert set(network.local.vteps) == {4}
    six = node("c", "fd07::3", "10.244.3.0/24")
    network.update({"a": OWN, "b": PEER, "c": six}, ("c",), (link(),))
    assert set(network.local.vteps) == {4, 16}
    network.update({"a": OWN, "b": PEER}, ("c",), (link(),))
    assert set(network.local.vteps) == {4}


def test_nothing_is_compiled_before_there_is_a_node() -> None:
    network = Network("a", Config())
    assert network.update({"b": PEER}, ("b",), (link(),)) == {}
    assert network.local is None
    assert network.update({"a": OWN, "b": PEER}, ("a",), (link(),)).keys() == {LOCAL, SETS, node_key("b")}
