"""Names of links and chains say which other networks and firewalls are on the machine."""

from __future__ import annotations

import pytest

from datapath.surroundings import ForeignChain, Surroundings, describe


@pytest.mark.parametrize(
    ("link", "product"),
    [
        ("cni0", "the bridge plugin (flannel uses it)"),
        ("flannel.1", "flannel"),
        ("flannel-v6.1", "flannel"),
        ("cali0123456789a", "Calico"),
        ("vxlan.calico", "Calico"),
        ("cilium_host", "Cilium"),
        ("antrea-gw0", "Antrea"),
        ("kube-bridge", "kube-router"),
        ("weave", "Weave Net"),
    ],
)
def test_a_link_of_another_network(link: str, product: str) -> None:
    assert describe(["lo", "eth0", link], []).leftovers == {product: f"link {link}"}


@pytest.mark.parametrize(
    "link", ["lo", "eth0", "weft.vxlan", "weft0123456789a", "cali", "docker0", "kube-ipvs0", "weaver"]
)
def test_links_that_are_no_leftovers(link: str) -> None:
    assert describe([link], []) == Surroundings()


def test_chains_are_counted_by_product_and_many_links_summed_up() -> None:
    chains = [ForeignChain("ip", "filter", f"cali-{number}", forward_drop=False) for number in range(30)]
    links = [f"cali{number:011x}" for number in range(5)]
    found = describe(links, chains).leftovers["Calico"]
    assert found.startswith("link cali00000000000, link cali00000000001")
    assert found.endswith("and 3 more")


def test_a_forward_chain_that_drops_and_firewalld() -> None:
    chains = [
        ForeignChain("ip", "filter", "FORWARD", forward_drop=True),
        ForeignChain("ip6", "filter", "FORWARD", forward_drop=False),
        ForeignChain("inet", "firewalld", "filter_FORWARD", forward_drop=False),
    ]
    assert describe([], chains) == Surroundings({}, ("ip filter FORWARD",), firewalld=True)
