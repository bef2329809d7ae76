"""The compiled state of all Services: what a change concerns, who gets what several want, what is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from daemon.cluster.store import SERVICE, Store
from daemon.compile.catalog import Catalog, service_key, shown
from daemon.compile.endpoints import Site
from daemon.compile.services import HealthCheck, Kind
from datapath.desired import Fragment
from datapath.fragments import Fragments
from datapath.nft.frontends import Balance, Need, Snat, service_elements
from tests.unit.daemon.compile.shop import SITE, addresses, backends, frontend, service, slice_

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.cluster.model import EndpointSlice, Service
    from datapath.desired import FragmentKey
    from datapath.nft.frontends import Frontend

OLD, NEW = "2026-01-01T00:00:00Z", "2026-02-02T00:00:00Z"


class Shop:
    """A store and a catalog that follows it; `fragments` is what the writer would hold."""

    def __init__(self) -> None:
        self.store = Store()
        self.subscription = self.store.subscribe(SERVICE)
        self.catalog = Catalog()
        self.fragments: dict[FragmentKey, Fragment] = {}

    def put(self, *objects: Service | EndpointSlice) -> None:
        for each in objects:
            table: Any = self.store.services if hasattr(each, "cluster_ips") else self.store.endpoint_slices
            table.put(f"{each.namespace}/{each.name}", each)

    def turn(self, site: Site = SITE) -> Mapping[FragmentKey, Fragment | None]:
        """Take in what changed, compile everything, and return what came of it."""
        store, dirty = self.store, [key.name for key in self.subscription.take()]
        changes = self.catalog.update(store.services, store.endpoint_slices.of, dirty, site)
        for key, fragment in changes.items():
            if fragment is None:
                del self.fragments[key]
            else:
                self.fragments[key] = fragment
        return changes

    def holds(self, each: Service, balances: Mapping[Frontend, Balance]) -> bool:
        """Whether the fragment of a Service is that of these balances."""
        elements = service_elements(balances, cluster_ips=each.cluster_ips)
        return self.fragments[service_key(each)] == Fragment(elements=elements)


def test_a_service_becomes_a_fragment_of_all_its_frontends() -> None:
    shop = Shop()
    web = service(external="203.0.113.1", created=OLD)
    shop.put(web, slice_("10.0.0.1", "10.0.0.2"))
    assert set(shop.turn()) == {("service", OLD, "shop/web")}
    both = backends("10.0.0.1 10.0.0.2")
    assert shop.holds(
        web,
        {
            frontend("tcp 10.96.0.7 80"): Balance(both, Snat.FOREIGN),
            frontend("tcp 203.0.113.1 80"): Balance(both, Snat.ALWAYS),
        },
    )
    assert list(shop.catalog) == ["shop/web"]


def test_a_changed_slice_changes_the_fragment_of_its_service_only() -> None:
    shop = Shop()
    shop.put(
        service(),
        slice_("10.0.0.1"),
        service("10.96.0.8", name="api"),
        slice_("10.0.0.9", name="x", of="api"),
    )
    assert len(shop.turn()) == 2
    shop.put(slice_("10.0.0.2"))
    assert set(shop.turn()) == {service_key(service())}
    shop.store.endpoint_slices.remove("shop/web-1")
    assert set(shop.turn()) == {service_key(service())}


def test_what_makes_no_difference_changes_nothing() -> None:
    shop = Shop()
    shop.put(service(), slice_("10.0.0.1", "10.0.0.2 unready"))
    shop.turn()
    shop.put(service(uid="another"), slice_("10.0.0.1"))
    assert shop.turn() == {}
    assert shop.turn() == {}


def test_a_slice_without_a_service_waits_for_it() -> None:
    shop = Shop()
    shop.put(slice_("10.0.0.1"))
    assert shop.turn() == {}
    shop.put(service())
    shop.turn()
    assert shop.holds(service(), {frontend("tcp 10.96.0.7 80"): Balance(backends("10.0.0.1"), Snat.FOREIGN)})


def test_a_service_that_goes_takes_everything_with_it() -> None:
    shop = Shop()
    gone = service(
        ports="dns:udp:53",
        type="LoadBalancer",
        balanced="203.0.113.9",
        ranges="192.0.2.0/24",
        external_local=True,
        health_check_node_port=31000,
        affinity_seconds=30,
        faults=("x",),
    )
    shop.put(gone, slice_("10.0.0.1 zone=west", ports="dns:udp:53"))
    shop.turn()
    assert shop.catalog.need == Need(frozenset({1}), frozenset({30}))
    assert len(shop.catalog) == len(shop.catalog.health_checks) == len(list(shop.catalog.problems())) == 1
    shop.store.services.remove("shop/web")
    assert shop.turn() == {service_key(gone): None}
    assert shop.catalog.need == Need()
    assert not shop.catalog.health_checks
    assert not shop.catalog.flows
    assert not list(shop.catalog.problems())
    assert shop.turn(Site("here", "east")) == {}
    assert len(shop.catalog) == 0


@pytest.mark.parametrize("other", [{"type": "ExternalName"}, {}], ids=["external name", "headless"])
def test_type_changes_take_effect_live(other: dict[str, Any]) -> None:
    shop = Shop()
    void = service("", "", **other)
    shop.put(service(), slice_("10.0.0.1"))
    shop.turn()
    shop.put(void)
    assert shop.turn() == {service_key(service()): None}
    ported = service(ports="http:tcp:80:30080", type="NodePort")
    shop.put(ported)
    shop.turn()
    balances = shop.catalog.view("shop/web")
    assert balances is not None
    assert [row.kind for row in balances.rows] == [Kind.CLUSTER_IP, Kind.NODE_PORT]
    shop.put(service())
    shop.turn()
    assert shop.holds(service(), {frontend("tcp 10.96.0.7 80"): Balance(backends("10.0.0.1"), Snat.FOREIGN)})


def test_a_service_created_again_replaces_its_fragment() -> None:
    shop = Shop()
    shop.put(service(created=OLD), slice_("10.0.0.1"))
    shop.turn()
    shop.put(service(created=NEW))
    changes = shop.turn()
    assert changes[service_key(service(created=OLD))] is None
    assert changes[service_key(service(created=NEW))] is not None
    assert len(changes) == 2


def test_a_service_created_with_the_address_of_one_that_goes_gets_it() -> None:
    shop = Shop()
    shop.put(service(created=OLD))
    shop.turn()
    shop.store.services.remove("shop/web")
    other = service(name="api", created=NEW)
    shop.put(other, slice_("10.0.0.5", of="api"))
    shop.turn()
    assert set(shop.fragments) == {service_key(other)}
    assert shop.holds(other, {frontend("tcp 10.96.0.7 80"): Balance(backends("10.0.0.5"), Snat.FOREIGN)})
    assert not list(shop.catalog.problems())


@pytest.mark.parametrize("order", ["old first", "new first", "together"])
def test_of_two_services_with_one_external_address_the_older_has_it(order: str) -> None:
    shop = Shop()
    older = service(external="203.0.113.1", name="zoo", created=OLD)
    newer = service("10.96.0.8", external="203.0.113.1", name="ape", created=NEW)
    shop.put(slice_("10.0.0.1", of="zoo"), slice_("10.0.0.2", name="x", of="ape"))
    for each in (newer, older) if order == "new first" else (older, newer):
        shop.put(each)
        if order != "together":
            shop.turn()
    shop.turn()
    contested = frontend("tcp 203.0.113.1 80")
    ours, theirs = backends("10.0.0.1"), backends("10.0.0.2")
    assert shop.holds(
        older,
        {
            frontend("tcp 10.96.0.7 80"): Balance(ours, Snat.FOREIGN),
            contested: Balance(ours, Snat.ALWAYS),
        },
    )
    assert shop.holds(newer, {frontend("tcp 10.96.0.8 80"): Balance(theirs, Snat.FOREIGN)})
    (problem,) = shop.catalog.problems()
    assert (problem.name, problem.level) == ("ServiceConflict", "warning")
    assert "Service shop/ape does not get connections to TCP 203.0.113.1:80" in problem.message
    assert "they go to Service shop/zoo" in problem.message


def test_when_the_older_service_goes_the_other_takes_over_at_once() -> None:
    shop = Shop()
    shop.put(
        service(external="203.0.113.1", name="zoo", created=OLD),
        service("10.96.0.8", external="203.0.113.1", name="ape", created=NEW),
        slice_("10.0.0.2", of="ape"),
    )
    shop.turn()
    shop.store.services.remove("shop/zoo")
    assert len(shop.turn()) == 2
    assert shop.holds(
        service("10.96.0.8", name="ape", created=NEW),
        {
            frontend("tcp 10.96.0.8 80"): Balance(backends("10.0.0.2"), Snat.FOREIGN),
            frontend("tcp 203.0.113.1 80"): Balance(backends("10.0.0.2"), Snat.ALWAYS),
        },
    )
    assert not list(shop.catalog.problems())


def test_a_service_that_gives_an_address_up_hands_it_over_too() -> None:
    shop = Shop()
    shop.put(
        service(external="203.0.113.1", name="zoo", created=OLD),
        service("10.96.0.8", external="203.0.113.1", name="ape", created=NEW),
    )
    shop.turn()
    shop.put(service(name="zoo", created=OLD))
    assert len(shop.turn()) == 2
    assert not list(shop.catalog.problems())


def test_nobody_takes_a_cluster_ip_away_with_an_external_address() -> None:
    shop = Shop()
    thief = service(external="10.96.0.8", name="thief", created=OLD)
    owner = service("10.96.0.8", name="owner", created=NEW)
    shop.put(thief, owner, slice_("10.0.0.1", of="owner"))
    shop.turn()
    assert shop.holds(owner, {frontend("tcp 10.96.0.8 80"): Balance(backends("10.0.0.1"), Snat.FOREIGN)})
    (problem,) = shop.catalog.problems()
    assert "shop/thief does not get connections to TCP 10.96.0.8:80" in problem.message


def test_one_address_with_different_ports_or_protocols_is_no_conflict() -> None:
    shop = Shop()
    shop.put(
        service(external="203.0.113.1"),
        service("10.96.0.8", "dns:udp:80", external="203.0.113.1", name="dns"),
        service("10.96.0.9", "http:tcp:81", external="203.0.113.1", name="other"),
    )
    shop.turn()
    assert not list(shop.catalog.problems())


def test_many_lost_frontends_are_one_problem() -> None:
    shop = Shop()
    ports = " ".join(f"p{number}:tcp:{number}" for number in range(80, 90))
    shop.put(
        service(ports=ports, external="203.0.113.1", created=OLD),
        service("10.96.0.8", ports, external="203.0.113.1", name="api", created=NEW),
    )
    shop.turn()
    (problem,) = shop.catalog.problems()
    assert "TCP 203.0.113.1:80, TCP 203.0.113.1:81, TCP 203.0.113.1:82 and 7 more" in problem.message


def test_the_fragments_of_services_claim_no_element_twice() -> None:
    """So that what the kernel holds of a frontend is of one Service, slots and size alike."""
    shop = Shop()
    shop.put(
        service(external="203.0.113.1", created=OLD),
        service("10.96.0.8", external="203.0.113.1", name="api", created=NEW),
        slice_("10.0.0.1"),
        slice_("10.0.0.2", "10.0.0.3", name="x", of="api"),
    )
    shop.turn()
    union = Fragments()
    for key, fragment in shop.fragments.items():
        union.replace(key, fragment)
    count = sum(len(each.elements) for part in shop.fragments.values() for each in part.elements)
    assert count == sum(map(len, union.sets().values()))


def test_parts_that_were_left_out_are_told() -> None:
    shop = Shop()
    shop.put(service(faults=("spec.externalIPs: 'x' is not an IP address",)), slice_())
    shop.turn()
    (problem,) = shop.catalog.problems()
    assert (problem.name, problem.key) == ("ServiceIncomplete", "shop/web")
    assert "Service shop/web is served without" in problem.message
    assert "'x' is not an IP address" in problem.message
    shop.put(service())
    shop.turn()
    assert not list(shop.catalog.problems())


def test_another_zone_recompiles_only_who_has_hints() -> None:
    shop = Shop()
    shop.put(
        service(),
        slice_("10.0.0.1 zone=west", "10.0.0.2 zone=east"),
        service("10.96.0.8", name="api"),
        slice_("10.0.0.9", name="x", of="api"),
    )
    shop.turn()
    east = Site("here", "east", SITE.addresses)
    shop.catalog.take(shop.store.services, shop.store.endpoint_slices.of, (), east)
    assert set(shop.catalog.compile()) == {service_key(service())}
    assert shop.turn(east) == {}


def test_other_addresses_of_the_node_recompile_only_who_restricts_sources() -> None:
    shop = Shop()
    fields: dict[str, Any] = {"type": "LoadBalancer", "balanced": "203.0.113.9"}
    shop.put(
        service(ranges="192.168.0.0/16", **fields),
        service("10.96.0.8", name="api", type="LoadBalancer", balanced="203.0.113.8"),
        slice_("10.0.0.1"),
    )
    shop.turn()
    moved = Site(SITE.node, SITE.zone, addresses("10.1.1.1"))
    shop.catalog.take(shop.store.services, shop.store.endpoint_slices.of, (), moved)
    assert set(shop.catalog.compile()) == {service_key(service())}


def test_another_name_of_the_node_recompiles_everybody() -> None:
    shop = Shop()
    shop.put(service(internal_local=True), slice_("10.0.0.1@here"))
    shop.turn()
    assert len(shop.turn(Site("there", SITE.zone, SITE.addresses))) == 1


def test_compiling_in_slices_ends_with_the_same() -> None:
    shop = Shop()
    names = [f"s{number}" for number in range(20)]
    for number, name in enumerate(names):
        shop.put(
            service(f"10.96.1.{number}", external="203.0.113.1", name=name, created=f"{number % 7}"),
            slice_(f"10.0.1.{number}", name=name, of=name),
        )
    catalog = Catalog()
    catalog.take(shop.store.services, shop.store.endpoint_slices.of, [f"shop/{name}" for name in names], SITE)
    parts: dict[FragmentKey, Fragment | None] = {}
    while catalog.pending:
        part = catalog.compile(3)
        assert len(part) <= 3
        parts |= part
    shop.turn()
    assert parts == shop.fragments
    assert sorted(catalog.problems()) == sorted(shop.catalog.problems())


def test_the_chains_that_are_needed() -> None:
    shop = Shop()
    fields: dict[str, Any] = {"type": "LoadBalancer", "balanced": "203.0.113.9", "external_local": True}
    shop.put(
        service(affinity_seconds=30, **fields),
        slice_("10.0.0.1@here", "10.0.0.2", "10.0.0.3"),
        service("10.96.0.8", name="api"),
        slice_("10.0.0.1", name="x", of="api"),
        service("10.96.0.9", name="nobody"),
    )
    shop.turn()
    assert shop.catalog.need == Need(frozenset({1, 3}), frozenset({30}))
    shop.store.services.remove("shop/web")
    shop.turn()
    assert shop.catalog.need == Need(frozenset({1}), frozenset())


def test_udp_flows_are_stale_where_somebody_left() -> None:
    shop, dns = Shop(), "dns:udp:53"
    place = frontend("udp 10.96.0.7 53")
    shop.put(service(ports=dns), slice_("10.0.0.1", "10.0.0.2", ports=dns))
    shop.turn()
    both = set(backends("10.0.0.1 10.0.0.2", 53))
    assert shop.catalog.flows == {place: both}
    assert shop.catalog.stale_flows() == {place: both}
    assert shop.catalog.stale_flows() == {}
    shop.put(slice_("10.0.0.1", "10.0.0.2", "10.0.0.3", ports=dns))
    shop.turn()
    assert shop.catalog.stale_flows() == {}
    shop.put(slice_("10.0.0.1", "10.0.0.2 lingering", "10.0.0.3 dying", ports=dns))
    shop.turn()
    assert shop.catalog.stale_flows() == {place: both}


def test_udp_flows_are_stale_when_nobody_is_left_and_when_the_first_comes() -> None:
    shop, dns = Shop(), "dns:udp:53"
    place = frontend("udp 10.96.0.7 53")
    shop.put(service(ports=dns), slice_("10.0.0.1", ports=dns))
    shop.turn()
    shop.catalog.stale_flows()
    shop.put(slice_(ports=dns))
    shop.turn()
    assert shop.catalog.stale_flows() == {place: frozenset()}
    shop.put(service(ports=dns, uid="another"))
    shop.turn()
    assert shop.catalog.stale_flows() == {}
    shop.put(slice_("10.0.0.9", ports=dns))
    shop.turn()
    assert shop.catalog.stale_flows() == {place: set(backends("10.0.0.9", 53))}


def test_udp_flows_of_a_service_that_goes_are_stale() -> None:
    shop, dns = Shop(), "dns:udp:53:30053"
    shop.put(service(ports=dns, type="NodePort"), slice_("10.0.0.1", ports="dns:udp:53"))
    shop.turn()
    shop.catalog.stale_flows()
    shop.store.services.remove("shop/web")
    shop.turn()
    nobody: frozenset[Any] = frozenset()
    assert shop.catalog.stale_flows() == {
        frontend("udp 10.96.0.7 53"): nobody,
        frontend("udp node 30053"): nobody,
    }
    assert shop.catalog.flows == {}


def test_udp_flows_of_a_frontend_that_is_handed_over_are_those_of_its_new_service() -> None:
    shop, dns = Shop(), "dns:udp:53"
    shop.put(
        service(ports=dns, external="203.0.113.1", created=OLD),
        service("10.96.0.8", dns, external="203.0.113.1", name="api", created=NEW),
        slice_("10.0.0.1", ports=dns),
        slice_("10.0.0.2", ports=dns, name="x", of="api"),
    )
    shop.turn()
    place = frontend("udp 203.0.113.1 53")
    assert shop.catalog.flows[place] == set(backends("10.0.0.1", 53))
    shop.catalog.stale_flows()
    shop.store.services.remove("shop/web")
    shop.turn()
    assert shop.catalog.flows[place] == set(backends("10.0.0.2", 53))
    assert shop.catalog.stale_flows()[place] == set(backends("10.0.0.2", 53))


def test_health_checks_follow_the_endpoints_of_this_node() -> None:
    shop = Shop()
    checked = service(type="LoadBalancer", external_local=True, health_check_node_port=31000)
    shop.put(checked, slice_("10.0.0.1@here", "10.0.0.2"))
    shop.turn()
    assert shop.catalog.health_checks == {"shop/web": HealthCheck(31000, 1)}
    shop.put(slice_("10.0.0.2"))
    shop.turn()
    assert shop.catalog.health_checks == {"shop/web": HealthCheck(31000, 0)}
    shop.put(service(type="LoadBalancer", health_check_node_port=31000))
    shop.turn()
    assert shop.catalog.health_checks == {}


def test_the_view_of_a_service_says_who_has_its_frontends_and_who_is_local() -> None:
    shop = Shop()
    shop.put(
        service(external="203.0.113.1", name="zoo", created=OLD),
        service("10.96.0.8", external="203.0.113.1", name="ape", created=NEW),
        slice_("10.0.0.1@here", "10.0.0.2", of="ape"),
    )
    shop.turn()
    view = shop.catalog.view("shop/ape")
    assert view is not None
    assert view.service.name == "ape"
    assert [(row.frontend, row.kind, row.holder) for row in view.rows] == [
        (frontend("tcp 10.96.0.8 80"), Kind.CLUSTER_IP, ""),
        (frontend("tcp 203.0.113.1 80"), Kind.EXTERNAL_IP, "shop/zoo"),
    ]
    assert view.rows[0].balance.backends == backends("10.0.0.1 10.0.0.2")
    assert view.local == set(backends("10.0.0.1"))
    assert shop.catalog.view("shop/none") is None


def test_there_is_no_view_of_a_service_without_frontends() -> None:
    shop = Shop()
    shop.put(service("", ""))
    shop.turn()
    assert shop.catalog.view("shop/web") is None


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("tcp 203.0.113.1 80", "TCP 203.0.113.1:80"),
        ("sctp fd00::1 9", "SCTP [fd00::1]:9"),
        ("udp node 30053", "UDP node port 30053 (IPv4)"),
        ("udp node6 30053", "UDP node port 30053 (IPv6)"),
    ],
)
def test_frontends_as_people_write_them(written: str, words: str) -> None:
    assert shown(frontend(written)) == words
