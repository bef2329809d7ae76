"""Arithmetic over a pod CIDR and the choice of the next address."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from ipam.pool import Pool, Usage, shortfall

SECOND = 1_000_000_000
A, B = b"\x0a\x00\x00\x02", b"\x0a\x00\x00\x03"


def pool(text: str) -> Pool:
    network = ip_network(text)
    return Pool(network.network_address.packed, network.prefixlen)


@pytest.mark.parametrize(
    ("cidr", "size"),
    [("10.0.0.0/24", 253), ("10.0.0.0/30", 1), ("10.0.0.0/31", 0), ("10.0.0.0/32", 0), ("fd00::/126", 2)],
)
def test_size_counts_what_can_be_handed_out(cidr: str, size: int) -> None:
    own = pool(cidr)
    assert own.size == size
    if own.bits - own.length <= 8:
        everything = [own.address(offset) for offset in range(1 << (own.bits - own.length))]
        assert sum(map(own.hands_out, everything)) == size


def test_network_gateway_and_broadcast_are_never_handed_out() -> None:
    own = pool("10.1.2.0/24")
    for refused in ("10.1.2.0", "10.1.2.1", "10.1.2.255", "10.1.1.255", "10.1.3.0", "::10"):
        assert not own.hands_out(ip_address(refused).packed)
    assert own.hands_out(ip_address("10.1.2.2").packed)
    assert own.hands_out(ip_address("10.1.2.254").packed)


def test_ipv6_has_no_broadcast_and_its_size_is_not_enumerated() -> None:
    own = pool("fd00:1::/64")
    assert own.size == 2**64 - 2
    assert own.hands_out(ip_address("fd00:1::ffff:ffff:ffff:ffff").packed)


def test_offset_and_address_are_inverse() -> None:
    own = pool("10.1.2.0/24")
    assert own.offset(own.address(77)) == 77
    assert own.text == "10.1.2.0/24"


@pytest.mark.parametrize(("network", "length"), [(b"\x0a\x00\x00\x01", 24), (b"\x0a", 8), (bytes(4), 33)])
def test_what_is_no_prefix_is_refused(network: bytes, length: int) -> None:
    with pytest.raises(ValueError, match=r"no prefix|host bits"):
        Pool(network, length)


def test_shortfall_names_pools_smaller_than_max_pods() -> None:
    small, large = pool("10.0.0.0/25"), pool("fd00::/64")
    assert shortfall((small, large), 125) == ()
    assert shortfall((small, large), 126) == (small,)


def test_free_is_what_is_neither_used_nor_cooling() -> None:
    assert Usage(pool("10.0.0.0/24"), 253, 200, 10).free == 43
