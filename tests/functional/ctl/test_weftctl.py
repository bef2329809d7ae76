"""weftctl on the nodes of a lab: with the daemon, and without it."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from ctl.exits import Exit
from tests.functional.lab_cluster import WEFTCTL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.functional.lab_cluster import LabCluster

pytestmark = pytest.mark.root
NODE = "node-1"


def run(lab: LabCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = lab.node(NODE).namespaces.command(WEFTCTL, *arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def down(lab: LabCluster) -> Iterator[LabCluster]:
    """The lab with one daemon killed, started again afterwards."""
    lab.run(lab.node(NODE).daemon.kill())
    yield lab
    lab.run(lab.node(NODE).start_daemon())
    lab.wait(lambda: lab.weftctl(NODE, "status").get("ready"), "the daemon ready again")


def test_status_tells_what_the_node_is(lab: LabCluster) -> None:
    answer = lab.weftctl(NODE, "status")
    node = lab.node(NODE)
    assert json.loads(run(lab, "status", "-o", "json").stdout)["source"] == {"kind": "daemon"}
    assert answer["nodeName"] == NODE
    assert answer["ready"] is True
    assert answer["apiServerConnected"] is True
    assert answer["internalIps"] == [str(address) for address in node.addresses]
    assert answer["nodes"] == len(lab.cluster.nodes)
    assert answer["attachments"] == len(lab.weftctl(NODE, "attachments")["attachments"])
    assert answer["secondsSinceSync"] >= 0


def test_attachments_are_those_of_the_runtime(lab: LabCluster) -> None:
    rows = {row["containerId"]: row for row in lab.weftctl(NODE, "attachments")["attachments"]}
    sandboxes = lab.call(lambda: dict(lab.node(NODE).runtime.sandboxes))
    assert rows.keys() == sandboxes.keys()
    for container, sandbox in sandboxes.items():
        assert rows[container]["addresses"] == sandbox.addresses
        assert rows[container]["podName"] == sandbox.pod.name
        assert rows[container]["state"] == "attached"
        assert lab.sh(NODE, f"ip -o link show {rows[container]['hostLink']}")


def test_pools_and_leaks(lab: LabCluster) -> None:
    status = lab.weftctl(NODE, "status")
    pools = lab.weftctl(NODE, "ipam", "show")["pools"]
    assert [pool["cidr"] for pool in pools] == status["podCidrs"]
    assert all(pool["used"] == status["attachments"] for pool in pools)
    assert run(lab, "ipam", "check").returncode == Exit.OK


def test_nodes_are_reached(lab: LabCluster) -> None:
    rows = {row["name"]: row for row in lab.weftctl(NODE, "nodes")["nodes"]}
    assert rows.keys() == lab.cluster.nodes.keys()
    assert rows[NODE]["path"] == "local"
    assert {row["path"] for name, row in rows.items() if name != NODE} == {"vxlan"}
    shown = lab.sh("node-2", "ip -o link show weft.vxlan")
    assert rows["node-2"]["mac"] in shown
    assert not any(row["problem"] for row in rows.values())


def test_no_difference(lab: LabCluster) -> None:
    result = run(lab, "diff")
    assert (result.returncode, result.stdout.partition(";")[0]) == (Exit.OK, "No difference")


def test_every_form_is_readable(lab: LabCluster) -> None:
    for command in (["status"], ["attachments"], ["ipam", "show"], ["ipam", "check"], ["nodes"], ["diff"]):
        for form in ("wide", "yaml"):
            result = run(lab, *command, "-o", form)
            assert result.returncode == Exit.OK, (command, form, result.stderr)
            assert result.stdout
            assert "\x1b" not in result.stdout


def test_watching_sees_a_pod_come(lab: LabCluster) -> None:
    command = lab.node(NODE).namespaces.command(WEFTCTL, "attachments", "--watch", "0.2", "-o", "json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        output = process.stdout
        assert output is not None

        def shown() -> bool:
            return "watched" in {row["podName"] for row in json.loads(output.readline())["attachments"]}

        try:
            assert not shown()
            lab.add_pods("watched", node=NODE)
            lab.wait(shown, "the pod shown")
            lab.delete_pods("watched")
            lab.wait(lambda: not shown(), "the pod not shown any more")
        finally:
            process.terminate()


def test_without_the_daemon_the_node_tells(down: LabCluster) -> None:
    assert run(down, "status").returncode == Exit.UNREACHABLE
    assert run(down, "nodes").returncode == Exit.UNREACHABLE
    result = run(down, "attachments", "-o", "json")
    assert "Reading the node's own state" in result.stderr
    rows = json.loads(result.stdout)["attachments"]
    sandboxes = down.call(lambda: dict(down.node(NODE).runtime.sandboxes))
    assert {row["containerId"] for row in rows} == sandboxes.keys()
    pools = json.loads(run(down, "ipam", "show", "-o", "json").stdout)["pools"]
    assert [pool["used"] for pool in pools] == [len(rows)] * 2
    assert run(down, "ipam", "check").returncode == Exit.OK


def test_without_the_daemon_differences_are_found(down: LabCluster) -> None:
    result = run(down, "diff")
    assert (result.returncode, result.stdout.partition(";")[0]) == (Exit.OK, "No difference"), result.stderr
    peer = down.weftctl("node-2", "status")["podCidrs"][0]
    down.sh(NODE, f"ip route delete {peer}")
    result = run(down, "diff", "-o", "json")
    assert result.returncode == Exit.FOUND
    (difference,) = json.loads(result.stdout)["differences"]
    assert (difference["kind"], difference["action"]) == ("route", "missing")
    assert difference["object"].startswith(peer)
