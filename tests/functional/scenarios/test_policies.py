"""NetworkPolicies between real daemons' pods: what the table of scenarios can't say.

What a policy means is told by tests/scenarios/policies.py and policy_surroundings.py, story by story, and
carried out on the kernel by test_services.py beside this file. Here is the rest: protocols without ports,
neighbour discovery, the pod itself, pods that have ended, births, changes in a row, and daemons that are
away. Errors about the path that an isolated pod is told are in test_path_mtu.py. All in both families;
tests/scenarios/meanings.py says which sentence is shown where.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest

from lab.echo import ask, client_socket
from lab.errors import LabError
from tests.functional.lab_cluster import NAMESPACE, WEFTCTL, LabCluster
from tests.functional.nft.spaces import Inside
from tests.functional.policed_pods import delete_policies, pod, policy

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
    delete_policies(lab)
    tables = [partial(lab.sh, node, "nft list tables") for node in lab.cluster.nodes]
    lab.wait(lambda: not any("weft-policy" in listed() for listed in tables), "tables gone", 5)
    lab.wait(lambda: talks(lab, "client", "server"), "everything open again", 5)


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


def test_the_node_reaches_its_own_pods(lab: LabCluster) -> None:
    policy(lab, "deny", policyTypes=["Ingress", "Egress"])
    closed(lab, "client", "server")
    for address in lab.addresses("server"):
        lab.sh("node-1", f"ping -c1 -W2 {address}")


PROTOCOL = 253
"""For experiments (RFC 3692): neither side's kernel knows it, and it has no ports."""
FULL_RANGE = [{"protocol": each, "port": 1, "endPort": 65535} for each in ("TCP", "UDP", "SCTP")]


def pings(lab: LabCluster, source: str, destination: str) -> list[bool]:
    """Whether each address of a pod answers an echo request of another pod."""
    found = []
    for address in lab.addresses(destination):
        try:
            lab.pod_sh(source, f"ping -c1 -W0.5 {address}")
            found.append(True)
        except LabError:
            found.append(False)
    return found


def arrives(lab: LabCluster, source: str, destination: str) -> list[bool]:
    """Whether a packet of a protocol without ports comes to each address of a pod."""
    found = []
    sender, receiver = Inside(lab.sandbox(source).descriptor), Inside(lab.sandbox(destination).descriptor)
    for address in lab.addresses(destination):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with (
            sender.socket(family, socket.SOCK_RAW, PROTOCOL) as voice,
            receiver.socket(family, socket.SOCK_RAW, PROTOCOL) as ear,
        ):
            token = os.urandom(8)
            voice.sendto(token, (address, 0))
            try:
                found.append(ear.recv(512).endswith(token))
            except TimeoutError:
                found.append(False)
    return found


def test_ping_and_other_protocols_match_only_rules_without_ports(lab: LabCluster) -> None:
    through, stopped = [True, True], [False, False]
    assert pings(lab, "client", "server") == arrives(lab, "client", "server") == through
    policy(lab, "deny", policyTypes=["Ingress"])
    closed(lab, "client", "server")
    assert pings(lab, "client", "server") == arrives(lab, "client", "server") == stopped
    policy(lab, "ports", ingress=[{"ports": FULL_RANGE}])
    opened(lab, "client", "server")
    assert pings(lab, "client", "server") == arrives(lab, "client", "server") == stopped
    policy(lab, "all", ingress=[{}])
    lab.wait(lambda: pings(lab, "client", "server") == through, "a rule without ports lets it in", 10)
    # Tracked since before the policies, it was cut by them, and is let go on a moment after the rules.
    lab.wait(lambda: arrives(lab, "client", "server") == through, "it goes on", 5)


def test_a_closed_pod_discovers_its_gateway(lab: LabCluster) -> None:
    """Neighbour discovery is no connection: a pod asks its node even if it may not talk to it."""
    peers = [{"podSelector": {"matchLabels": {"name": "remote"}}}]
    policy(lab, "out", policyTypes=["Ingress", "Egress"], egress=[{"to": peers}])
    closed(lab, "server", "client")
    gateway = lab.pod_sh("server", "ip -6 route show default").split()[2]
    known = lab.pod_sh("server", f"ip -6 neigh show {gateway}").split()
    mac = known[known.index("lladdr") + 1]
    lab.pod_sh("server", f"ip -6 neigh del {gateway} dev eth0")
    try:
        opened(lab, "server", "remote")
        assert mac in lab.pod_sh("server", f"ip -6 neigh show {gateway}"), "it was discovered"
    finally:
        lab.pod_sh("server", f"ip -6 neigh replace {gateway} lladdr {mac} dev eth0 nud permanent")


