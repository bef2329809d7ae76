"""What all tests share: tests marked `root` are skipped without root, and in CI they fail then."""

from __future__ import annotations

import os

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail before any fixture is made; a skip in CI would hide that nothing was tested."""
    if item.get_closest_marker("root") is None or os.geteuid() == 0:
        return
    if os.environ.get("CI"):
        pytest.fail("this test needs root, and CI must run it: start pytest as root", pytrace=False)
    pytest.skip("network namespaces and nftables need root")
