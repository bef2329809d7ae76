"""What all tests share: tests marked `root` are skipped without root, and in CI they fail then.

None leaves its logging to the next, whichever that is: workers divide the tests among them.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import pytest
import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail before any fixture is made; a skip in CI would hide that nothing was tested."""
    if item.get_closest_marker("root") is None or os.geteuid() == 0:
        return
    if os.environ.get("CI"):
        pytest.fail("this test needs root, and CI must run it: start pytest as root", pytrace=False)
    pytest.skip("network namespaces and nftables need root")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Undo `daemon.logs.configure`: its stream is the test's own and is closed after it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