def test_a_pod_reaches_itself_by_its_own_address(lab: LabCluster) -> None:
    policy(lab, "shut", policyTypes=["Ingress", "Egress"])
    closed(lab, "client", "server")
    assert talks(lab, "server", "server")
    assert talks(lab, "server", "server", "tcp")


def test_a_pod_that_has_ended_is_no_subject(lab: LabCluster) -> None:
    """Its sandbox is still there, so that one sees it."""
    resource = lab.cluster.storage.catalogue.named("pods")

    def phase(value: str) -> None:
        def change(item: dict[str, Any]) -> dict[str, Any]:
            return {**item, "status": {**item["status"], "phase": value}}

        update = partial(lab.cluster.storage.update, resource, NAMESPACE, "server", change)
        lab.call(lambda: update(subresource="status"))

    policy(lab, "deny", policyTypes=["Ingress"])
    closed(lab, "client", "server")
    try:
        phase("Succeeded")
        opened(lab, "client", "server")
        phase("Running")
        closed(lab, "client", "server")
        phase("Failed")
        opened(lab, "client", "server")
    finally:
        phase("Running")


def test_changes_that_come_while_others_are_applied_are_not_lost(lab: LabCluster) -> None:
    """Neither the last of many nor one that takes back what was not applied yet."""
    for number in range(50):
        policy(lab, "flip", policyTypes=["Ingress"], ingress=[{}] if number % 2 else [])
    opened(lab, "client", "server")
    for number in range(51):
        policy(lab, "flip", policyTypes=["Ingress"], ingress=[{}] if number % 2 else [])
    closed(lab, "client", "server")


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
    for _ in range(count):
        policy(lab, "deny", policyTypes=["Ingress"])
        closed(lab, "client", "server")
        former = killed(lab)
        policy(lab, "open", ingress=[{"from": [{"podSelector": {}}]}])
        back(lab, former)
        began = time.monotonic()
        while not talks(lab, "client", "server"):
            assert time.monotonic() - began < IN_FORCE_SECONDS
        delete_policies(lab, "open")


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


def test_a_pod_reaches_itself_by_its_own_service_whatever_policies_say(
    lab: LabCluster, service: list[str]
) -> None:
    policy(lab, "shut", policyTypes=["Ingress", "Egress"])
    closed(lab, "client", "server")
    closed(lab, "server", "client")
    assert calls(lab, "server", service) == ["server"] * 2
    assert calls(lab, "client", service) == ["", ""]


def test_a_denied_packet_is_told_explained_and_counted(lab: LabCluster) -> None:
    policy(lab, "deny", ingress=[{"from": [{"podSelector": {"matchLabels": {"name": "remote"}}}]}])
    closed(lab, "client", "server")
    opened(lab, "remote", "server")
    path = f"/proc/{lab.node('node-1').daemon.pid}/root/run/weft/admin.sock"
    command = [WEFTCTL, "--socket", path]
    with subprocess.Popen([*command, "monitor", "-o", "json"], stdout=subprocess.PIPE, text=True) as watching:
        lines: list[str] = []
        thread = threading.Thread(target=lambda: lines.extend(watching.stdout or ()))
        thread.start()

        def told() -> bool:
            silent(lab, "client", "server")
            return bool(lines)

        lab.wait(told, "the denial is told", 10)
        watching.send_signal(signal.SIGINT)
        assert watching.wait(5) == 0, "Ctrl-C ends it"
        thread.join()
    found = json.loads(lines[0])
    assert (found["direction"], found["pod"], found["peer"]) == (
        "ingress",
        f"{NAMESPACE}/server",
        f"{NAMESPACE}/client",
    )
    assert (found["protocol"], found["policies"]) == ("UDP", [f"{NAMESPACE}/deny"])

    for source, allowed in (("client", False), ("remote", True)):
        ends = [*(f"{NAMESPACE}/{name}" for name in (source, "server")), "80"]
        done = subprocess.run(
            [*command, "policy", "explain", *ends, "-o", "json"], capture_output=True, text=True, check=False
        )
        assert done.returncode == (0 if allowed else 1), done.stderr
        verdicts = json.loads(done.stdout)["verdicts"]
        assert len(verdicts) == 2
        for each in verdicts:
            assert each["allowed"] is allowed
            assert each["ends"][1]["kernel"] == "agrees"

    listed = json.loads(
        subprocess.run([*command, "policy", "list", "-o", "json"], capture_output=True, check=True).stdout
    )
    assert listed["policies"][0]["packets"] > 0
    assert listed["pods"][0]["deniedPackets"] > 0
