from ipaddress import ip_network

import pytest

from lab.api.allocation import Addresses, NodePorts
from lab.errors import ApiError

NETWORKS = [ip_network("10.96.0.0/29")]


def test_addresses_are_given_out_in_turn_until_none_is_left() -> None:
    addresses = Addresses()
    given = [addresses.choose("a/a", NETWORKS) for _ in range(6)]
    assert given == [f"10.96.0.{number}" for number in range(1, 7)]
    with pytest.raises(ApiError, match="the range is full"):
        addresses.choose("a/a", NETWORKS)
    addresses.release("10.96.0.3")
    assert addresses.choose("a/a", NETWORKS) == "10.96.0.3"


def test_an_address_just_given_back_is_not_the_next() -> None:
    addresses = Addresses()
    first = addresses.choose("a/a", NETWORKS)
    addresses.release(first)
    assert addresses.choose("a/b", NETWORKS) != first


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("10.96.0.1", "allocated already, to a/a"),
        ("10.97.0.1", "in no service CIDR"),
        ("x", "is no IP address"),
    ],
)
def test_addresses_that_cannot_be_had(text: str, reason: str) -> None:
    addresses = Addresses()
    assert addresses.request("a/a", "10.96.0.1", NETWORKS) == "10.96.0.1"
    with pytest.raises(ApiError, match=reason) as caught:
        addresses.request("a/b", text, NETWORKS)
    assert caught.value.code == 422


def test_a_second_network_is_used_when_the_first_is_full() -> None:
    addresses = Addresses()
    networks = [*NETWORKS, ip_network("10.99.0.0/24")]
    assert [addresses.choose("a/a", networks) for _ in range(7)][-1] == "10.99.0.1"


def test_one_holder_may_have_a_port_once_for_each_protocol() -> None:
    ports = NodePorts()
    ports.request("a/dns", "TCP", 30053)
    ports.request("a/dns", "UDP", 30053)
    for holder, protocol in (("a/dns", "UDP"), ("a/b", "SCTP")):
        with pytest.raises(ApiError, match="allocated already, to a/dns"):
            ports.request(holder, protocol, 30053)
    ports.release("TCP", 30053)
    ports.release("UDP", 30053)
    ports.request("a/b", "SCTP", 30053)


def test_ports_come_from_the_range() -> None:
    ports = NodePorts(range(30000, 30003))
    with pytest.raises(ApiError, match="valid ports are 30000-30002"):
        ports.request("a/a", "TCP", 80)
    ports.request("a/a", "TCP", 30001)
    assert [ports.choose("a/b", "TCP") for _ in range(2)] == [30000, 30002]
    with pytest.raises(ApiError, match="the range is full"):
        ports.choose("a/b", "TCP")
    ports.release("TCP", 30000)
    ports.release("TCP", 29999)
    assert ports.choose("a/b", "TCP") == 30000
