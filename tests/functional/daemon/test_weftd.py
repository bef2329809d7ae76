"""The process `weftd` in namespaces of its own: start and stop, exit codes, outages, ports, memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from datapath.netns import entered
from lab.api.server import ApiServer
from lab.api.storage import Storage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.root

WEFTD = str(Path(sys.executable).with_name("weftd"))
SETUP = """
mount --make-rprivate /
mount -t tmpfs weft-test /run
mount -t tmpfs weft-test /etc/cni
mkdir /run/etc
ip link set lo up
ip link add under0 type veth peer name under1
ip addr add 192.168.0.3/24 dev under0
ip link set under0 up
ip link set under1 up
echo ready
exec sleep 600
"""


class Machine:
    """A network and mount namespace with an underlay, an API server and room for one daemon."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            pytest.skip("network namespaces need root")
        os.makedirs("/etc/cni", exist_ok=True)
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-ec", SETUP], stdout=subprocess.PIPE, text=True
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"
        self.root = f"/proc/{self._holder.pid}/root"
        self.net = os.open(f"/proc/{self._holder.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.storage = Storage()
        self.api = ApiServer(self.storage)
        self.daemons: list[subprocess.Popen[str]] = []

    async def close(self) -> None:
        for daemon in self.daemons:
            if daemon.poll() is None:
                daemon.kill()
            daemon.communicate()
        await self.api.stop()
        self._holder.kill()
        self._holder.communicate()
        os.close(self.net)

    async def start_api(self) -> None:
        with entered(self.net):
            listener = socket.create_server(("127.0.0.1", 8080), reuse_port=True)
        await self.api.start(listener)

    def put_node(self, name: str, number: int, **spec: Any) -> None:
        nodes = self.storage.catalogue.named("nodes")
        address = {"type": "InternalIP", "address": f"192.168.0.{number}"}
        item = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name},
            "spec": spec or {"podCIDR": f"10.244.{number}.0/24", "podCIDRs": [f"10.244.{number}.0/24"]},
            "status": {"addresses": [address], "capacity": {"pods": "110"}},
        }
        if any(each["metadata"]["name"] == name for each in self.storage.list(nodes)):
            self.storage.delete(nodes, "", name)
        self.storage.create(nodes, "", item)

    def spawn(self, **config: Any) -> subprocess.Popen[str]:
        settings = {"apiServer": "http://127.0.0.1:8080", "nodeName": "node-3", **config}
        with open(f"{self.root}/run/etc/weftd.yaml", "w", encoding="utf-8") as file:
            yaml.safe_dump(settings, file)
        command = [
            "nsenter",
            f"--target={self._holder.pid}",
            "--net",
            "--mount",
            WEFTD,
            "--config",
            "/run/etc/weftd.yaml",
        ]
        self.daemons.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return self.daemons[-1]

    def http(self, port: int, path: str) -> tuple[int, str]:
        with entered(self.net):
            connection = socket.socket()
        with connection:
            connection.settimeout(5)
            try:
                connection.connect(("127.0.0.1", port))
            except ConnectionRefusedError:
                return 0, ""
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        head, _, body = answer.partition("\r\n\r\n")
        return int(head.split()[1]), body

    def ready(self) -> bool:
        return self.http(10256, "/readyz")[0] == 200

    @property
    def has_conflist(self) -> bool:
        return os.path.exists(f"{self.root}/etc/cni/net.d/05-weft.conflist")

    def sh(self, command: str) -> str:
        line = ["nsenter", f"--target={self._holder.pid}", "--net", "--mount", "sh", "-c", command]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    made = Machine()
    made.put_node("node-3", 3)
    made.put_node("node-4", 4)
    try:
        await made.start_api()
        yield made
    finally:
        await made.close()


async def until(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - seen from outside only
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"after {seconds} s still not: {what}")


async def end(daemon: subprocess.Popen[str], seconds: float = 10) -> tuple[int, list[dict[str, Any]]]:
    """Wait for a daemon's end; returns its exit code and log."""
    _, text = await asyncio.to_thread(daemon.communicate, timeout=seconds)
    return daemon.returncode, [json.loads(line) for line in text.splitlines() if line.startswith("{")]


