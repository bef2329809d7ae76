"""NetworkPolicies between real daemons' pods: who reaches whom, also while daemons are away."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest

from lab.echo import ask, client_socket
from tests.functional.lab_cluster import NAMESPACE, LabCluster

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

NODES = {"client": "node-1", "server": "node-1", "remote": "node-2"}
IN_FORCE_SECONDS = 1.0
"""Of the daemon's return, for what came while it was away."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabCluster]:
    with LabCluster(tmp_path_factory.mktemp("policies") / "state", nodes=2) as lab:
        lab.call(lambda: [lab.cluster.apply(pod(name, node)) for name, node in NODES.items()])
        lab.run(lab.cluster.wait_ready(30))
        yield lab


@pytest.fixture(autouse=True)
def tidy(lab: LabCluster) -> Iterator[None]:
    """Every scenario ends with kernels as desired, rules that can be listed, and no policy."""
    yield
    lab.wait(lambda: not lab.differences(), "kernels as desired", 10)
    for node in lab.cluster.nodes:
        assert "table ip weft" in lab.sh(node, "nft list ruleset")
    resource = lab.cluster.storage.catalogue.named("networkpolicies")
    names = [each["metadata"]["name"] for each in lab.call(lambda: lab.cluster.storage.list(resource))]

    def delete() -> None:
        for name in names:
            lab.cluster.storage.delete(resource, NAMESPACE, name)

    lab.call(delete)
    tables = [partial(lab.sh, node, "nft list tables") for node in lab.cluster.nodes]
    lab.wait(lambda: not any("weft-policy" in listed() for listed in tables), "tables gone", 5)
    lab.wait(lambda: talks(lab, "client", "server"), "everything open again", 5)


def pod(name: str, node: str, **labels: str) -> dict[str, Any]:
    metadata = {"name": name, "labels": {"name": name, **labels}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"nodeName": node}}


def policy(lab: LabCluster, name: str, **spec: Any) -> None:
    """Apply a policy that selects the server unless told otherwise."""
    spec = {"podSelector": {"matchLabels": {"name": "server"}}, **spec}
    item = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": spec,
    }
    lab.call(lambda: lab.cluster.apply(item))


def answers(lab: LabCluster, source: str, destination: str, kind: str = "udp") -> list[bool]:
    """Whether each address of a pod answers another pod."""
    net = lab.sandbox(source).descriptor
    found = []
    for one in lab.addresses(destination):
        try:
            found.append(lab.run(ask(net, ip_address(one), kind, patience=0.5)).name == destination)
        except OSError:
            found.append(False)
    return found


def talks(lab: LabCluster, source: str, destination: str, kind: str = "udp") -> bool:
    found = answers(lab, source, destination, kind)
    return len(found) == 2 and all(found)


def silent(lab: LabCluster, source: str, destination: str, kind: str = "udp") -> bool:
    found = answers(lab, source, destination, kind)
    return len(found) == 2 and not any(found)


def closed(lab: LabCluster, source: str, destination: str) -> None:
    """Wait until a policy has closed the way, and be sure that it stays so."""
    lab.wait(lambda: silent(lab, source, destination), f"{source} can't reach {destination}", 10)
    assert silent(lab, source, destination, "tcp")


def opened(lab: LabCluster, source: str, destination: str) -> None:
    lab.wait(lambda: talks(lab, source, destination), f"{source} reaches {destination}", 10)
    assert talks(lab, source, destination, "tcp")


def test_a_policy_without_rules_closes_the_pods_that_it_selects_and_no_others(lab: LabCluster) -> None:
    policy(lab, "deny", policyTypes=["Ingress"])
    closed(lab, "client", "server")
    closed(lab, "remote", "server")
    assert talks(lab, "client", "remote")
    assert talks(lab, "server", "client"), "replies pass, and egress is not isolated"


def test_peers_are_let_in_by_their_labels_wherever_they_are(lab: LabCluster) -> None:
    peers = [{"podSelector": {"matchLabels": {"name": "remote"}}}]
    policy(lab, "peers", ingress=[{"from": peers}])
    closed(lab, "client", "server")
    opened(lab, "remote", "server")


