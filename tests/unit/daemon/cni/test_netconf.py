"""The network configuration of a request."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from daemon.cni.errors import CniError, Code
from daemon.cni.netconf import read, requested_version, wish
from daemon.cni.result import Dns, Ip
from ipam.ports import PortMapping

if TYPE_CHECKING:
    from daemon.cni.netconf import NetConf


def config(**members: Any) -> bytes:
    return json.dumps({"cniVersion": "1.1.0", "name": "weft", "type": "weft", **members}).encode()


def parsed(command: str = "ADD", **members: Any) -> NetConf:
    return read(config(**members), command)


def refusal(text: bytes, command: str = "ADD") -> CniError:
    with pytest.raises(CniError) as caught:
        read(text, command)
    return caught.value


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_supported_versions(version: str) -> None:
    assert parsed(cniVersion=version).version == version


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "1.2.0", "2.0.0", "x", None, ""])
def test_other_versions_are_incompatible(version: str | None) -> None:
    error = refusal(config(cniVersion=version))
    assert error.code is Code.INCOMPATIBLE_VERSION
    assert f'config is "{version or "0.1.0"}"' in error.details


def test_a_configuration_without_a_version_is_of_the_first_one() -> None:
    assert 'config is "0.1.0"' in refusal(b'{"name": "weft"}').details


@pytest.mark.parametrize(
    ("command", "version", "works"),
    [
        ("CHECK", "0.3.1", False),
        ("CHECK", "0.4.0", True),
        ("GC", "1.0.0", False),
        ("GC", "1.1.0", True),
        ("STATUS", "1.0.0", False),
        ("STATUS", "1.1.0", True),
        ("DEL", "0.3.1", True),
    ],
)
def test_commands_have_a_first_version(command: str, version: str, works: bool) -> None:
    text = config(cniVersion=version)
    if works:
        read(text, command)
    else:
        assert refusal(text, command).code is Code.INCOMPATIBLE_VERSION


@pytest.mark.parametrize("name", [None, "", "-a", "a/b", "a b", "ü", "a\n"])
def test_names_are_checked(name: str | None) -> None:
    assert refusal(config(name=name)).code is Code.INVALID_CONFIG


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"ipam": {"type": "host-local"}}, "ipam"),
        ({"ipMasq": True}, "ipMasq"),
        ({"IPMASQ": True}, "ipMasq"),
        ({"runtimeConfig": {"bandwidth": {"ingressRate": 1}}}, "runtimeConfig.bandwidth"),
        ({"runtimeConfig": {"ips": ["10.0.0.1"]}}, "runtimeConfig.ips"),
        ({"runtimeConfig": {"mac": "02:00:00:00:00:01"}}, "runtimeConfig.mac"),
    ],
)
def test_what_would_silently_not_be_done_is_refused(members: dict[str, Any], field: str) -> None:
    with pytest.raises(CniError, match=field) as caught:
        parsed(**members).require_supported()
    assert caught.value.code is Code.UNSUPPORTED_FIELD


def test_what_asks_for_nothing_is_fine() -> None:
    parsed(
        ipam={},
        ipMasq=False,
        runtimeConfig={"portMappings": [], "bandwidth": None, "dns": {"servers": ["1.1.1.1"]}},
    ).require_supported()


def test_host_ports_are_part_of_what_is_wished_for() -> None:
    ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "TCP"}]
    assert wish(parsed(runtimeConfig={"portMappings": ports})).ports == (PortMapping(b"", 6, 8080, 80),)
    assert wish(parsed()).ports == ()


def test_a_del_is_not_held_up_by_what_concerns_an_add() -> None:
    read(config(prevResult="nonsense", runtimeConfig=7, dns=[], ipam=1), "DEL")


def test_dns_of_the_runtime_beats_that_of_the_configuration() -> None:
    own = {"nameservers": ["10.0.0.1"], "domain": "d", "search": ["s"], "options": ["o"]}
    assert parsed(dns=own).dns() == Dns(("10.0.0.1",), "d", ("s",), ("o",))
    runtime = {"dns": {"servers": ["10.0.0.2"], "searches": ["t"], "options": ["p"]}}
    assert parsed(dns=own, runtimeConfig=runtime).dns() == Dns(("10.0.0.2",), "", ("t",), ("p",))
    assert not parsed().dns()


def test_args_of_the_configuration_beat_the_environment() -> None:
    conf = parsed(args={"cni": {"K8S_POD_NAME": "b", "labels": [1]}})
    assert conf.args({"K8S_POD_NAME": "a", "K8S_POD_UID": "u"}) == {"K8S_POD_NAME": "b", "K8S_POD_UID": "u"}


def test_prev_result_is_read_in_the_version_of_the_configuration() -> None:
    assert parsed().previous_result() is None
    assert parsed(prevResult=None).previous_result() is None
    found = parsed(
        cniVersion="0.4.0", prevResult={"ips": [{"version": "4", "address": "10.0.0.1/32"}]}
    ).previous_result()
    assert found is not None
    assert found.ips == (Ip("10.0.0.1/32"),)


@pytest.mark.parametrize("empty", [None, []])
def test_an_empty_list_of_valid_attachments_collects_everything(empty: object) -> None:
    assert parsed("GC", **{"cni.dev/valid-attachments": empty}).valid_attachments() == frozenset()


def test_no_list_of_valid_attachments_collects_nothing() -> None:
    assert parsed("GC").valid_attachments() is None


def test_valid_attachments_and_their_older_name() -> None:
    entries = [{"containerID": "c1", "ifname": "eth0"}, {"containerId": "c2", "ifName": "eth1"}]
    wanted = frozenset({("c1", "eth0"), ("c2", "eth1")})
    assert parsed("GC", **{"cni.dev/valid-attachments": entries}).valid_attachments() == wanted
    assert parsed("GC", **{"cni.dev/attachments": entries}).valid_attachments() == wanted
    both = {"cni.dev/valid-attachments": entries, "cni.dev/attachments": []}
    assert parsed("GC", **both).valid_attachments() == wanted


@pytest.mark.parametrize(
    "entries", [{}, "x", [1], [{"containerID": "c1"}], [{"containerID": 1, "ifname": "eth0"}]]
)
def test_a_list_that_cannot_be_read_collects_nothing(entries: object) -> None:
    with pytest.raises(CniError):
        parsed("GC", **{"cni.dev/valid-attachments": entries}).valid_attachments()


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (config(cniVersion="0.4.0"), "0.4.0"),
        (b"nonsense", "1.1.0"),
        (b'{"cniVersion": 3}', "1.1.0"),
        (b'{"cniVersion": "9.9.9"}', "1.1.0"),
    ],
)
def test_errors_speak_the_version_that_was_asked_for(text: bytes, version: str) -> None:
    assert requested_version(text) == version
