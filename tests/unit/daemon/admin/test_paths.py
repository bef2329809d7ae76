"""How a node is reached, as weftctl nodes tells it."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.admin.paths import path
from daemon.cluster.model import Node, Prefix
from daemon.compile.local import LocalNetwork, Underlay, Vtep, vtep_mac

HERE, NEAR, FAR = bytes([172, 20, 0, 2]), bytes([172, 20, 0, 3]), bytes([172, 21, 0, 3])
SIX = b"\xfd" + bytes(14) + b"\x02"
OWN = Prefix(bytes([10, 1, 1, 0]), 24)
THEIRS = Prefix(bytes([10, 1, 2, 0]), 24)
THEIRS6 = Prefix(b"\xfd\x02" + bytes(14), 64)
MAC = bytes([2, 0, 0, 0, 0, 1])


def local(overlay: Any) -> LocalNetwork:
    return LocalNetwork(
        node_name="n1",
        internal_ips=(HERE,),
        pod_cidrs=(OWN,),
        sources=(HERE,),
        mtu=1450,
        overlay=overlay,
        vni=4096,
        port=4789,
        tx_checksum=True,
        underlays={4: Underlay("eth0", HERE, 1500, ((bytes([172, 20, 0, 0]), 24),))},
        vteps={4: Vtep("weft.vxlan", MAC, HERE, 1450)},
        tunnel_addresses={4: OWN.address},
    )


def node(*addresses: bytes, name: str = "n2", cidrs: tuple[Prefix, ...] = (THEIRS,)) -> Node:
    return Node(name, f"uid-{name}", addresses, cidrs)


def test_this_node() -> None:
    found = path(local("vxlan"), node(HERE, name="n1", cidrs=(OWN,)))
    assert (found.kind, found.mac, found.problem) == ("local", MAC, "")


@pytest.mark.parametrize(
    ("overlay", "address", "kind"),
    [("vxlan", NEAR, "vxlan"), ("auto", NEAR, "direct"), ("auto", FAR, "vxlan"), ("direct", NEAR, "direct")],
)
def test_others(overlay: str, address: bytes, kind: str) -> None:
    found = path(local(overlay), node(address))
    assert (found.kind, found.problem) == (kind, "")
    assert found.mac == (vtep_mac("n2", 4) if kind == "vxlan" else None)


def test_families_may_differ() -> None:
    assert path(local("auto"), node(NEAR, cidrs=(THEIRS, THEIRS6))).kind == "direct+vxlan"


def test_one_that_cannot_be_reached_says_why() -> None:
    found = path(local("direct"), node(FAR))
    assert found.kind == "none"
    assert "172.21.0.3 is not on the segment of eth0" in found.problem
    assert path(local("vxlan"), node(SIX)).kind == "none"
    assert path(local("vxlan"), node(NEAR, cidrs=())).problem == "its Node has no podCIDR yet"
    assert "not known yet" in path(None, node(NEAR)).problem
