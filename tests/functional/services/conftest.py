"""One site for all tests of this folder; after each it must be in line, and nothing left on packets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.functional.nft.world import world as built_world
from tests.functional.services.calls import Servers
from tests.functional.services.site import Site

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def shared_site() -> Iterator[Site]:
    with built_world() as world:
        yield Site(world)


@pytest.fixture
def site(shared_site: Site) -> Iterator[Site]:
    shared_site.clear()
    yield shared_site
    shared_site.assert_in_line()
    assert shared_site.count("escaped", "marked", "prioritized") == 0


@pytest.fixture
def servers() -> Iterator[Servers]:
    with Servers() as made:
        yield made
