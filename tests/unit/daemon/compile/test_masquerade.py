from __future__ import annotations

from daemon.compile.masquerade import peer_elements, sets_fragment
from daemon.config import Config
from datapath.text import address, parse_address
from tests.unit.daemon.compile.nodes import local, node

NODES = {
    each.name: each
    for each in (
        node("a", "192.168.7.1 fd07::1", "10.244.1.0/24 fd44:0:0:1::/64"),
        node("b", "192.168.7.2 fd07::2", "10.244.2.0/24 fd44:0:0:2::/64"),
        node("c", "192.168.7.3", "10.244.3.0/24", underlay="203.0.113.3"),
    )
}


def sets(config: Config | None = None, direct: tuple[bytes, ...] = ()) -> dict[tuple[int, str], set[str]]:
    here = local(config, ips="192.168.7.1 fd07::1", cidrs="10.244.1.0/24 fd44:0:0:1::/64")
    found: dict[tuple[int, str], set[str]] = {}
    peers = [each for name, each in NODES.items() if name != here.node_name]
    of_peers = [value for each in peers for value in peer_elements(each, direct)]
    for value in (*sets_fragment(here, NODES, config or Config()).elements, *of_peers):
        width = 4 if value.table[0] == 2 else 16
        found.setdefault((value.table[0], value.name), set()).update(
            "-".join(address(key[start : start + width]) for start in range(0, len(key), width))
            for key in value.elements
        )
    return found


def test_a_peer_names_only_sets_that_it_has_elements_for() -> None:
    names = [(value.table[0], value.name) for value in peer_elements(NODES["c"], ())]
    assert names == [(2, "nodes")]
    assert peer_elements(node("d", "", "10.244.4.0/24"), ()) == ()


def test_sets_that_peers_fill_are_named_without_any() -> None:
    """Else what an earlier process left in them would be nobody's."""
    here = local()
    found = {(value.table[0], value.name) for value in sets_fragment(here, {}, Config()).elements}
    assert {(family, name) for family in (2, 10) for name in ("nodes", "direct")} <= found


def test_vxlan_comes_from_other_nodes_to_us() -> None:
    found = sets()
    assert found[2, "nodes"] == {"192.168.7.2", "192.168.7.3", "203.0.113.3"}
    assert found[10, "nodes"] == {"fd07::2"}
    assert found[2, "local"] == {"192.168.7.1"}
    assert found[10, "local"] == {"fd07::1"}


def test_pod_cidrs_of_all_nodes_are_not_masqueraded() -> None:
    found = sets()
    assert found[2, "unmasqueraded"] == {
        "10.244.1.0-10.244.1.255",
        "10.244.2.0-10.244.2.255",
        "10.244.3.0-10.244.3.255",
    }
    assert found[10, "unmasqueraded"] == {
        "fd44:0:0:1::-fd44::1:ffff:ffff:ffff:ffff",
        "fd44:0:0:2::-fd44::2:ffff:ffff:ffff:ffff",
    }


def test_configured_cidrs_replace_the_union_and_exemptions_are_added() -> None:
    exempt = ("10.244.9.0/24", "172.16.0.0/12")
    found = sets(Config(cluster_cidrs=("10.244.0.0/16",), non_masquerade_cidrs=exempt))
    assert found[2, "unmasqueraded"] == {"10.244.0.0-10.244.255.255", "172.16.0.0-172.31.255.255"}
    assert found[10, "unmasqueraded"] == set()


def test_only_direct_peers_see_pods_own_addresses() -> None:
    assert sets()[2, "direct"] == set()
    found = sets(direct=(parse_address("192.168.7.2"), parse_address("fd07::2")))
    assert found[2, "direct"] == {"192.168.7.2"}
    assert found[10, "direct"] == {"fd07::2"}
