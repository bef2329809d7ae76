"""The shim under the name `loopback`: it brings `lo` up in the sandbox without any daemon."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.functional.shim.program import make_network_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.functional.shim.program import Finished, Shim

pytestmark = pytest.mark.root


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"weft-t-lo-{os.getpid()}"
    path = make_network_namespace(name)
    yield path
    subprocess.run(["ip", "netns", "delete", name], check=True)


def run(shim: Shim, command: str, netns: str | None, version: str = "1.0.0", **config: object) -> Finished:
    text = json.dumps({"cniVersion": version, "name": "cni-loopback", "type": "loopback", **config}).encode()
    return shim.run(command, text, name="/opt/cni/bin/loopback", CNI_NETNS=netns, CNI_IFNAME="lo")


def is_up(namespace: str) -> bool:
    name = Path(namespace).name
    shown = subprocess.run(
        ["ip", "-n", name, "-j", "link", "show", "lo"], capture_output=True, check=True
    ).stdout
    return "UP" in json.loads(shown)[0]["flags"]


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_add_brings_it_up_and_says_so(sanitized: Shim, namespace: str, version: str) -> None:
    done = run(sanitized, "ADD", namespace, version)
    assert done.exit_code == 0, done
    family: dict[str, dict[str, str]] = {"4": {}, "6": {}}
    if version < "1":
        family = {"4": {"version": "4"}, "6": {"version": "6"}}
    assert json.loads(done.output) == {
        "cniVersion": version,
        "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": namespace}],
        "ips": [
            {"interface": 0, "address": "127.0.0.1/8"} | family["4"],
            {"interface": 0, "address": "::1/128"} | family["6"],
        ],
        "dns": {},
    }
    assert is_up(namespace)
    assert run(sanitized, "ADD", namespace, version).exit_code == 0


def test_a_sandbox_without_ipv6_gets_what_it_has(shim: Shim, namespace: str) -> None:
    name = Path(namespace).name
    subprocess.run(
        ["ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=1"], check=True
    )
    done = run(shim, "ADD", namespace)
    assert [entry["address"] for entry in json.loads(done.output)["ips"]] == ["127.0.0.1/8"]


def test_an_earlier_result_is_passed_on(shim: Shim, namespace: str) -> None:
    earlier = {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/32"}], "dns": {}}
    done = run(shim, "ADD", namespace, prevResult=earlier)
    assert json.loads(done.output) == earlier
    assert is_up(namespace)


def test_check_tells_up_from_down(shim: Shim, namespace: str) -> None:
    assert "down" in run(shim, "CHECK", namespace).error["msg"]
    run(shim, "ADD", namespace)
    done = run(shim, "CHECK", namespace)
    assert (done.exit_code, done.output) == (0, b"")
    assert run(shim, "CHECK", namespace, "0.3.1").error["code"] == 1


def test_delete_undoes_it_and_never_fails(shim: Shim, namespace: str, tmp_path: Path) -> None:
    run(shim, "ADD", namespace)
    assert run(shim, "DEL", namespace).exit_code == 0
    assert not is_up(namespace)
    for netns in (namespace, "", None, "/run/netns/weft-t-absent", str(tmp_path)):
        done = run(shim, "DEL", netns)
        assert (done.exit_code, done.output) == (0, b"")
    assert shim.tombstones == []


@pytest.mark.parametrize("command", ["GC", "STATUS"])
def test_it_is_always_available(shim: Shim, command: str) -> None:
    assert run(shim, command, None).exit_code == 0


def test_what_is_no_sandbox_is_refused(shim: Shim, tmp_path: Path) -> None:
    assert run(shim, "ADD", None).error["code"] == 4
    assert run(shim, "ADD", str(tmp_path)).error["code"] == 4
    assert run(shim, "ADD", "/run/netns/weft-t-absent").error["code"] == 5
    assert run(shim, "SING", None).error["code"] == 4


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "2.0.0", "nonsense"])
def test_other_versions_are_incompatible(shim: Shim, namespace: str, version: str) -> None:
    assert run(shim, "ADD", namespace, version).error["code"] == 1
    assert not is_up(namespace)
