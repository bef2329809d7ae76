"""weftctl while the daemon is down, hangs, is older, or fails: messages, exit codes, what the node tells."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, TypeAlias

import pytest

from ctl import node
from ctl.exits import Exit
from datapath.errors import DatapathError
from ipam import alias
from ipam.allocator import Allocator
from ipam.pool import Pool
from ipam.record import AttachmentKey
from ipam.store import Store
from weft_rpc import admin_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result

    from .conftest import FakeDaemon

    Weftctl: TypeAlias = Callable[..., Result]

POOL = Pool(bytes([10, 1, 1, 0]), 24)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Allocator]:
    """A node with one pod, as a daemon that was killed left it."""
    store = Store(str(tmp_path / "state.db"))
    allocator = Allocator(store)
    record = allocator.reserve(
        AttachmentKey("weft", "c1", "eth0"),
        [POOL],
        netns="/proc/self/ns/net",
        host_link="weft0000000000a",
        mac=bytes(6),
        mtu=1450,
        pod=("default", "web", "u"),
    )
    allocator.confirm(record.key)
    allocator.settle()
    monkeypatch.setattr(node.NodeState, "_links", lambda _self: {record.host_link: alias.write(record)})
    monkeypatch.setattr(node.NodeState, "_pools", lambda _self: (POOL,))
    yield allocator
    store.close()


@pytest.mark.parametrize("command", [["status"], ["nodes"]])
def test_what_needs_the_daemon_says_that_it_is_down(
    weftctl: Weftctl, tmp_path: Path, command: list[str]
) -> None:
    result = weftctl(*command)
    assert result.exit_code == Exit.UNREACHABLE
    assert f"weftd is not reachable at {tmp_path}/admin.sock: there is no such socket" in result.stderr
    assert result.stdout == ""


def test_attachments_without_the_daemon(weftctl: Weftctl, state: Allocator) -> None:
    result = weftctl("attachments")
    assert result.exit_code == Exit.OK
    assert "Reading the node's own state instead, last written 0s ago." in result.stderr
    assert result.stdout.splitlines()[1].split()[:3] == ["default", "web", "10.1.1.2"]
    value = json.loads(weftctl("attachments", "-o", "json").stdout)
    assert value["source"]["kind"] == "node"
    assert value["source"]["ageSeconds"] < 60
    assert value["attachments"][0]["state"] == "attached"


def test_pools_without_the_daemon(weftctl: Weftctl, state: Allocator) -> None:
    value = json.loads(weftctl("ipam", "show", "-o", "json").stdout)
    assert value["pools"] == [{"cidr": "10.1.1.0/24", "size": 253, "used": 1, "cooling": 0, "free": 252}]


def test_leaks_without_the_daemon(
    weftctl: Weftctl, state: Allocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert weftctl("ipam", "check").exit_code == Exit.OK
    monkeypatch.setattr(node.NodeState, "_links", lambda _self: {})
    result = weftctl("ipam", "check")
    assert result.exit_code == Exit.FOUND
    assert "host link weft0000000000a is missing" in result.stdout


@pytest.mark.parametrize("command", [["attachments"], ["ipam", "show"], ["ipam", "check"]])
def test_a_node_on_which_weft_never_ran(
    weftctl: Weftctl, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node.NodeState, "_pools", lambda _self: ())
    result = weftctl(*command)
    assert result.exit_code == Exit.FAILED
    assert "Weft has not run on this node since it booted" in result.stderr


def test_a_left_over_socket(weftctl: Weftctl, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "admin.sock"))
    result = weftctl("status")
    assert result.exit_code == Exit.UNREACHABLE
    assert "left over from a daemon that is gone" in result.stderr


def test_something_that_is_no_socket(weftctl: Weftctl, tmp_path: Path) -> None:
    (tmp_path / "admin.sock").write_text("")
    result = weftctl("status")
    assert result.exit_code == Exit.UNREACHABLE
    assert "this is no socket" in result.stderr


def test_a_daemon_that_hangs(weftctl: Weftctl, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "admin.sock"))
        deaf.listen(4)
        result = weftctl("--timeout", "0.3", "status")
    assert result.exit_code == Exit.UNREACHABLE
    assert "did not answer within 0.3 s" in result.stderr


def test_a_socket_that_only_root_may_use(weftctl: Weftctl, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(socket.socket):
        def connect(self, _address: object) -> None:
            raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(socket, "socket", Closed)
    result = weftctl("status")
    assert result.exit_code == Exit.UNREACHABLE
    assert "only root may ask" in result.stderr


def test_an_older_daemon(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    result = weftctl("status")
    assert result.exit_code == Exit.FAILED
    assert "weftd does not know Status: it is older than this weftctl" in result.stderr


def test_a_daemon_that_fails(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    daemon.answers["Diff"] = DatapathError("routes can't be read")
    result = weftctl("diff")
    assert result.exit_code == Exit.FAILED
    assert "weftd could not answer Diff: routes can't be read" in result.stderr


def test_watching_goes_on_while_the_daemon_is_away(
    daemon: FakeDaemon, weftctl: Weftctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.answers["ListNodes"] = admin_pb2.ListNodesResponse()
    looks = iter(range(3))

    def sleep(_seconds: float) -> None:
        if next(looks) == 2:
            raise KeyboardInterrupt
        daemon.stop()

    monkeypatch.setattr("ctl.invocation.time.sleep", sleep)
    result = weftctl("nodes", "--watch", "-o", "json")
    assert result.exit_code == Exit.OK
    assert json.loads(result.stdout.splitlines()[0])["nodes"] == []
    assert result.stderr.count("weftd is not reachable") == 2
