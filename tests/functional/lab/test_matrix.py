"""The matrix sees what is wrong: a matrix that cannot turn red shows nothing."""

import pytest

from tests.functional.lab_cluster import LabCluster

pytestmark = pytest.mark.root

_TABLE = "table inet foe {{\n chain c {{\n type {kind} hook {hook} priority {priority};\n {rule};\n }}\n}}"


def disturb(lab: LabCluster, kind: str, hook: str, priority: int, rule: str) -> list[str]:
    """The faults that the matrix finds while another table on node-1 does harm."""
    table = _TABLE.format(kind=kind, hook=hook, priority=priority, rule=rule)
    lab.sh("node-1", f"nft '{table}'")
    try:
        return lab.faults()
    finally:
        lab.sh("node-1", "nft delete table inet foe")


def test_a_dropped_protocol(lab: LabCluster) -> None:
    faults = disturb(lab, "filter", "forward", -500, "meta nfproto ipv6 udp dport 8080 drop")
    assert faults
    assert all("IPv6 udp: no answer" in fault and "-1" in fault for fault in faults)


def test_a_translated_source(lab: LabCluster) -> None:
    faults = disturb(lab, "nat", "postrouting", -150, "meta nfproto ipv4 oifname weft.vxlan masquerade")
    assert faults
    assert all("source seen is 10.244.0.0, must be" in fault for fault in faults)


def test_a_path_that_takes_no_full_packets(lab: LabCluster) -> None:
    faults = disturb(lab, "filter", "forward", -500, "meta nfproto ipv4 meta length 1450 drop")
    assert faults
    assert all("full size passes" in fault and "IPv4" in fault for fault in faults)
