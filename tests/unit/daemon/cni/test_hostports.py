"""What a runtime asks for as portMappings."""

from __future__ import annotations

import json
from typing import Any

import pytest

from daemon.cni import document, hostports
from daemon.cni.errors import CniError, Code
from ipam.ports import PortMapping

FOUR, SIX = bytes((192, 0, 2, 1)), bytes.fromhex("20010db8") + bytes(11) + b"\x01"


def entry(**members: Any) -> dict[str, Any]:
    return {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", **members}


def read(*entries: Any) -> tuple[PortMapping, ...]:
    text = json.dumps({"runtimeConfig": {"portMappings": entries}}).encode()
    return hostports.read(document.read(text).child("runtimeConfig"))


def refusal(*entries: Any) -> CniError:
    with pytest.raises(CniError) as caught:
        read(*entries)
    return caught.value


def test_without_any_there_are_none() -> None:
    assert hostports.read(document.read(b"{}").child("runtimeConfig")) == ()
    assert hostports.read(document.read(b'{"portMappings": null}')) == ()


@pytest.mark.parametrize(
    ("text", "number"), [("tcp", 6), ("TCP", 6), ("Udp", 17), ("udp", 17), ("SCTP", 132), ("sctp", 132)]
)
def test_protocols_in_any_case(text: str, number: int) -> None:
    assert read(entry(protocol=text)) == (PortMapping(b"", number, 8080, 80),)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (None, b""),
        ("", b""),
        ("0.0.0.0", bytes(4)),
        ("::", bytes(16)),
        ("192.0.2.1", FOUR),
        ("2001:db8::1", SIX),
        ("::ffff:192.0.2.1", FOUR),
    ],
)
def test_host_addresses(text: str | None, address: bytes) -> None:
    assert read(entry(hostIP=text)) == (PortMapping(address, 6, 8080, 80),)


def test_keys_in_any_case_as_go_reads_them() -> None:
    given = {"HOSTPORT": 8080, "containerport": 80, "Protocol": "tcp", "hostIp": "192.0.2.1"}
    assert read(given) == (PortMapping(FOUR, 6, 8080, 80),)


@pytest.mark.parametrize("port", [0, None])
def test_host_port_0_asks_for_none(port: int | None) -> None:
    assert read({"hostPort": port, "containerPort": 80, "protocol": "tcp"}, entry()) == read(entry())


def test_what_is_said_twice_is_there_once() -> None:
    assert read(entry(), entry(), entry(protocol="udp")) == (
        PortMapping(b"", 6, 8080, 80),
        PortMapping(b"", 17, 8080, 80),
    )


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"hostPort": 65536}, "portMappings[1].hostPort: 65536 is no port"),
        ({"hostPort": -1}, "portMappings[1].hostPort: -1 is no port"),
        ({"containerPort": 0}, "portMappings[1].containerPort: is missing"),
        ({"containerPort": 70000}, "portMappings[1].containerPort: 70000 is no port"),
        ({"protocol": "icmp"}, "portMappings[1].protocol: must be tcp, udp or sctp, and is 'icmp'"),
        ({"protocol": None}, "must be tcp, udp or sctp, and is ''"),
        ({"hostIP": "somewhere"}, "portMappings[1].hostIP: 'somewhere' is no IP address"),
        ({"hostIP": "fe80::1%eth0"}, "names a link"),
    ],
)
def test_values_that_are_none(members: dict[str, Any], words: str) -> None:
    error = refusal(entry(hostPort=1), entry(**members))
    assert error.code is Code.INVALID_CONFIG
    assert words in str(error)


@pytest.mark.parametrize(
    "entries",
    [("x",), (entry(hostPort="80"),), (entry(hostPort=True),), (entry(hostPort=1.5),), (entry(protocol=6),)],
)
def test_members_of_the_wrong_type(entries: tuple[Any, ...]) -> None:
    assert refusal(*entries).code is Code.DECODING_FAILURE


@pytest.mark.parametrize("other", ["", "0.0.0.0", "::"])
def test_one_host_port_leads_to_one_place(other: str) -> None:
    error = refusal(entry(), entry(containerPort=81, hostIP=other))
    assert error.code is Code.INVALID_CONFIG
    assert "leads host port" in str(error)


def test_other_addresses_and_protocols_may_lead_elsewhere() -> None:
    others = [
        entry(containerPort=81, protocol="udp"),
        entry(containerPort=82, hostIP="192.0.2.1"),
        entry(containerPort=83, hostPort=8081),
    ]
    assert len(read(entry(), *others)) == 4
    assert len(read(entry(hostIP="0.0.0.0"), entry(hostIP="::", containerPort=81))) == 2
