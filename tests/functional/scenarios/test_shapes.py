"""Clusters of other shapes than the usual one: families, overlays, segments, MTU."""

from pathlib import Path
from typing import Any

import pytest

from tests.functional.lab_cluster import LabCluster

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param({"overlay": "direct", "nodes": 2}, id="direct routes"),
        pytest.param({"overlay": "auto", "nodes": 4, "segments": 2}, id="direct and VXLAN mixed"),
        pytest.param({"family": "ipv4", "underlay_family": "ipv4", "nodes": 2}, id="IPv4 only"),
        pytest.param({"family": "ipv6", "underlay_family": "ipv6", "nodes": 2}, id="IPv6 only"),
        pytest.param(
            {"family": "dual", "underlay_family": "ipv4", "nodes": 2}, id="IPv6 pods over IPv4 nodes"
        ),
        pytest.param(
            {"family": "ipv4", "underlay_family": "ipv6", "nodes": 2}, id="IPv4 pods over IPv6 nodes"
        ),
        pytest.param(
            {"mtu": 9000, "nodes": 2, "rp_filter": 0, "routes": "none"}, id="jumbo frames, bare nodes"
        ),
    ],
)
def test_everybody_reaches_everybody(tmp_path: Path, shape: dict[str, Any]) -> None:
    with LabCluster(tmp_path / "state", **shape) as lab:
        lab.add_pods(*(f"pod-{number}" for number in range(2 * shape["nodes"])))
        lab.wait(lambda: not lab.differences(), "kernels as desired", 5)
        assert lab.faults() == []
        lab.healthy()
