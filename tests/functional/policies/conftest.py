"""One site for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.functional.policies.site import site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.functional.policies.site import Site


@pytest.fixture
def node() -> Iterator[Site]:
    with site() as made:
        yield made
