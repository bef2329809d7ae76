"""Routes of last resort to ClusterIPs, by family, and the ranges of the set."""

from __future__ import annotations

from daemon.cluster.model import Prefix, ServiceCIDR
from daemon.compile.service_routes import LAST_RESORT, service_cidrs, service_routes
from daemon.config import Config
from datapath.describe import describe
from datapath.nft.frontends import SERVICE_CIDRS
from datapath.text import parse_address, parse_prefix
from tests.unit.daemon.compile.nodes import local


def prefixes(*texts: str) -> tuple[Prefix, ...]:
    return tuple(Prefix(*parse_prefix(each)) for each in texts)


def test_the_configuration_counts_and_objects_without_it() -> None:
    objects = [
        ServiceCIDR("kubernetes", prefixes("10.96.0.0/16", "fd96::/112")),
        ServiceCIDR("more", prefixes("10.100.0.0/24", "10.96.0.0/16")),
    ]
    assert service_cidrs(Config(), objects) == tuple(
        sorted(prefixes("10.96.0.0/16", "10.100.0.0/24", "fd96::/112"))
    )
    assert service_cidrs(Config(service_cidrs=("10.1.0.0/16",)), objects) == prefixes("10.1.0.0/16")
    assert service_cidrs(Config(), []) == ()


def test_each_family_leads_out_by_its_underlay_with_the_nodes_address() -> None:
    both = local(ips="192.168.7.1 fd07::1", cidrs="10.244.1.0/24 fd44::/64")
    fragment = service_routes(both, prefixes("10.96.0.0/16", "10.100.0.0/24", "fd96::/112"))
    assert [describe(route) for route in fragment.objects] == [
        f"10.96.0.0/16 dev eth0 src 192.168.7.1 metric {LAST_RESORT}",
        f"10.100.0.0/24 dev eth0 src 192.168.7.1 metric {LAST_RESORT}",
        f"fd96::/112 dev eth0 src fd07::1 metric {LAST_RESORT}",
    ]


def test_a_family_of_pods_only_leads_through_the_tunnel_and_one_of_nobody_nowhere() -> None:
    inside = local(cidrs="10.244.1.0/24 fd44::/64")
    fragment = service_routes(inside, prefixes("10.96.0.0/16", "fd96::/112"))
    assert describe(fragment.objects[1]) == f"fd96::/112 dev weft.vxlan src fd44:: metric {LAST_RESORT}"
    fragment = service_routes(local(), prefixes("10.96.0.0/16", "fd96::/112"))
    assert len(fragment.objects) == 1


def test_the_sets_hold_disjoint_ranges_and_are_named_even_when_empty() -> None:
    four, six = service_routes(local(), prefixes("10.96.0.0/16", "10.96.3.0/24", "10.100.0.0/24")).elements
    assert (four.name, four.table, six.table) == (SERVICE_CIDRS, (2, "weft"), (10, "weft"))
    assert set(four.elements) == {
        parse_address("10.96.0.0") + parse_address("10.96.255.255"),
        parse_address("10.100.0.0") + parse_address("10.100.0.255"),
    }
    assert six.elements == {}
