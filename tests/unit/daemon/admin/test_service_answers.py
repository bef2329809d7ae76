"""How Services look to weftctl."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.admin.service_answers import service as described
from daemon.compile.catalog import Catalog
from tests.unit.daemon.compile.shop import SITE, service, slice_

if TYPE_CHECKING:
    from daemon.cluster.model import EndpointSlice, Service
    from weft_rpc import admin_pb2


def shown(*services: Service, slices: tuple[EndpointSlice, ...] = ()) -> list[admin_pb2.Service]:
    catalog = Catalog()
    known = {each.key: each for each in services}
    catalog.update(known, lambda name: slices if name == services[0].key else (), known, SITE)
    views = [catalog.view(name) for name in known]
    return [described(view) for view in views if view is not None]


def test_frontends_endpoints_and_flags() -> None:
    web = service(
        "10.96.0.7 fd96::7",
        balanced="203.0.113.1",
        ranges="192.0.2.0/24 198.51.100.7/32",
        type="LoadBalancer",
    )
    (answer,) = shown(web, slices=(slice_("10.0.0.1@here", "10.0.0.2@there"),))
    assert (answer.name, answer.type) == ("shop/web", "LoadBalancer")
    rows = {(row.kind, row.family): row for row in answer.frontends}
    cluster = rows["ClusterIP", "IPv4"]
    assert (cluster.address, cluster.protocol, cluster.source) == ("10.96.0.7:80", "TCP", "strangers")
    assert [(each.address, each.local) for each in cluster.endpoints] == [
        ("10.0.0.1:8080", True),
        ("10.0.0.2:8080", False),
    ]
    balancer = rows["LoadBalancer", "IPv4"]
    assert balancer.source == "everybody"
    assert list(balancer.source_ranges) == ["192.0.2.0/24", "198.51.100.7"]
    six = rows["ClusterIP", "IPv6"]
    assert (six.address, six.absence, list(six.endpoints)) == ("[fd96::7]:80", "refuse", [])


def test_with_policy_local_it_is_told_who_serves_outsiders() -> None:
    web = service(ports="http:tcp:80:30080", type="NodePort", external_local=True)
    (answer,) = shown(web, slices=(slice_("10.0.0.1@here", "10.0.0.2@there"),))
    (row,) = [row for row in answer.frontends if row.kind == "NodePort" and row.family == "IPv4"]
    assert row.address == ":30080"
    assert [(each.address, each.outside) for each in row.endpoints] == [
        ("10.0.0.1:8080", True),
        ("10.0.0.2:8080", False),
    ]


def test_who_lost_a_frontend_says_to_whom() -> None:
    old = service(name="old", external="203.0.113.1", created="2026-01-01T00:00:00Z")
    new = service("10.96.0.8", name="new", external="203.0.113.1", created="2026-02-01T00:00:00Z")
    answers = {each.name: each for each in shown(old, new)}
    holders = {row.kind: row.holder for row in answers["shop/new"].frontends}
    assert holders == {"ClusterIP": "", "ExternalIP": "shop/old"}
