from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from lab import service_controllers
from lab.api.patches import strategic
from lab.api.storage import Storage
from lab.endpoint_slices import SERVICE_NAME

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lab.api.resources import Object

ROUNDS = 20
"""Turns of the event loop after which the controllers have long settled: they never wait for time."""


class World:
    """A storage with running controllers."""

    def __init__(self) -> None:
        self.storage = Storage()
        self.create("ServiceCIDR", "k", {"spec": {"cidrs": ["10.96.0.0/16", "fd96::/112"]}}, space="")
        for node, zone in (("node-1", "a"), ("node-2", "b")):
            labels = {"topology.kubernetes.io/zone": zone}
            self.create("Node", node, {}, space="", labels=labels)

    def create(self, kind: str, name: str, body: Object, space: str = "d", **metadata: Any) -> Object:
        item = {"metadata": {"name": name, **metadata}, **body}
        return self.storage.create(self.storage.catalogue.named(kind), space, item)

    def patch(self, kind: str, name: str, patch: Object, space: str = "d", subresource: str = "") -> None:
        self.storage.update(
            self.storage.catalogue.named(kind),
            space,
            name,
            lambda old: strategic(old, patch),
            subresource=subresource,
        )

    def delete(self, kind: str, name: str, grace: int | None = None) -> None:
        self.storage.delete(self.storage.catalogue.named(kind), "d", name, grace=grace)

    def pod(self, name: str, ip: str, node: str = "node-1", app: str = "web") -> None:
        body = {
            "spec": {"nodeName": node},
            "status": {"podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": "True"}]},
        }
        self.create("Pod", name, body, labels={"app": app})

    def service(self, name: str = "web", **spec: Any) -> None:
        usual = {"selector": {"app": "web"}, "ports": [{"port": 80}]}
        self.create("Service", name, {"spec": {**usual, **spec}})

    def slices(self) -> list[Object]:
        return self.storage.list(self.storage.catalogue.named("EndpointSlice"))

    async def endpoints(self) -> dict[str, Object]:
        """By service and address."""
        await settle()
        return {
            f"{item['metadata']['labels'][SERVICE_NAME]} {endpoint['addresses'][0]}": endpoint
            for item in self.slices()
            for endpoint in item["endpoints"]
        }

    async def ingress(self, name: str = "web") -> list[str]:
        await settle()
        item = self.storage.get(self.storage.catalogue.named("Service"), "d", name)
        entries = item.get("status", {}).get("loadBalancer", {}).get("ingress", [])
        return [entry["ip"] for entry in entries]


async def settle() -> None:
    for _ in range(ROUNDS):
        await asyncio.sleep(0)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    task = asyncio.create_task(service_controllers.run(world.storage))
    yield world
    if task.done():
        task.result()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_endpoints_follow_pods(world: World) -> None:
    world.service()
    world.pod("a", "10.0.0.1")
    world.pod("b", "10.0.0.2", app="other")
    assert [*await world.endpoints()] == ["web 10.0.0.1"]
    world.patch("Pod", "b", {"metadata": {"labels": {"app": "web"}}})
    assert [*await world.endpoints()] == ["web 10.0.0.1", "web 10.0.0.2"]
    unready = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}
    world.patch("Pod", "a", unready, subresource="status")
    world.delete("Pod", "b")
    found = await world.endpoints()
    assert found["web 10.0.0.1"]["conditions"]["ready"] is False
    assert found["web 10.0.0.2"]["conditions"] == {"ready": False, "serving": True, "terminating": True}
    world.delete("Pod", "b", grace=0)
    world.patch("Pod", "a", {"metadata": {"labels": {"app": "other"}}})
    assert await world.endpoints() == {}


async def test_endpoints_follow_selector_and_families(world: World) -> None:
    world.service()
    world.pod("a", "10.0.0.1")
    world.pod("b", "fd00::1", app="other")
    assert [*await world.endpoints()] == ["web 10.0.0.1"]
    world.patch("Service", "web", {"spec": {"selector": {"app": "other"}}})
    assert await world.endpoints() == {}
    world.patch("Service", "web", {"spec": {"ipFamilyPolicy": "PreferDualStack"}})
    assert [*await world.endpoints()] == ["web fd00::1"]
    assert len(world.slices()) == 2


async def test_endpoints_follow_zones(world: World) -> None:
    world.service(trafficDistribution="PreferSameZone")
    world.pod("a", "10.0.0.1")
    assert (await world.endpoints())["web 10.0.0.1"]["hints"] == {"forZones": [{"name": "a"}]}
    world.patch("Node", "node-1", {"metadata": {"labels": {"topology.kubernetes.io/zone": "c"}}}, space="")
    assert (await world.endpoints())["web 10.0.0.1"]["hints"] == {"forZones": [{"name": "c"}]}


async def test_slices_go_with_the_service_and_are_repaired(world: World) -> None:
    world.service()
    world.pod("a", "10.0.0.1")
    await settle()
    (item,) = world.slices()
    world.delete("EndpointSlice", item["metadata"]["name"])
    assert [*await world.endpoints()] == ["web 10.0.0.1"]
    world.patch("EndpointSlice", item["metadata"]["name"], {"endpoints": []})
    assert [*await world.endpoints()] == ["web 10.0.0.1"]
    world.delete("Service", "web")
    await settle()
    assert world.slices() == []


async def test_other_peoples_slices_are_left_alone(world: World) -> None:
    world.service(selector=None)
    own = {"addressType": "IPv4", "endpoints": [{"addresses": ["10.9.9.9"]}], "ports": []}
    world.create("EndpointSlice", "mine", own, labels={SERVICE_NAME: "web"})
    assert [*await world.endpoints()] == ["web 10.9.9.9"]
    world.delete("Service", "web")
    assert [*await world.endpoints()] == ["web 10.9.9.9"]


async def test_nothing_is_missed_when_the_history_is_lost(world: World) -> None:
    world.service()
    await settle()
    world.pod("a", "10.0.0.1")
    world.service("balanced", type="LoadBalancer")
    world.storage.forget()
    assert "web 10.0.0.1" in await world.endpoints()
    assert await world.ingress("balanced") == ["198.51.100.1"]


async def test_load_balancers_get_addresses_of_their_families(world: World) -> None:
    world.service(type="LoadBalancer", ipFamilyPolicy="PreferDualStack")
    world.service("other", type="LoadBalancer", loadBalancerIP="198.51.100.77")
    world.service("third", type="LoadBalancer")
    assert await world.ingress() == ["198.51.100.1", "2001:db8:1b::1"]
    assert await world.ingress("other") == ["198.51.100.77"]
    assert await world.ingress("third") == ["198.51.100.2"]
    world.patch("Service", "web", {"spec": {"type": "ClusterIP"}})
    assert await world.ingress() == []
    world.patch("Service", "web", {"spec": {"type": "LoadBalancer", "ipFamilyPolicy": "SingleStack"}})
    assert await world.ingress() == ["198.51.100.1"]


async def test_a_load_balancer_class_leaves_the_status_to_others(world: World) -> None:
    world.service(type="LoadBalancer", loadBalancerClass="example.org/mine")
    assert await world.ingress() == []
    patch = {"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.5"}]}}}
    world.patch("Service", "web", patch, subresource="status")
    assert await world.ingress() == ["203.0.113.5"]
