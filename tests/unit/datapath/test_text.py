"""Addresses in text and packed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath import text

addresses = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)


@given(addresses)
def test_addresses_come_back(packed: bytes) -> None:
    assert text.parse_address(text.address(packed)) == packed


@given(addresses, st.data())
def test_prefixes_come_back(packed: bytes, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, 8 * len(packed)))
    assert text.parse_prefix(text.prefix(packed, length)) == (packed, length)


@given(st.binary(min_size=6, max_size=6))
def test_mac_addresses_come_back(packed: bytes) -> None:
    assert text.parse_mac(text.mac(packed)) == packed


@pytest.mark.parametrize(
    "wrong", ["", "10.0.0", "10.0.0.256", "::1::", "fe80::1%eth0", "10.0.0.1/8", "x", "1\0"]
)
def test_what_is_no_address(wrong: str) -> None:
    with pytest.raises(ValueError, match="is no IP address"):
        text.parse_address(wrong)


@pytest.mark.parametrize(
    "wrong", ["10.0.0.0", "10.0.0.0/", "10.0.0.0/33", "::/129", "10.0.0.0/-1", "::/²", "10.0.0.0/8 "]
)
def test_what_is_no_prefix(wrong: str) -> None:
    with pytest.raises(ValueError, match="is no prefix"):
        text.parse_prefix(wrong)


@pytest.mark.parametrize(
    "wrong", ["", "02:00:00:00:00", "02-00-00-00-00-01", "2:0:0:0:0:1", "02:00:00:00:00:0g"]
)
def test_what_is_no_mac_address(wrong: str) -> None:
    with pytest.raises(ValueError, match="is no MAC address"):
        text.parse_mac(wrong)


@pytest.mark.parametrize("wrong", [b"", b"123", b"12345", b"x" * 17])
def test_packed_values_of_another_length(wrong: bytes) -> None:
    with pytest.raises(ValueError, match="is no address"):
        text.address(wrong)
    with pytest.raises(ValueError, match="is no MAC address"):
        text.mac(wrong)
