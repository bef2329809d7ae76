"""Two or three nodes with pods; everything here needs root."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import pytest

from daemon.config import Config
from tests.functional.overlay.segment import Segment, node, ping

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.functional.overlay.segment import Member, Pod

FAMILIES = {"4": ("192.168.7.{}/24", "10.244.{}.0/24"), "6": ("fd07::{}/64", "fd44:0:0:{}::/64")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
    for item in items:
        if "functional/overlay" in str(item.path):
            item.add_marker(pytest.mark.root)
            item.add_marker(reason)


class Pair:
    """Nodes a and b, each with a pod."""

    def __init__(self, segment: Segment, underlay: str, inner: str) -> None:
        self.segment = segment
        self.underlay, self.inner = underlay, inner
        self.a: Member = segment.members["a"]
        self.b: Member = segment.members["b"]
        self.pods: dict[str, Pod] = {}

    def node(self, name: str, number: int, *, address: int | None = None) -> Any:
        """The Node object of node `number`; `address` is another last part of its InternalIPs."""
        ips = [FAMILIES[each][0].format(address or number).split("/")[0] for each in self.underlay]
        return node(name, ips=ips, cidrs=[FAMILIES[each][1].format(number) for each in self.inner])

    async def connected(self) -> bool:
        """Whether the pods reach each other over every family, both ways."""
        mine, theirs = self.pods["a"], self.pods["b"]
        for family, address in theirs.addresses.items():
            if not await ping(mine.space, address) or not await ping(theirs.space, mine.addresses[family]):
                return False
        return True


@pytest.fixture
async def pair() -> AsyncIterator[Callable[..., Any]]:
    """Makes a pair: overlay mode, families of the underlay, families of pods, further configuration."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(overlay: str = "vxlan", underlay: str = "46", inner: str = "46", **more: Any) -> Pair:
            segment = Segment()
            stack.callback(segment.close)
            config = Config(overlay=overlay, **more)  # type: ignore[arg-type]
            for number, name in enumerate("ab", start=1):
                addresses = [FAMILIES[each][0].format(number) for each in underlay]
                segment.add(name, addresses=addresses, config=config)
            made = Pair(segment, underlay, inner)
            segment.publish(made.node("a", 1), made.node("b", 2))
            stack.push_async_callback(segment.stop)
            await segment.start()
            for name, member in segment.members.items():
                made.pods[name] = await member.pod()
            return made

        yield make
