"""weftctl monitor: one line for each packet, for people and for programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeAlias

import yaml

from ctl.exits import Exit
from weft_rpc import admin_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    from .conftest import FakeDaemon

    Weftctl: TypeAlias = Callable[..., Result]

INGRESS = admin_pb2.Denial(
    time=1_700_000_000.5,
    direction="ingress",
    pod="shop/db",
    peer="shop/web",
    source="10.1.1.7",
    destination="10.1.1.8",
    protocol="TCP",
    source_port=40000,
    destination_port=80,
    policies=["shop/p"],
)
EGRESS = admin_pb2.Denial(
    direction="egress", pod="shop/new", source="fd01::7", destination="fd02::1", protocol="ICMPv6", left_out=3
)


def test_lines_for_people(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    daemon.denials = [INGRESS, EGRESS]
    result = weftctl("monitor")
    assert result.exit_code == Exit.OK, result.output
    first, *_, last = result.output.splitlines()
    assert first.endswith(
        "ingress denied: TCP shop/web (10.1.1.7:40000) to shop/db (10.1.1.8:80), isolated by shop/p"
    )
    assert "egress denied: ICMPv6 shop/new (fd01::7) to fd02::1, isolated by all policies" in last
    assert "3 packets were left out" in result.output


def test_addresses_with_ports_are_told_apart(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    daemon.denials = [
        admin_pb2.Denial(direction="ingress", source="fd01::7", source_port=9, destination="::1")
    ]
    assert "[fd01::7]:9 to ::1" in weftctl("monitor").output


def test_lines_of_json(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    daemon.denials = [INGRESS, INGRESS]
    lines = weftctl("monitor", "-o", "json").output.splitlines()
    assert len(lines) == 2
    found = json.loads(lines[0])
    assert (found["pod"], found["destinationPort"], found["leftOut"]) == ("shop/db", 80, 0)


def test_documents_of_yaml(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    daemon.denials = [INGRESS, INGRESS]
    documents = list(yaml.safe_load_all(weftctl("monitor", "-o", "yaml").output))
    assert [each["peer"] for each in documents] == ["shop/web", "shop/web"]


def test_without_a_daemon(weftctl: Weftctl) -> None:
    result = weftctl("monitor")
    assert result.exit_code == Exit.UNREACHABLE
    assert "not reachable" in result.output
