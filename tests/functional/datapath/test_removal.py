"""Taking everything of ours out of a real namespace: as it was before, with what others have in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from datapath import removal
from datapath.desired import Fragment, LinkAddress, Route, RouteKind, VxlanLink
from datapath.kernel import Kernel
from datapath.nft.connection import Nft
from datapath.nft.tables import TableOptions, node_tables
from datapath.sync import Sync
from datapath.text import parse_address
from tests.functional.datapath.conftest import remembered, request, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.functional.datapath.conftest import Node

LINK = VxlanLink("weft.vxlan", 5, 4789, bytes((2, 0, 0, 0, 0, 1)), parse_address("192.0.2.1"), 1400)
NETWORK = Fragment(
    tables=node_tables(TableOptions()),
    objects=(
        LINK,
        LinkAddress(LINK.name, parse_address("10.1.1.0"), 32),
        Route(parse_address("10.1.2.0"), 24, LINK.name, gateway=parse_address("10.1.2.0"), onlink=True),
        Route(parse_address("10.1.1.0"), 24, None, kind=RouteKind.UNREACHABLE),
        Route(parse_address("fd00:1::"), 64, None, kind=RouteKind.UNREACHABLE),
    ),
)
FOREIGN = (
    "ip link add weft-like type bridge",
    "ip link set weft-like up",
    "ip route add 10.9.0.0/16 dev weft-like",
    "ip route add unreachable 10.8.0.0/16 proto 118",
    "nft add table ip theirs",
    "nft add table inet weft-like",
)


def look() -> str:
    """Links, addresses, routes and rules as text."""
    parts = ("ip -br link", "ip -br addr", "ip route show table all", "ip -6 route show table all")
    return "\n".join(run(part) for part in (*parts, "nft list ruleset"))


@pytest.fixture
def nft(node: Node) -> Iterator[Nft]:
    with Nft() as opened:
        yield opened


def finish(sync: Sync) -> None:
    sync.complete = True
    while not sync.idle:
        sync.step()
    assert not sync.failures


def test_everything_of_ours_goes_and_everything_of_others_stays(node: Node, nft: Nft) -> None:
    for command in FOREIGN:
        run(command)
    before = look()
    sync = Sync(node.host, nft)
    sync.change({("local",): NETWORK})
    finish(sync)
    kernel = Kernel(sync, lambda: None)
    for number in (1, 2, 3):
        kernel.attach(request(node.pod(), number))
        kernel.settle()
    kernel.detach(remembered(request("/run/netns/none", 3)))

    found = removal.find(node.host, nft)
    assert found
    assert sorted(found.pods) == [request("", number).host_link for number in (1, 2)]
    assert found.links == (LINK.name,)
    assert {"10.1.1.0/24", "10.1.2.0/24", "fd00:1::/64"} <= set(found.routes)
    assert len(found.tables) == 2

    removal.remove_links(node.host, found.pods)
    removal.remove_links(node.host, found.links)
    removal.remove_routes(node.host)
    removal.remove_tables(nft)
    assert not removal.find(node.host, nft)
    assert look() == before


def test_where_nothing_is_nothing_happens(node: Node, nft: Nft) -> None:
    before = look()
    assert not removal.find(node.host, nft)
    removal.remove_links(node.host, ["weft.vxlan"])
    removal.remove_routes(node.host)
    removal.remove_tables(nft)
    assert look() == before
