"""Elements of host ports."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from datapath.nft.hostports import (
    HOST_PORTS,
    HOST_PORTS_AT,
    HostPort,
    host_port_elements,
    host_port_maps,
    host_port_sets,
    is_on_loopback,
    read_host_ports,
    show_place,
)
from datapath.nft.render import render_element
from datapath.nft.rules import Family

TCP, UDP = 6, 17
FOUR, SIX = bytes((10, 0, 0, 5)), b"\xfd" + bytes(14) + b"\x05"
NODE4, NODE6 = bytes((192, 0, 2, 1)), bytes.fromhex("20010db8") + bytes(11) + b"\x01"


def shown(addresses: tuple[bytes, ...], *ports: HostPort) -> list[str]:
    """Elements as nft writes them, with family and map in front."""
    declared = {
        (int(family), each.name): each
        for family in (Family.IPV4, Family.IPV6)
        for each in host_port_maps(family)
    }
    return [
        f"{Family(each.table[0]).text} {each.name} "
        f"{render_element(declared[each.table[0], each.name], key, data)}"
        for each in host_port_elements(addresses, ports)
        for key, data in each.elements.items()
    ]


def test_a_port_at_every_address() -> None:
    assert shown((FOUR, SIX), HostPort(b"", TCP, 8080, 80)) == [
        "ip host-ports tcp . 8080 : 10.0.0.5 . 80",
        "ip6 host-ports tcp . 8080 : fd00::5 . 80",
    ]


def test_a_port_at_every_address_of_one_family() -> None:
    ports = HostPort(bytes(4), TCP, 8080, 80), HostPort(bytes(16), UDP, 53, 5353)
    assert shown((FOUR, SIX), *ports) == [
        "ip host-ports tcp . 8080 : 10.0.0.5 . 80",
        "ip6 host-ports udp . 53 : fd00::5 . 5353",
    ]


def test_a_port_at_one_address() -> None:
    ports = HostPort(NODE4, TCP, 80, 80), HostPort(NODE6, TCP, 80, 80)
    assert shown((FOUR, SIX), *ports) == [
        "ip host-ports-at 192.0.2.1 . tcp . 80 : 10.0.0.5 . 80",
        "ip6 host-ports-at 2001:db8::1 . tcp . 80 : fd00::5 . 80",
    ]
    # Of a family that the pod lacks it leads nowhere.
    assert shown((FOUR,), ports[1]) == []


def test_no_port_is_no_element() -> None:
    assert host_port_elements((FOUR, SIX), ()) == ()


numbers = st.integers(1, 65535)
hosts = st.one_of(
    st.just(b""), st.just(bytes(4)), st.just(bytes(16)), st.binary(min_size=4, max_size=4),
    st.binary(min_size=16, max_size=16),
)  # fmt: skip
ports = st.builds(HostPort, hosts, st.sampled_from((TCP, UDP, 132)), numbers, numbers)


@given(st.lists(st.lists(ports, max_size=4), min_size=1, max_size=4), st.sampled_from(("4", "6", "46")))
def test_what_is_read_back_makes_the_same_elements(pods: list[list[HostPort]], families: str) -> None:
    """So a database that was lost is rebuilt, whatever the pods asked for."""
    held: dict[tuple[int, str, str], dict[bytes, bytes]] = {}
    addresses = {}
    for number in range(len(pods)):
        four, six = bytes((10, 0, 0, number)), b"\xfd" + bytes(14) + bytes((number,))
        addresses[number] = tuple(each for each, name in ((four, "4"), (six, "6")) if name in families)
        for each in host_port_elements(addresses[number], pods[number]):
            for place, target in each.elements.items():
                held.setdefault(each.key, {}).setdefault(place, target)
    found = read_host_ports(held)
    again: dict[tuple[int, str, str], dict[bytes, bytes]] = {}
    for own in addresses.values():
        for elements in host_port_elements(own, [port for each in own for port in found.get(each, ())]):
            again.setdefault(elements.key, {}).update(elements.elements)
    assert again == held
    assert held.keys() <= set(host_port_sets())


@pytest.mark.parametrize(
    ("addresses", "host", "expected"),
    [
        ((FOUR, SIX), b"", True),
        ((FOUR,), bytes(4), True),
        ((FOUR,), bytes((127, 0, 0, 53)), True),
        ((FOUR,), NODE4, False),
        ((FOUR,), bytes(16), False),
        ((SIX,), b"", False),
        ((), b"", False),
    ],
)
def test_who_is_reached_by_loopback(addresses: tuple[bytes, ...], host: bytes, expected: bool) -> None:
    assert is_on_loopback(addresses, [HostPort(host, TCP, 80, 80)]) is expected


def test_nobody_is_without_ports() -> None:
    assert not is_on_loopback((FOUR, SIX), ())


def test_places_in_words() -> None:
    found = host_port_elements((FOUR, SIX), [HostPort(b"", UDP, 53, 1), HostPort(NODE4, TCP, 80, 1)])
    words = {each.name: show_place(each, place) for each in found[:2] for place in each.elements}
    assert words == {HOST_PORTS: "udp 53 (IPv4)", HOST_PORTS_AT: "tcp 80 at 192.0.2.1"}
    (place,) = found[2].elements
    assert show_place(found[2], place) == "udp 53 (IPv6)"
