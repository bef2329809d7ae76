"""The attachment as text in its link's alias."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipam.alias import LIMIT, is_alias, read, write
from ipam.errors import AliasError
from ipam.record import AttachmentKey, Record

RECORD = Record(
    key=AttachmentKey("weft", "a" * 64, "eth0"),
    netns="/var/run/netns/cni-01234567-89ab-cdef-0123-456789abcdef",
    host_link="weft0123456789a",
    mac=bytes.fromhex("0a0b0c0d0e0f"),
    mtu=1450,
    addresses=(ip_address("10.244.1.17").packed, ip_address("fd00:10:244:1::11").packed),
    pod_namespace="kube-system",
    pod_name="coredns-5d78c9869d-abcde",
)
NAMES = st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,40}", fullmatch=True)
ADDRESSES = st.one_of(
    st.tuples(st.binary(min_size=4, max_size=4)),
    st.tuples(st.binary(min_size=16, max_size=16)),
    st.tuples(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)),
)


def test_what_containerd_gives_fits_whole() -> None:
    text = write(RECORD)
    assert text == (
        f"weft1 weft {'a' * 64} eth0 0a0b0c0d0e0f 10.244.1.17,fd00:10:244:1::11 "
        "kube-system/coredns-5d78c9869d-abcde /var/run/netns/cni-01234567-89ab-cdef-0123-456789abcdef"
    )
    assert len(text) <= LIMIT


@given(
    NAMES,
    NAMES,
    st.from_regex(r"[a-z0-9.\-_é]{1,15}", fullmatch=True),
    st.binary(min_size=6, max_size=6),
    ADDRESSES,
)
def test_reading_gives_back_what_was_written(
    network: str, container: str, ifname: str, mac: bytes, addresses: tuple[bytes, ...]
) -> None:
    record = replace(
        RECORD,
        key=AttachmentKey(network, container, ifname),
        mac=mac,
        addresses=addresses,
        netns="/run/netns/a b",
    )
    text = write(record)
    assert is_alias(text)
    found = read(text)
    assert (found.key, found.mac, found.addresses) == (record.key, mac, addresses)
    assert found.netns in (record.netns, "")
    assert (found.pod_namespace, found.pod_name) in (("kube-system", "coredns-5d78c9869d-abcde"), ("", ""))


def test_a_long_namespace_path_is_left_out() -> None:
    found = read(write(replace(RECORD, netns="/run/netns/" + "x" * 200)))
    assert found.netns == ""
    assert found.key == RECORD.key
    assert found.pod_name == RECORD.pod_name


@pytest.mark.parametrize("name", ["n" * 253, "", "a b", "a/b"])
def test_a_pod_that_does_not_fit_is_left_out(name: str) -> None:
    found = read(write(replace(RECORD, pod_name=name)))
    assert (found.pod_namespace, found.pod_name, found.netns) == ("", "", RECORD.netns)


def test_a_namespace_path_with_control_characters_is_left_out() -> None:
    assert read(write(replace(RECORD, netns="/run/netns/a\nb"))).netns == ""


def test_a_name_too_long_is_refused_with_the_remedy() -> None:
    long = replace(RECORD, key=AttachmentKey("n" * 200, "a" * 64, "eth0"))
    with pytest.raises(AliasError, match="shorter"):
        write(long)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "weft",
        "weft2 weft c eth0 0a0b0c0d0e0f 10.0.0.1 -",
        "weft1 weft c eth0 0a0b0c0d0e0 10.0.0.1 -",
        "weft1 weft c eth0 0a0b0c0d0e0f 10.0.0.256 -",
        "weft1 weft c eth0 0a0b0c0d0e0f 10.0.0.1",
        "weft1 weft c eth0 0a0b0c0d0e0f 10.0.0.1,10.0.0.2 -",
        "weft1 weft c eth0 0a0b0c0d0e0f 10.0.0.1,fd00::1,fd00::2 -",
        "weft1 weft c eth0 0a0b0c0d0e0f 10.0.0.1 - netns",
        "weft1 weft c eth0 0a0b0c0d0e0f 10.0.0.1 pod /run/netns/a",
        "weft1 weft c eth0 0a0b0c0d0e0f 10.0.0.1 default/ /run/netns/a",
        "weft1 weft c  0a0b0c0d0e0f 10.0.0.1 -",
        "weft1 we/ft c eth0 0a0b0c0d0e0f 10.0.0.1 -",
        " weft1 weft c eth0 0a0b0c0d0e0f 10.0.0.1 -",
        "weft1 weft c eth0 0a0b0c0d0e0f 10.0.0.1 - /" + "x" * 255,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(AliasError):
        read(text)


def test_foreign_aliases_are_told_apart() -> None:
    assert not is_alias("uplink to rack 3")
    assert is_alias("weft2 of a version to come")