def test_egress_is_a_direction_of_its_own(lab: LabCluster) -> None:
    peers = [{"podSelector": {"matchLabels": {"name": "remote"}}}]
    policy(lab, "out", policyTypes=["Egress"], egress=[{"to": peers}])
    closed(lab, "server", "client")
    opened(lab, "server", "remote")
    assert talks(lab, "client", "server")


def test_ports_and_blocks(lab: LabCluster) -> None:
    policy(lab, "ports", ingress=[{"ports": [{"port": 7, "protocol": "TCP"}]}])
    closed(lab, "client", "server")
    whole = [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}]
    policy(lab, "blocks", ingress=[{"from": whole}])
    opened(lab, "client", "server")


def test_the_node_reaches_its_own_pods(lab: LabCluster) -> None:
    policy(lab, "deny", policyTypes=["Ingress", "Egress"])
    closed(lab, "client", "server")
    for address in lab.addresses("server"):
        lab.sh("node-1", f"ping -c1 -W2 {address}")


def test_a_relabelled_peer_is_let_in_and_shut_out_at_once(lab: LabCluster) -> None:
    policy(lab, "friends", ingress=[{"from": [{"podSelector": {"matchLabels": {"friend": "yes"}}}]}])
    closed(lab, "client", "server")
    lab.call(lambda: lab.cluster.apply(pod("client", "node-1", friend="yes")))
    opened(lab, "client", "server")
    lab.call(lambda: lab.cluster.apply(pod("client", "node-1", friend="no")))
    closed(lab, "client", "server")


def arrived(lab: LabCluster, name: str) -> int:
    """How many UDP packets came to a pod since its namespace was made, of either family."""
    text = lab.pod_sh(name, "cat /proc/net/snmp /proc/net/snmp6")
    rows = [line.split() for line in text.splitlines()]
    (heads, values) = [row for row in rows if row[0] == "Udp:"]
    found = {head: int(value) for head, value in zip(heads[1:], values[1:], strict=True)}
    found |= {row[0]: int(row[1]) for row in rows if row[0].startswith("Udp6")}
    names = ("InDatagrams", "NoPorts", "Udp6InDatagrams", "Udp6NoPorts")
    return sum(found[each] for each in names)


@contextlib.contextmanager
def flood(lab: LabCluster, source: str, targets: Iterable[str]) -> Iterator[None]:
    """Send from a pod to all targets, over and over; nothing listens there, and nobody answers.

    Bounded: the whole round at most every 10 ms.
    """
    net = lab.sandbox(source).descriptor
    places = [(ip_address(each).version, (each, 9)) for each in targets]
    stop = threading.Event()

    def send() -> None:
        with client_socket(net, 4, "udp") as four, client_socket(net, 6, "udp") as six:
            while not stop.wait(0.01):
                for version, place in places:
                    with contextlib.suppress(OSError):
                        (four if version == 4 else six).sendto(b"?", place)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def killed(lab: LabCluster) -> int:
    """Kill node-1's daemon, which is started again; returns its process id."""
    former = lab.node("node-1").daemon.pid
    os.kill(former, signal.SIGKILL)
    return former


def back(lab: LabCluster, former: int) -> None:
    """Wait until another daemon serves the runtime."""
    lab.wait(lambda: lab.node("node-1").daemon.pid not in {0, former}, "another daemon", 20)
    lab.wait(lambda: lab.weftctl("node-1", "status").get("ready"), "it is ready", 20)


RESTARTS = [1, pytest.param(20, marks=[pytest.mark.soak, pytest.mark.timeout(600)])]


