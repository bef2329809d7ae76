"""Denied packets from the kernel's rules to us."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING

import pytest

from datapath.errors import NetlinkError
from datapath.netns import entered
from datapath.nft.connection import Nft
from datapath.nft.policy import DenialLog
from datapath.packetlog import PacketLog
from datapath.policy import Direction
from datapath.probe import log_refusal
from tests.functional.policies.site import ADDRESSES
from tests.functional.policies.test_counters import fragments
from tests.unit.daemon.compile.town import packed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datapath.packetlog import DeniedPacket
    from tests.functional.policies.site import Site

pytestmark = pytest.mark.root

LOG = DenialLog(1193, 5)
SECONDS = 0.5


class Heard:
    """What the log delivers."""

    def __init__(self) -> None:
        self.packets: queue.SimpleQueue[list[DeniedPacket]] = queue.SimpleQueue()

    def all(self) -> list[DeniedPacket]:
        found: list[DeniedPacket] = []
        while True:
            try:
                found += self.packets.get(timeout=SECONDS)
            except queue.Empty:
                return found


@pytest.fixture
def node(node: Site) -> Site:
    refusal = log_refusal(LOG)
    if refusal:
        pytest.skip(f"this kernel can't log packets to nflog: {refusal}")
    node.program(fragments(LOG))
    return node


@pytest.fixture
def heard(node: Site) -> Iterator[Heard]:
    made = Heard()
    log = PacketLog(LOG.group, made.packets.put, namespace=node.router.descriptor)
    log.start()
    yield made
    log.stop()
    log.stop()


@pytest.mark.parametrize("family", [0, 1])
def test_a_denied_packet_is_told_with_its_ports_and_an_allowed_one_is_not(
    node: Site, heard: Heard, family: int
) -> None:
    node.send(2, family=family, port=53)
    node.send(1, family=family, port=54)
    (found,) = heard.all()
    assert found.direction is Direction.INGRESS
    assert found.source == packed(ADDRESSES["client"][family])
    assert found.destination == packed(ADDRESSES["server"][family])
    assert (found.protocol, found.destination_port) == (17, 54)
    assert found.source_port > 0


def test_the_kernel_tells_no_more_than_the_rate(node: Site, heard: Heard) -> None:
    node.send(200, port=54)
    assert LOG.rate <= len(heard.all()) <= 4 * LOG.rate


def test_a_group_has_one_owner(node: Site, heard: Heard) -> None:
    other = PacketLog(LOG.group, lambda _: None, namespace=node.router.descriptor)
    with pytest.raises(NetlinkError, match="nflog group 1193"):
        other.start()
    another = PacketLog(LOG.group + 1, lambda _: None, namespace=node.router.descriptor)
    another.start()
    another.stop()


def test_a_group_is_free_after_the_end(node: Site) -> None:
    for _ in range(2):
        made = Heard()
        log = PacketLog(LOG.group, made.packets.put, namespace=node.router.descriptor)
        log.start()
        node.send(1, port=54)
        assert [each.destination_port for each in made.all()] == [54]
        log.stop()
    node.send(1, port=54)
    assert made.all() == []


def test_trying_touches_nothing(node: Site) -> None:
    with entered(node.router.descriptor), Nft() as nft:
        before = nft.generation()
        assert log_refusal(LOG) == ""
        assert nft.generation() == before
