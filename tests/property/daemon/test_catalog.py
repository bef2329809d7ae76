"""What is compiled depends on what the cluster is, never on how it got there."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from daemon.cluster.model import Endpoint, EndpointPort, EndpointSlice, Prefix, Service, ServicePort
from daemon.cluster.store import SERVICE, Store
from daemon.compile.catalog import Catalog
from daemon.compile.endpoints import Site
from datapath.nft.frontends import ENDPOINTS, NODE_PORT_PREFIX, SERVICES

if TYPE_CHECKING:
    from datapath.desired import Fragment, FragmentKey
    from datapath.nft.frontends import Backend, Frontend

NAMES = st.sampled_from(["a", "b", "c"])
PORTS = st.sampled_from([("http", 6), ("dns", 17)])
ADDRESSES = [bytes((10, 96, 0, number)) for number in range(1, 4)]
SITES = st.builds(
    Site,
    st.sampled_from(["here", "there"]),
    st.sampled_from(["", "west", "east"]),
    st.sampled_from([(), (bytes((192, 168, 7, 1)),)]),
)


def some(values: st.SearchStrategy[object], most: int = 2) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(values, max_size=most, unique=True).map(tuple)


SERVICE_PORTS = st.builds(
    lambda port, number, node_port: ServicePort(port[0], port[1], number, node_port),
    PORTS,
    st.sampled_from([53, 80]),
    st.sampled_from([0, 30053]),
)
ALL_SERVICES = st.builds(
    Service,
    namespace=st.just("shop"),
    name=NAMES,
    created=st.sampled_from(["", "1", "2"]),
    type=st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]),
    cluster_ips=some(st.sampled_from(ADDRESSES), 1),
    external_ips=some(st.sampled_from(ADDRESSES)),
    load_balancer_ips=some(st.sampled_from(ADDRESSES)),
    ports=some(SERVICE_PORTS),
    external_local=st.booleans(),
    internal_local=st.booleans(),
    affinity_seconds=st.sampled_from([0, 30]),
    source_ranges=some(st.sampled_from([Prefix(bytes((192, 168, 0, 0)), 16), Prefix(bytes(4), 0)])),
    health_check_node_port=st.sampled_from([0, 31000]),
    faults=some(st.just("a fault")),
)
ENDPOINTS_OF_SLICES = st.builds(
    Endpoint,
    st.integers(1, 4).map(lambda number: bytes((10, 244, 0, number))),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["here", "there"]),
    some(st.sampled_from(["west", "east"])),
    some(st.sampled_from(["here", "there"])),
)
ALL_SLICES = st.builds(
    EndpointSlice,
    namespace=st.just("shop"),
    name=st.sampled_from(["s1", "s2", "s3"]),
    service=NAMES,
    family=st.sampled_from([4, 4, 4, 6]),
    endpoints=some(ENDPOINTS_OF_SLICES, 3),
    ports=some(
        st.builds(
            lambda port, number: EndpointPort(port[0], port[1], number), PORTS, st.sampled_from([53, 80])
        )
    ),
)


class Cluster(RuleBasedStateMachine):
    """A cluster that changes, a catalog that follows it when it finds the time."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.subscription = self.store.subscribe(SERVICE)
        self.catalog = Catalog()
        self.site = Site("here")
        self.fragments: dict[FragmentKey, Fragment] = {}
        self.answers: dict[Frontend, frozenset[Backend]] = {}

    @initialize(
        site=SITES, services=st.lists(ALL_SERVICES, max_size=3), slices=st.lists(ALL_SLICES, max_size=3)
    )
    def begin(self, site: Site, services: list[Service], slices: list[EndpointSlice]) -> None:
        self.site = site
        for service in services:
            self.put_service(service)
        for each in slices:
            self.put_slice(each)

    @rule(service=ALL_SERVICES)
    def put_service(self, service: Service) -> None:
        self.store.services.put(service.key, service)

    @rule(name=NAMES)
    def remove_service(self, name: str) -> None:
        self.store.services.remove(f"shop/{name}")

    @rule(name=NAMES, created=st.sampled_from(["", "1", "2"]))
    def create_again(self, name: str, created: str) -> None:
        service = self.store.services.get(f"shop/{name}")
        if service is not None:
            self.put_service(dataclasses.replace(service, created=created))

    @rule(each=ALL_SLICES)
    def put_slice(self, each: EndpointSlice) -> None:
        self.store.endpoint_slices.put(f"shop/{each.name}", each)

    @rule(name=st.sampled_from(["s1", "s2", "s3"]))
    def remove_slice(self, name: str) -> None:
        self.store.endpoint_slices.remove(f"shop/{name}")

    @rule(site=SITES)
    def change_site(self, site: Site) -> None:
        self.site = site

    @rule(limit=st.integers(1, 3))
    def compile_some(self, limit: int) -> None:
        self._take(self.catalog)
        self._apply(self.catalog.compile(limit))

    @rule()
    def compile_all(self) -> None:
        self._take(self.catalog)
        self._apply(self.catalog.compile())
        anew = Catalog()
        anew.take(self.store.services, self.store.endpoint_slices.of, self.store.services, self.site)
        assert self.fragments == {key: each for key, each in anew.compile().items() if each is not None}
        assert self.catalog.need == anew.need
        assert self.catalog.flows == anew.flows
        assert self.catalog.health_checks == anew.health_checks
        assert sorted(self.catalog.problems()) == sorted(anew.problems())
        assert set(self.catalog) == set(anew)
        self._no_element_twice()
        self._clean_flows()

    @invariant()
    def what_is_told_to_be_pending_is(self) -> None:
        if not self.catalog.pending:
            assert self.catalog.compile() == {}

    def _take(self, catalog: Catalog) -> None:
        names = [key.name for key in self.subscription.take()]
        catalog.take(self.store.services, self.store.endpoint_slices.of, names, self.site)

    def _apply(self, changes: dict[FragmentKey, Fragment | None]) -> None:
        for key, fragment in changes.items():
            if fragment is None:
                self.fragments.pop(key, None)
            else:
                self.fragments[key] = fragment

    def _no_element_twice(self) -> None:
        names = {prefix + name for prefix in ("", NODE_PORT_PREFIX) for name in (SERVICES, ENDPOINTS)}
        keys = [
            (elements.key, key)
            for fragment in self.fragments.values()
            for elements in fragment.elements
            if elements.name in names
            for key in elements.elements
        ]
        assert len(keys) == len(set(keys))

    def _clean_flows(self) -> None:
        """Whoever answered once and may no more is told, as is every frontend that was not there."""
        told = self.catalog.stale_flows()
        for frontend, before in self.answers.items():
            now = self.catalog.flows.get(frontend)
            if now is None or before - now:
                assert told[frontend] == (now or frozenset())
        for frontend in self.catalog.flows.keys() - self.answers.keys():
            assert told[frontend] == self.catalog.flows[frontend]
        self.answers = dict(self.catalog.flows)


TestCluster = Cluster.TestCase
TestCluster.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
