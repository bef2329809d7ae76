"""Builds the shim once per session, plainly and with sanitizers; each test gets a directory of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.functional.shim.program import Shim, build

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("shim"), "all", "sanitized")


@pytest.fixture
def shim(built: Path, tmp_path: Path) -> Shim:
    return Shim(built / "weft", tmp_path)


@pytest.fixture
def sanitized(built: Path, tmp_path: Path) -> Shim:
    return Shim(built / "weft-sanitized", tmp_path)