@pytest.mark.parametrize("count", RESTARTS)
def test_policies_hold_while_the_daemon_is_away(lab: LabCluster, count: int) -> None:
    policy(lab, "deny", policyTypes=["Ingress"])
    closed(lab, "client", "server")
    before = arrived(lab, "server")
    with flood(lab, "client", lab.addresses("server")):
        for _ in range(count):
            os.kill(lab.node("node-1").daemon.pid, signal.SIGSTOP)
            try:
                assert silent(lab, "client", "server")
            finally:
                os.kill(lab.node("node-1").daemon.pid, signal.SIGCONT)
            back(lab, killed(lab))
            lab.wait(lambda: not lab.differences(), "its work done", 20)
            assert silent(lab, "client", "server")
            assert arrived(lab, "server") == before, "the restart opened a gap"


@pytest.mark.parametrize("count", RESTARTS)
def test_a_policy_that_came_while_the_daemon_was_away_is_in_force_at_its_return(
    lab: LabCluster, count: int
) -> None:
    resource = lab.cluster.storage.catalogue.named("networkpolicies")
    for _ in range(count):
        policy(lab, "deny", policyTypes=["Ingress"])
        closed(lab, "client", "server")
        former = killed(lab)
        policy(lab, "open", ingress=[{"from": [{"podSelector": {}}]}])
        back(lab, former)
        began = time.monotonic()
        while not talks(lab, "client", "server"):
            assert time.monotonic() - began < IN_FORCE_SECONDS
        lab.call(lambda: lab.cluster.storage.delete(resource, NAMESPACE, "open"))


def test_a_restart_shuts_out_nobody_who_is_let_in(lab: LabCluster) -> None:
    """Pods of other nodes have to be listed anew; until they are, nothing may be taken out of the sets."""
    policy(lab, "peers", ingress=[{"from": [{"podSelector": {"matchLabels": {"name": "remote"}}}]}])
    closed(lab, "client", "server")
    opened(lab, "remote", "server")
    former = lab.node("node-1").daemon.pid
    os.kill(former, signal.SIGKILL)
    found: list[list[bool]] = []

    def again() -> bool:
        found.append(answers(lab, "remote", "server", "tcp"))
        return lab.node("node-1").daemon.pid not in {0, former} and not lab.differences()

    lab.wait(again, "another daemon, its work done", 30)
    for _ in range(10):
        again()
    assert found == [[True, True]] * len(found)
    assert silent(lab, "client", "server")


def births(lab: LabCluster, names: list[str]) -> None:
    """Pods are born under default-deny while another floods every address that they may get."""
    taken = lab.addresses("client")
    four, six = (next(each for each in taken if (":" in each) is wide) for wide in (False, True))
    low = [f"{four.rpartition('.')[0]}.{number}" for number in range(1, 255)]
    low += [f"{six.rpartition(':')[0]}:{number:x}" for number in range(1, 255)]
    with flood(lab, "client", low):
        lab.call(lambda: [lab.cluster.apply(pod(name, "node-1")) for name in names])
        lab.run(lab.cluster.wait_ready(60))
        addresses = {address for name in names for address in lab.addresses(name)}
        assert addresses <= set(low), "they were flooded"
        assert {name: arrived(lab, name) for name in names} == dict.fromkeys(names, 0)
        policy(lab, "all", podSelector={}, policyTypes=["Ingress"], ingress=[{}])
        lab.wait(lambda: all(arrived(lab, name) for name in names), "the flood is a flood", 20)
        policy(lab, "all", podSelector={}, policyTypes=["Ingress"], ingress=[])
    lab.delete_pods(*names)


def test_pods_are_closed_from_their_first_packet_on(lab: LabCluster) -> None:
    policy(lab, "all", podSelector={}, policyTypes=["Ingress"])
    closed(lab, "client", "server")
    births(lab, [f"newborn-{number}" for number in range(20)])


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_two_hundred_pods_are_closed_from_their_first_packet_on(lab: LabCluster) -> None:
    policy(lab, "all", podSelector={}, policyTypes=["Ingress"])
    closed(lab, "client", "server")
    for batch in range(10):
        births(lab, [f"newborn-{batch}-{number}" for number in range(20)])