async def test_it_serves_and_stops_leaving_kernel_and_conflist(machine: Machine) -> None:
    daemon = machine.spawn()
    await until(machine.ready, "ready")
    assert machine.has_conflist
    assert machine.http(10256, "/livez")[0] == 200
    status, body = machine.http(9465, "/metrics")
    assert status == 200
    assert "weft_ready 1.0" in body
    assert 'weft_objects{kind="node"} 2.0' in body
    routes = machine.sh("ip route show proto 119")
    assert "10.244.4.0/24" in routes
    nodes = machine.storage.catalogue.named("nodes")
    await until(
        lambda: machine.storage.get(nodes, "", "node-3")["status"].get("conditions"),
        "a condition of the Node",
    )
    (condition,) = machine.storage.get(nodes, "", "node-3")["status"]["conditions"]
    assert (condition["type"], condition["status"]) == ("NetworkUnavailable", "False")
    daemon.send_signal(signal.SIGTERM)
    code, log = await end(daemon, 5)
    assert code == 0
    assert not [entry for entry in log if entry["level"] in {"warning", "error"}], log
    assert log[-1]["event"] == "stopped; pods keep their network"
    assert machine.has_conflist
    assert machine.sh("ip route show proto 119") == routes
    assert "weft" in machine.sh("nft list tables")


async def test_a_second_daemon_says_so_and_leaves_the_first_alone(machine: Machine) -> None:
    first = machine.spawn()
    await until(machine.ready, "ready")
    code, log = await end(machine.spawn())
    assert code == 3
    assert "another weftd (process" in log[-1]["reason"]
    assert machine.ready()
    assert first.poll() is None
    assert os.path.exists(f"{machine.root}/run/weft/cni.sock")


async def test_a_killed_daemon_is_followed_by_one_that_starts_at_once(machine: Machine) -> None:
    first = machine.spawn()
    await until(machine.ready, "ready")
    first.kill()
    await end(first)
    second = machine.spawn()
    await until(machine.ready, "ready again")
    second.send_signal(signal.SIGINT)
    code, log = await end(second, 5)
    assert code == 0
    assert not [entry for entry in log if entry["level"] in {"warning", "error"}], log


async def test_killed_at_any_moment_of_its_start_it_starts_again(machine: Machine) -> None:
    for delay in (0.05, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7):
        daemon = machine.spawn()
        await asyncio.sleep(delay)
        daemon.kill()
        await end(daemon)
    daemon = machine.spawn()
    await until(machine.ready, "ready")
    assert machine.sh("ip route show proto 119").count("10.244.4.0/24") == 1
    daemon.send_signal(signal.SIGTERM)
    code, log = await end(daemon, 5)
    assert code == 0
    assert not [entry for entry in log if entry["level"] == "error"], log


async def test_a_wrong_configuration_is_told_in_full_and_ends_it(machine: Machine) -> None:
    code, log = await end(machine.spawn(vni=0, colour="blue"))
    assert code == 2
    faults = " ".join(entry.get("fault", "") for entry in log)
    assert "vni: 0 is not allowed; allowed: 1 to 16777215" in faults
    assert "unknown key 'colour'" in faults
    (event,) = machine.storage.list(machine.storage.catalogue.named("events"))
    assert (event["reason"], event["involvedObject"]["name"]) == ("ConfigurationWrong", "node-3")
    assert "vni: 0 is not allowed" in event["message"]
    assert not machine.has_conflist


async def test_without_the_api_server_it_waits_and_promises_nothing(machine: Machine) -> None:
    await machine.api.stop()
    machine.spawn()
    await until(lambda: machine.http(10256, "/livez")[0] == 200, "alive")
    await asyncio.sleep(1)
    status, body = machine.http(10256, "/readyz")
    assert status == 503
    assert "[-] cluster state complete" in body
    assert not machine.has_conflist
    assert not os.path.exists(f"{machine.root}/run/weft/cni.sock")
    await machine.start_api()
    await until(machine.ready, "ready")
    assert machine.has_conflist


