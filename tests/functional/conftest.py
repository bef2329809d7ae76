"""What functional tests share: the mark of those that need root, and one lab cluster for all that use it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from lab.options import default_shim
from tests.functional.lab_cluster import LabCluster

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabCluster]:
    """Three nodes with two pods each, dual-stack, VXLAN; use it through `lab`."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if not default_shim().is_file():
        pytest.fail(f"{default_shim()} is missing: run `make shim` first")
    config = {"cooldownSeconds": 1, "logLevel": "debug"}
    with LabCluster(tmp_path_factory.mktemp("lab") / "state", config=config) as lab:
        for number in (1, 2, 3):
            lab.add_pods(f"pod-{number}a", f"pod-{number}b", node=f"node-{number}")
        yield lab


@pytest.fixture
def lab(shared_lab: LabCluster) -> Iterator[LabCluster]:
    """The shared lab, healthy before and after the test."""
    yield shared_lab
    shared_lab.restore()
    shared_lab.healthy()