def test_a_named_port_is_what_the_pod_calls_so(lab: LabCluster) -> None:
    item = pod("named", "node-1")
    item["spec"]["containers"] = [
        {"name": "c", "ports": [{"name": "echo", "containerPort": 8080, "protocol": "TCP"}]}
    ]
    lab.call(lambda: lab.cluster.apply(item))
    lab.run(lab.cluster.wait_ready(30))
    selected = {"matchLabels": {"name": "named"}}
    policy(lab, "named", podSelector=selected, ingress=[{"ports": [{"port": "echo", "protocol": "TCP"}]}])
    lab.wait(lambda: silent(lab, "client", "named"), "UDP is closed", 10)
    assert talks(lab, "client", "named", "tcp")
    policy(lab, "named", podSelector=selected, ingress=[{"ports": [{"port": "other"}]}])
    lab.wait(lambda: silent(lab, "client", "named", "tcp"), "nothing is called so", 10)
    lab.delete_pods("named")


def test_namespaces_are_known_by_their_labels(lab: LabCluster) -> None:
    def label(value: str) -> None:
        item = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": {"team": value}},
        }
        lab.call(lambda: lab.cluster.apply(item))

    label("a")
    policy(lab, "team", ingress=[{"from": [{"namespaceSelector": {"matchLabels": {"team": "b"}}}]}])
    closed(lab, "client", "server")
    label("b")
    opened(lab, "client", "server")
    opened(lab, "remote", "server")
    label("a")
    closed(lab, "remote", "server")


@pytest.fixture
def service(lab: LabCluster) -> Iterator[list[str]]:
    """The cluster IPs of a Service in front of the server."""
    ports = [
        {"name": kind, "port": 80, "targetPort": 8080, "protocol": kind.upper()} for kind in ("tcp", "udp")
    ]
    spec = {"selector": {"name": "server"}, "ports": ports, "ipFamilyPolicy": "RequireDualStack"}
    item = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "front"}, "spec": spec}
    lab.call(lambda: lab.cluster.apply(item))
    resource = lab.cluster.storage.catalogue.named("services")
    found = lab.call(lambda: lab.cluster.storage.get(resource, NAMESPACE, "front"))["spec"]["clusterIPs"]
    lab.wait(lambda: calls(lab, "client", found) == ["server"] * 2, "the Service works", 20)
    yield found
    lab.call(lambda: lab.cluster.storage.delete(resource, NAMESPACE, "front"))


def calls(lab: LabCluster, source: str, addresses: list[str], kind: str = "tcp") -> list[str]:
    """Who answers at port 80 of some addresses; "" where nobody does."""
    net = lab.sandbox(source).descriptor
    return [lab.run(ask(net, ip_address(each), kind, port=80, patience=0.7)).name for each in addresses]


def test_a_policy_sees_what_is_behind_a_service(lab: LabCluster, service: list[str]) -> None:
    peers = [{"podSelector": {"matchLabels": {"name": "remote"}}}]
    policy(lab, "peers", ingress=[{"from": peers, "ports": [{"port": 8080}]}])
    closed_to = lambda: calls(lab, "client", service) == ["", ""]  # noqa: E731
    lab.wait(closed_to, "the client can't reach it by the Service either", 10)
    lab.wait(lambda: calls(lab, "remote", service) == ["server"] * 2, "the peer can", 10)


def test_a_pod_reaches_itself_by_its_own_service_whatever_policies_say(
    lab: LabCluster, service: list[str]
) -> None:
    policy(lab, "shut", policyTypes=["Ingress", "Egress"])
    closed(lab, "client", "server")
    closed(lab, "server", "client")
    assert calls(lab, "server", service) == ["server"] * 2
    assert calls(lab, "client", service) == ["", ""]


def test_the_last_policy_of_several_opens(lab: LabCluster) -> None:
    for name in ("one", "two"):
        policy(lab, name, policyTypes=["Ingress"])
    closed(lab, "client", "server")
    resource = lab.cluster.storage.catalogue.named("networkpolicies")
    lab.call(lambda: lab.cluster.storage.delete(resource, NAMESPACE, "one"))
    assert silent(lab, "client", "server")
    lab.call(lambda: lab.cluster.storage.delete(resource, NAMESPACE, "two"))
    opened(lab, "client", "server")
