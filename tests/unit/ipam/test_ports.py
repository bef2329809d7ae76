"""Host ports as text and as claims."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from ipam.ports import ANY, PortMapping, claims, read, write

TCP, UDP, SCTP = 6, 17, 132
FOUR, SIX = bytes((192, 0, 2, 1)), bytes.fromhex("20010db8") + bytes(11) + b"\x01"

numbers = st.integers(1, 65535)
hosts = st.one_of(st.just(b""), st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16))
mappings = st.builds(PortMapping, hosts, st.sampled_from((TCP, UDP, SCTP)), numbers, numbers)


@pytest.mark.parametrize(
    ("port", "text"),
    [
        (PortMapping(b"", TCP, 8080, 80), "8080->80/tcp"),
        (PortMapping(FOUR, UDP, 53, 5353), "192.0.2.1:53->5353/udp"),
        (PortMapping(SIX, SCTP, 1, 65535), "[2001:db8::1]:1->65535/sctp"),
        (PortMapping(ANY[4], TCP, 80, 80), "0.0.0.0:80->80/tcp"),
        (PortMapping(ANY[16], TCP, 80, 80), "[::]:80->80/tcp"),
    ],
)
def test_text(port: PortMapping, text: str) -> None:
    assert write((port,)) == text
    assert read(text) == (port,)


def test_none_is_an_empty_text() -> None:
    assert write(()) == ""
    assert read("") == ()


@given(st.lists(mappings, max_size=4).map(tuple))
def test_text_is_read_as_it_was_written(ports: tuple[PortMapping, ...]) -> None:
    assert read(write(ports)) == ports


@pytest.mark.parametrize(
    "text",
    ["x", "80->80", "80/tcp", "80->80/icmp", "80->80/tcp,", "0->80/tcp", "80->65536/tcp", "1.2.3:80->80/tcp"],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read(text)


def test_a_port_at_every_address_claims_both_families() -> None:
    port = PortMapping(b"", TCP, 80, 8080)
    assert claims((port,), (4, 16)) == {(ANY[4], TCP, 80): port, (ANY[16], TCP, 80): port}
    assert claims((port,), (16,)) == {(ANY[16], TCP, 80): port}


def test_a_port_of_a_family_that_the_pod_lacks_claims_nothing() -> None:
    four, six = PortMapping(FOUR, TCP, 80, 80), PortMapping(ANY[16], TCP, 80, 80)
    assert claims((four, six), (4,)) == {(FOUR, TCP, 80): four}
    assert claims((four, six), (16,)) == {(ANY[16], TCP, 80): six}


def test_address_protocol_and_number_tell_claims_apart() -> None:
    ports = (
        PortMapping(b"", TCP, 80, 1),
        PortMapping(b"", UDP, 80, 2),
        PortMapping(FOUR, TCP, 80, 3),
        PortMapping(b"", TCP, 81, 4),
    )
    assert len(claims(ports, (4,))) == 4
