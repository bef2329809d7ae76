"""Results in every version."""

from __future__ import annotations

import json
from typing import Any

import pytest

from daemon.cni.document import read
from daemon.cni.errors import CniError, Code
from daemon.cni.result import VERSIONS, Dns, Interface, Ip, Result, Route, read_result

RESULT = Result(
    (
        Interface("weft0", "ee:ee:ee:ee:ee:ee", 1450),
        Interface("eth0", "0a:00:00:00:00:01", 1450, "/run/netns/a"),
    ),
    (Ip("10.0.0.2/32", "169.254.1.1", 1), Ip("fd00::2/128", "fe80::1", 1)),
    (Route("0.0.0.0/0", "169.254.1.1"), Route("::/0", "fe80::1", (("mtu", 1400), ("table", 0)))),
    Dns(("10.96.0.10",), "", ("cluster.local",)),
)


def body(result: Result, version: str) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(result.to_json(version))
    return decoded


def test_the_newest_form() -> None:
    assert body(RESULT, "1.1.0") == {
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "weft0", "mac": "ee:ee:ee:ee:ee:ee", "mtu": 1450},
            {"name": "eth0", "mac": "0a:00:00:00:00:01", "mtu": 1450, "sandbox": "/run/netns/a"},
        ],
        "ips": [
            {"interface": 1, "address": "10.0.0.2/32", "gateway": "169.254.1.1"},
            {"interface": 1, "address": "fd00::2/128", "gateway": "fe80::1"},
        ],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
            {"dst": "::/0", "gw": "fe80::1", "mtu": 1400, "table": 0},
        ],
        "dns": {"nameservers": ["10.96.0.10"], "search": ["cluster.local"]},
    }


def test_1_0_0_has_no_numbers_of_links_and_routes() -> None:
    found = body(RESULT, "1.0.0")
    assert found["interfaces"][1] == {"name": "eth0", "mac": "0a:00:00:00:00:01", "sandbox": "/run/netns/a"}
    assert found["routes"][1] == {"dst": "::/0", "gw": "fe80::1"}
    assert "version" not in found["ips"][0]


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0"])
def test_before_1_0_0_addresses_name_their_family(version: str) -> None:
    assert [ip["version"] for ip in body(RESULT, version)["ips"]] == ["4", "6"]
    assert "mtu" not in body(RESULT, version)["interfaces"][0]


@pytest.mark.parametrize("version", VERSIONS)
def test_reading_gives_back_what_the_version_can_say(version: str) -> None:
    text = RESULT.to_json(version)
    again = read_result(read(text), version)
    assert again.to_json(version) == text
    assert again.ips == RESULT.ips
    if version == "1.1.0":
        assert again == RESULT


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_the_form_by_family_is_read(version: str) -> None:
    text = json.dumps(
        {
            "cniVersion": version,
            "ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
            "ip6": {"ip": "fd00::2/64"},
            "dns": {"nameservers": ["10.0.0.1"]},
        }
    )
    assert read_result(read(text.encode()), "1.1.0") == Result(
        (), (Ip("10.0.0.2/24", "10.0.0.1"), Ip("fd00::2/64")), (Route("0.0.0.0/0"),), Dns(("10.0.0.1",))
    )


def test_a_result_of_a_plugin_before_us_comes_first() -> None:
    before = Result(
        (Interface("br0"), Interface("net1", sandbox="/run/netns/a")),
        (Ip("192.168.0.2/24", "", 1), Ip("192.168.9.2/24")),
        (Route("192.168.0.0/16"),),
        Dns(("1.1.1.1",)),
    )
    joined = before.followed_by(RESULT)
    assert [interface.name for interface in joined.interfaces] == ["br0", "net1", "weft0", "eth0"]
    assert [ip.interface for ip in joined.ips] == [1, None, 3, 3]
    assert joined.routes == before.routes + RESULT.routes
    assert joined.dns == RESULT.dns
    assert before.followed_by(Result()).dns == before.dns


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ({"cniVersion": "9.0.0"}, Code.INVALID_CONFIG),
        ({"ips": [{"address": "10.0.0.300/32"}]}, Code.INVALID_CONFIG),
        ({"ips": [{}]}, Code.INVALID_CONFIG),
        ({"ips": [{"address": "10.0.0.2/32", "interface": 0}]}, Code.INVALID_CONFIG),
        (
            {"interfaces": [{"name": "a"}], "ips": [{"address": "10.0.0.2/32", "interface": -1}]},
            Code.INVALID_CONFIG,
        ),
        ({"routes": [{"dst": "default"}]}, Code.INVALID_CONFIG),
        ({"ips": "10.0.0.2"}, Code.DECODING_FAILURE),
        ({"interfaces": [{"name": 7}]}, Code.DECODING_FAILURE),
        ({"dns": {"nameservers": "10.0.0.1"}}, Code.DECODING_FAILURE),
    ],
)
def test_a_result_that_is_none_is_refused(text: dict[str, Any], code: Code) -> None:
    with pytest.raises(CniError) as caught:
        read_result(read(json.dumps(text).encode()), "1.1.0")
    assert caught.value.code is code