async def test_it_stops_at_once_while_it_still_waits(machine: Machine) -> None:
    await machine.api.stop()
    daemon = machine.spawn()
    await until(lambda: machine.http(10256, "/livez")[0] == 200, "alive")
    daemon.send_signal(signal.SIGTERM)
    daemon.send_signal(signal.SIGTERM)
    code, log = await end(daemon, 3)
    assert code == 0
    assert log[-1]["event"] == "stopped; pods keep their network"


async def test_an_outage_of_the_api_server_changes_nothing(machine: Machine) -> None:
    daemon = machine.spawn()
    await until(machine.ready, "ready")
    routes = machine.sh("ip route show proto 119")
    await machine.api.stop()
    await until(lambda: 'weft_api_connected{kind="node"} 0.0' in machine.http(9465, "/metrics")[1], "lost")
    assert machine.ready()
    assert machine.sh("ip route show proto 119") == routes
    machine.put_node("node-5", 5)
    machine.storage.delete(machine.storage.catalogue.named("nodes"), "", "node-4")
    machine.storage.forget()
    await machine.start_api()
    await until(lambda: "10.244.5.0/24" in machine.sh("ip route show proto 119"), "the new node's route", 45)
    assert "10.244.4.0/24" not in machine.sh("ip route show proto 119")
    assert daemon.poll() is None


async def test_it_waits_for_its_node_and_podcidr(machine: Machine) -> None:
    machine.storage.delete(machine.storage.catalogue.named("nodes"), "", "node-3")
    machine.spawn()
    await until(lambda: "[+] cluster state complete" in machine.http(10256, "/readyz")[1], "synced")
    assert not machine.ready()
    events = machine.storage.catalogue.named("events")

    def reasons() -> set[str]:
        return {event["reason"] for event in machine.storage.list(events)}

    await until(lambda: "NodeMissing" in reasons(), "an event that says what is missing")
    machine.put_node("node-3", 3, providerID="no podCIDR yet")
    await until(lambda: "PodCidrMissing" in reasons(), "an event that says what is missing then")
    assert not machine.has_conflist
    machine.put_node("node-3", 3)
    await until(machine.ready, "ready")


async def test_a_part_that_fails_ends_the_process_loudly(machine: Machine) -> None:
    daemon = machine.spawn()
    await until(machine.ready, "ready")
    routes = machine.sh("ip route show proto 119")
    machine.sh("rm -rf /run/weft")
    code, log = await end(daemon)
    assert code == 1
    (failure,) = [entry for entry in log if entry["event"] == "the daemon failed"]
    assert failure["error"].startswith("StateDirectoryLostError: somebody removed /run/weft")
    assert machine.sh("ip route show proto 119") == routes
    machine.spawn()
    await until(machine.ready, "ready again")


async def test_ports_of_others_are_findings_not_ends(machine: Machine) -> None:
    with entered(machine.net):
        other = socket.create_server(("127.0.0.1", 9465))
    with contextlib.closing(other):
        machine.spawn()
        await until(machine.ready, "ready")
        output = machine.sh(f"{Path(WEFTD).with_name('weftctl')} status; true")
    assert "metricsAddress :9465 can't be served" in output


async def test_other_networks_and_overlaps_are_told(machine: Machine) -> None:
    machine.sh("ip link add flannel.1 type vxlan id 1 dstport 8472")
    machine.sh(
        "nft add table ip filter; "
        "nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy drop; }'"
    )
    machine.put_node("node-6", 6, podCIDR="10.244.3.128/25", podCIDRs=["10.244.3.128/25"])
    machine.spawn()
    await until(machine.ready, "ready")
    await until(
        lambda: all(
            name in machine.sh(f"{Path(WEFTD).with_name('weftctl')} status; true")
            for name in ("OtherNetworkLeftover", "ForwardPolicyDrop", "AddressOverlap")
        ),
        "findings",
    )


async def test_it_is_small_and_starts_fast(machine: Machine) -> None:
    daemon = machine.spawn()
    start = time.monotonic()
    await until(machine.ready, "ready")
    assert time.monotonic() - start < 10
    await asyncio.sleep(1)
    kibibytes = int(machine.sh(f"awk '/VmRSS/ {{ print $2 }}' /proc/{daemon.pid}/status"))
    assert kibibytes < 100 * 1024, f"{kibibytes} KiB resident"
