"""Whatever JSON the API server sends, decoding gives a well-formed value or a DecodeError."""

from __future__ import annotations

import ipaddress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from daemon.cluster import decode
from daemon.cluster.decode import DecodeError

ADDRESSES = st.one_of(st.ip_addresses().map(str), st.text(max_size=20), st.integers(), st.none())
NETWORKS = st.one_of(
    st.tuples(st.ip_addresses(), st.integers(0, 128)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
    st.text("0123456789abcdef.:/", max_size=30),
    st.none(),
)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=10,
)
NODES = st.fixed_dictionaries(
    {},
    optional={
        "metadata": st.one_of(
            JSON,
            st.fixed_dictionaries(
                {"name": st.one_of(st.text(max_size=5), JSON)},
                optional={
                    "uid": JSON,
                    "annotations": st.one_of(
                        JSON, st.dictionaries(st.just(decode.UNDERLAY_ANNOTATION), ADDRESSES)
                    ),
                },
            ),
        ),
        "spec": st.one_of(
            JSON,
            st.fixed_dictionaries(
                {},
                optional={"podCIDR": NETWORKS, "podCIDRs": st.one_of(JSON, st.lists(NETWORKS, max_size=3))},
            ),
        ),
        "status": st.one_of(
            JSON,
            st.fixed_dictionaries(
                {},
                optional={
                    "addresses": st.lists(
                        st.one_of(
                            JSON, st.fixed_dictionaries({"type": st.just("InternalIP"), "address": ADDRESSES})
                        ),
                        max_size=4,
                    ),
                    "capacity": st.one_of(JSON, st.fixed_dictionaries({"pods": JSON})),
                    "conditions": JSON,
                },
            ),
        ),
    },
)


@given(NODES)
def test_a_node_decodes_to_well_formed_values_or_to_an_error(raw: dict[str, Any]) -> None:
    try:
        node = decode.node(raw)
    except DecodeError:
        return
    assert node.name
    assert len({len(address) for address in node.internal_ips}) == len(node.internal_ips)
    assert len({len(address) for address in node.underlay}) == len(node.underlay)
    assert node.max_pods >= 0
    for address in (*node.internal_ips, *node.underlay):
        value = ipaddress.ip_address(address)
        assert not value.is_unspecified
        assert not value.is_loopback
        assert not value.is_multicast
    for prefix in node.pod_cidrs:
        # Raises where host bits are left.
        assert ipaddress.ip_network((prefix.address, prefix.length)).prefixlen == prefix.length > 0
    assert decode.node(raw) == node


@given(st.ip_addresses())
def test_an_address_keeps_its_value(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    plain = getattr(address, "ipv4_mapped", None) or address
    assert decode.address(str(address)) == plain.packed


@given(st.ip_addresses(v=4), st.integers(1, 32))
def test_a_prefix_loses_its_host_bits(address: ipaddress.IPv4Address, length: int) -> None:
    network = ipaddress.ip_network((address, length), strict=False)
    assert decode.prefix(f"{address}/{length}") == (network.network_address.packed, length)
