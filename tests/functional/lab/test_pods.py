"""The lab's pods behave as a kubelet's do where Services can see it."""

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from lab.api.resources import Object
from lab.echo import Answer, ask
from lab.underlay import OUTSIDE
from tests.functional.lab_cluster import NAMESPACE, LabCluster

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabCluster]:
    directory = tmp_path_factory.mktemp("pods")
    with LabCluster(directory / "state", nodes=1, zones=("a",), routes="default") as lab:
        yield lab


def apply(lab: LabCluster, name: str, **spec: Any) -> None:
    pod: Object = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
    lab.call(lambda: lab.cluster.apply(pod))
    lab.run(lab.cluster.wait_ready(30))


def delete(lab: LabCluster, name: str, grace: int | None = None) -> None:
    storage = lab.cluster.storage
    pods = storage.catalogue.named("pods")
    lab.call(lambda: storage.delete(pods, NAMESPACE, name, grace=grace))


def answer(lab: LabCluster, net: int, address: str, port: int = 8080, protocol: str = "tcp") -> Answer:
    return lab.run(ask(net, ip_address(address), protocol, port=port, patience=1.0))


def drain(seconds: float) -> Object:
    return {"name": "c", "lifecycle": {"preStop": {"sleep": {"seconds": seconds}}}}


def test_a_deleted_pod_serves_while_its_hook_sleeps(lab: LabCluster) -> None:
    apply(lab, "slow", containers=[drain(3600)], terminationGracePeriodSeconds=3600)
    net = lab.node("node-1").namespaces.net
    (address, *_) = lab.addresses("slow")
    delete(lab, "slow")
    pod = lab.pods()["slow"]
    assert pod["metadata"]["deletionGracePeriodSeconds"] == 3600
    assert answer(lab, net, address).name == "slow"
    delete(lab, "slow", grace=0)
    lab.wait(lambda: answer(lab, net, address).name == "", "no answer after deletion by force", 5)


def test_the_grace_period_ends_the_hook(lab: LabCluster) -> None:
    apply(lab, "short", containers=[drain(3600)], terminationGracePeriodSeconds=1)
    delete(lab, "short")
    assert "short" in lab.pods()
    lab.wait(lambda: "short" not in lab.pods(), "the pod gone", 5)


def test_a_pod_on_the_nodes_network_serves_its_ports(lab: LabCluster) -> None:
    apply(lab, "host", hostNetwork=True, containers=[{"name": "c", "ports": [{"containerPort": 9999}]}])
    (node, *_) = lab.node("node-1").addresses
    assert lab.addresses("host")[0] == str(node)
    outside = lab.cluster.underlay.outside
    assert answer(lab, outside, str(node), 9999) == Answer("host", str(OUTSIDE[4]))
    assert answer(lab, outside, str(node)).name == "node-1"
    delete(lab, "host")
    lab.wait(lambda: "host" not in lab.pods(), "the pod gone", 5)
    assert answer(lab, outside, str(node), 9999).fault == "ECONNREFUSED"


def test_zone_and_routes_are_as_asked(lab: LabCluster) -> None:
    labels = lab.call(lab.cluster.node_objects)["node-1"]["metadata"]["labels"]
    assert labels["topology.kubernetes.io/zone"] == "a"
    assert "default via 172.31.1.1 dev eth0" in lab.sh("node-1", "ip route")


def test_the_router_sends_to_who_attracts(lab: LabCluster) -> None:
    lab.run(lab.cluster.attract("node-1"))
    lab.sh("node-1", "ip addr add 203.0.113.9/32 dev lo")
    found = answer(lab, lab.cluster.underlay.outside, "203.0.113.9", protocol="udp")
    assert found.fault == "ECONNREFUSED"
