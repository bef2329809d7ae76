"""One world for all tests of this folder: they leave the nodes' rules as they found them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.functional.nft.spaces import spaces
from tests.functional.nft.world import world as built_world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.functional.nft.spaces import Space
    from tests.functional.nft.world import World


@pytest.fixture(scope="session")
def shared_world() -> Iterator[World]:
    with built_world() as made:
        yield made


@pytest.fixture
def world(shared_world: World) -> Iterator[World]:
    yield shared_world
    for node in (shared_world.a, shared_world.b):
        shared_world.program(node)


@pytest.fixture
def space() -> Iterator[Space]:
    with spaces("alone") as (made,):
        yield made
