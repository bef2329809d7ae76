"""The real shim and daemon driven by libcni itself, through its own command cnitool.

containerd 1.6 never calls CHECK, GC or STATUS; this does. Sandboxes and libcni's cache live in a node of the
lab.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lab.errors import NodeError
from lab.namespaces import descriptor_path
from lab.runtime import PodName

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.functional.lab_cluster import LabCluster

pytestmark = pytest.mark.root

NODE = "node-1"
VERSION = "v1.3.0"
CACHE = Path(__file__).resolve().parents[3] / ".cache" / "go"


@pytest.fixture(scope="session")
def program() -> str:
    """cnitool, built once from its Go module."""
    target = CACHE / "bin" / f"cnitool-{VERSION}"
    if target.exists():
        return str(target)
    go = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    if go is None:
        pytest.skip("Go is not installed, which builds cnitool")
    environment = {**os.environ, "GOBIN": str(target.parent), "GOFLAGS": "-modcacherw"}
    module = f"github.com/containernetworking/cni/cnitool@{VERSION}"
    build = subprocess.run(
        [go, "install", module], env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    if build.returncode != 0:
        pytest.skip(f"cnitool can't be built here: {build.stderr.strip()[-300:]}")
    (target.parent / "cnitool").rename(target)
    return str(target)


class Tool:
    """Two sandboxes, and scripts in their node in which `cnitool` is libcni's and $a and $b are their paths.

    libcni's cache lives as long as a script.
    """

    def __init__(self, lab: LabCluster, program: str) -> None:
        self.lab = lab
        self.program = program
        self.runtime = lab.node(NODE).runtime
        self.a, self.b = (self.runtime.make_sandbox(PodName("t", name, "")) for name in "ab")

    def __call__(self, script: str, conflists: str = "/etc/cni/net.d") -> str:
        lines = (
            "set -eu",
            "mount -t tmpfs none /var/lib",
            f"export NETCONFPATH={conflists} CNI_PATH=/opt/cni/bin CNI_IFNAME=eth0",
            f'cnitool() {{ {self.program} "$@"; }}',
            f"a={self.a.netns} b={self.b.netns}",
            script,
        )
        return self.lab.sh(NODE, f"unshare --mount sh -c {shlex.quote(chr(10).join(lines))}")

    def inside(self, command: str) -> str:
        """Run a command in the namespace of sandbox a."""
        net = descriptor_path(self.a.descriptor)
        return self.lab.run(self.lab.node(NODE).run("sh", "-c", command, net=net))

    def attached(self) -> list[dict[str, Any]]:
        """The attachments that are no pods of the lab."""
        rows = self.lab.weftctl(NODE, "attachments")["attachments"]
        return [row for row in rows if row["containerId"].startswith("cnitool-")]


@pytest.fixture
def tool(lab: LabCluster, program: str) -> Iterator[Tool]:
    found = Tool(lab, program)
    yield found
    found("cnitool del weft $a; cnitool del weft $b")
    for sandbox in (found.a, found.b):
        lab.call(lambda sandbox=sandbox: found.runtime.drop(sandbox))  # type: ignore[misc]
    assert found.attached() == []


def test_the_life_of_an_attachment(tool: Tool) -> None:
    output = tool("cnitool status weft $a; cnitool add weft $a; cnitool check weft $a; cnitool del weft $a")
    result = json.loads(output)
    assert result["cniVersion"] == "1.1.0"
    host, pod = result["interfaces"]
    assert (pod["name"], pod["sandbox"], pod["mtu"]) == ("eth0", tool.a.netns, 1450)
    assert host["name"].startswith("weft")
    assert [ip["interface"] for ip in result["ips"]] == [1, 1]
    assert [route["dst"] for route in result["routes"]] == ["0.0.0.0/0", "::/0"]
    assert tool.attached() == []


def test_what_was_added_is_in_the_sandbox_and_reaches_others(tool: Tool) -> None:
    result = json.loads(tool("cnitool add weft $a"))
    (row,) = tool.attached()
    assert {ip["address"].partition("/")[0] for ip in result["ips"]} == set(row["addresses"])
    shown = tool.inside("ip addr show eth0")
    assert all(ip["address"] in shown for ip in result["ips"])
    for address in tool.lab.addresses("pod-2a"):
        tool.inside(f"ping -c 1 -W 5 {address}")


@pytest.mark.parametrize("family", [4, 6])
def test_check_sees_a_lost_address(tool: Tool, family: int) -> None:
    flush = f"nsenter --net=$a ip -{family} addr flush dev eth0 scope global"
    with pytest.raises(NodeError, match=r"10\.244\." if family == 4 else "fd10:244:"):
        tool(f"cnitool add weft $a > /dev/null; {flush}; cnitool check weft $a")


def test_check_of_nothing_fails_and_del_of_nothing_does_not(tool: Tool) -> None:
    keep, restore = "cp -r /var/lib/cni /var/lib/kept", "cp -r /var/lib/kept/. /var/lib/cni"
    with pytest.raises(NodeError, match="there is no attachment"):
        tool(
            f"cnitool add weft $a > /dev/null; {keep}; cnitool del weft $a; {restore}; cnitool check weft $a"
        )
    tool("cnitool del weft $a; cnitool del weft $a")


def test_a_second_add_is_refused(tool: Tool) -> None:
    with pytest.raises(NodeError, match="exists already"):
        tool("cnitool add weft $a >/dev/null; cnitool add weft $a")
    assert len(tool.attached()) == 1


def test_gc_collects_what_it_is_told_to_and_nothing_else(tool: Tool) -> None:
    """cnitool's GC deletes what libcni remembers and names no valid attachments; other runtimes do."""
    other = "/run/weft-t-gc"
    network = {"cniVersion": "1.1.0", "name": "gc"}
    conflist = json.dumps({**network, "plugins": [{"type": "weft"}]})
    tool(
        f"mkdir -p {other}; printf %s {shlex.quote(conflist)} > {other}/gc.conflist; "
        "cnitool add gc $a > /dev/null; cnitool add gc $b > /dev/null; "
        "grep -l $b /var/lib/cni/results/* | xargs rm; cnitool gc gc $a; rm -r /run/weft-t-gc",
        other,
    )
    (row,) = tool.attached()
    assert row["netns"] == tool.b.netns
    told = json.dumps({**network, "type": "weft", "cni.dev/valid-attachments": []})
    tool.lab.sh(
        NODE, f"printf %s {shlex.quote(told)} | CNI_COMMAND=GC CNI_PATH=/opt/cni/bin /opt/cni/bin/weft"
    )
    assert tool.attached() == []
    assert len(tool.lab.weftctl(NODE, "attachments")["attachments"]) == 2


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_older_versions(tool: Tool, version: str) -> None:
    directory = f"/tmp/weft-t-{version}"
    conflist = json.dumps({"cniVersion": version, "name": "weft", "plugins": [{"type": "weft"}]})
    check = "cnitool check weft $a;" if version != "0.3.1" else ""
    output = tool(
        f"mkdir -p {directory}; printf %s {shlex.quote(conflist)} > {directory}/a.conflist; "
        f"cnitool add weft $a; {check} cnitool del weft $a; rm -r {directory}",
        directory,
    )
    assert json.loads(output)["cniVersion"] == version


def test_status_without_a_daemon(tool: Tool) -> None:
    tool.lab.run(tool.lab.node(NODE).daemon.stop())
    try:
        with pytest.raises(NodeError, match="not running"):
            tool("cnitool status weft $a")
        with pytest.raises(NodeError, match="not running"):
            tool("cnitool add weft $a")
    finally:
        tool.lab.run(tool.lab.node(NODE).start_daemon())
    tool.lab.wait(lambda: tool.lab.weftctl(NODE, "status").get("ready"), "the daemon is ready again", 30)
    tool("cnitool status weft $a")
