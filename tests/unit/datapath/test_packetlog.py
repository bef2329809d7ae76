"""What is read of a logged packet's headers."""

from __future__ import annotations

import ipaddress
import struct

import pytest

from datapath.netlink.ulog import LoggedPacket
from datapath.packetlog import DeniedPacket, read_headers
from datapath.policy import Direction

IN, OUT = "weft-policy ingress", "weft-policy egress"
FOUR = [ipaddress.ip_address(each).packed for each in ("10.1.0.7", "10.2.0.9")]
SIX = [ipaddress.ip_address(each).packed for each in ("fd01::7", "fd02::9")]
PORTS = struct.pack("!HH", 40000, 80)


def four(protocol: int, content: bytes = b"", *, options: bytes = b"", fragment: int = 0) -> bytes:
    first = 0x45 + len(options) // 4
    head = struct.pack("!BBHHHBBH", first, 0, 0, 0, fragment, 64, protocol, 0)
    return head + FOUR[0] + FOUR[1] + options + content


def six(kind: int, content: bytes = b"") -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(content), kind, 64) + SIX[0] + SIX[1] + content


@pytest.mark.parametrize("protocol", [6, 17, 132])
@pytest.mark.parametrize(
    ("prefix", "direction"), [(IN, Direction.INGRESS), (OUT, Direction.EGRESS)], ids=["in", "out"]
)
def test_ports(protocol: int, prefix: str, direction: Direction) -> None:
    assert read_headers(LoggedPacket(prefix, four(protocol, PORTS))) == DeniedPacket(
        direction, FOUR[0], FOUR[1], protocol, 40000, 80
    )
    assert read_headers(LoggedPacket(prefix, six(protocol, PORTS))) == DeniedPacket(
        direction, SIX[0], SIX[1], protocol, 40000, 80
    )


def ports(packet: bytes) -> tuple[int, int, int]:
    found = read_headers(LoggedPacket(IN, packet))
    assert found is not None
    return found.protocol, found.source_port, found.destination_port


def test_options_stand_before_the_ports() -> None:
    assert ports(four(6, PORTS, options=bytes(8))) == (6, 40000, 80)


def test_echo_has_no_ports() -> None:
    assert ports(four(1, PORTS)) == (1, 0, 0)
    assert ports(six(58, PORTS)) == (58, 0, 0)


def test_extension_headers_are_passed_over() -> None:
    routing = bytes([60, 1]) + bytes(14)
    options = bytes([17, 0]) + bytes(6)
    assert ports(six(43, routing + options + PORTS)) == (17, 40000, 80)


@pytest.mark.parametrize("place", [8, 8 | 1])
def test_later_fragments_have_no_ports(place: int) -> None:
    assert ports(four(17, PORTS, fragment=place)) == (17, 0, 0)
    assert ports(six(44, bytes([17, 0]) + struct.pack("!HI", place, 0) + PORTS)) == (17, 0, 0)


def test_first_fragments_have_ports() -> None:
    assert ports(four(17, PORTS, fragment=0x2000)) == (17, 40000, 80)
    assert ports(six(44, bytes([17, 0]) + struct.pack("!HI", 1, 0) + PORTS)) == (17, 40000, 80)


@pytest.mark.parametrize("length", range(48))
def test_packets_that_are_cut_short_break_nothing(length: int) -> None:
    for packet in (four(6, PORTS), six(6, PORTS), six(60, bytes([6, 200]) + bytes(20))):
        read_headers(LoggedPacket(IN, packet[:length]))


def test_others_log_too() -> None:
    assert read_headers(LoggedPacket("firewall: ", four(6, PORTS))) is None
    assert read_headers(LoggedPacket(IN, bytes(60))) is None
