"""The sync state step by step: what jobs do between two steps is neither lost nor undone."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from datapath.attachment import Attachment
from datapath.desired import Fragment, Route, SetElements, VxlanLink
from datapath.errors import AttachError, NetlinkError
from datapath.kernel import Kernel, attachment_fragment, attachment_key
from datapath.nft.connection import Nft
from datapath.nft.tables import NODES, SOURCES, TABLE, TableOptions, node_tables
from datapath.sync import CHUNK, FRAGMENTS, Sync
from datapath.text import parse_address
from tests.functional.datapath.conftest import remembered, request, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datapath.desired import FragmentKey
    from tests.functional.datapath.conftest import Node

LOCAL = Fragment(tables=node_tables(TableOptions()))
LINK = VxlanLink("weft.vxlan", 5, 4789, bytes((2, 0, 0, 0, 0, 1)), parse_address("192.0.2.1"), 1400)


@pytest.fixture
def sync(node: Node) -> Iterator[Sync]:
    with Nft() as nft:
        made = Sync(node.host, nft)
        made.complete = True
        made.change({("local",): LOCAL})
        finish(made)
        yield made


def finish(sync: Sync) -> int:
    """Do everything; returns how many pieces that took."""
    for pieces in range(10_000):
        if sync.idle:
            return pieces
        sync.step()
    raise AssertionError("it never ends")


def routes(count: int) -> dict[FragmentKey, Fragment | None]:
    return {
        ("node", str(number)): Fragment((Route(bytes((10, number >> 8, number & 255, 0)), 24, "lo"),))
        for number in range(count)
    }


def test_a_pod_attached_between_any_two_pieces_stays_attached(sync: Sync, node: Node) -> None:
    kernel = Kernel(sync, lambda: None)
    sync.read_again(prune=True)
    number = 1
    while not sync.idle:
        kernel.attach(request(node.pod(), number))
        kernel.settle()
        sync.step()
        number += 1
    assert number > 5
    assert sync.take_round().drift == []
    assert sync.difference() == ()
    assert run("ip route show").count("10.0.0.") == number - 1


def test_what_nobody_waits_for_is_left_to_settle(sync: Sync, node: Node) -> None:
    """Until then the pod is wired and may send, its descriptors are open; the sync state does not know it."""
    kernel = Kernel(sync, lambda: None)
    wanted = request(node.pod(), 1)
    key, before = attachment_key(wanted.host_link), set(os.listdir("/proc/self/fd"))
    kernel.expect((wanted,))
    kernel.attach(wanted)
    assert sync.desired.get(key) is None
    assert f'"{wanted.host_link}" . 10.0.0.1' in run(f"nft list set ip {TABLE} {SOURCES}")
    assert f"10.0.0.1 dev {wanted.host_link}" in run("ip route show")
    assert len(set(os.listdir("/proc/self/fd")) - before) == 2
    kernel.settle()
    assert sync.desired.get(key) == attachment_fragment(remembered(wanted), wanted.sources)
    assert set(os.listdir("/proc/self/fd")) == before
    kernel.settle()
    assert sync.difference() == ()
    assert sync.idle


def test_a_pod_that_goes_at_once_leaves_nothing(sync: Sync, node: Node) -> None:
    kernel = Kernel(sync, lambda: None)
    wanted = request(node.pod(), 1)
    kernel.attach(wanted)
    kernel.detach(remembered(wanted))
    kernel.settle()
    assert sync.desired.get(attachment_key(wanted.host_link)) is None
    assert sync.difference() == ()


def test_descriptors_of_a_pod_that_cannot_be_wired_are_closed_too(sync: Sync, node: Node) -> None:
    kernel = Kernel(sync, lambda: None)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(AttachError):
        kernel.attach(replace(request(node.pod(), 1), mtu=1))
    kernel.settle()
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_pod_detached_between_any_two_pieces_stays_detached(sync: Sync, node: Node) -> None:
    kernel = Kernel(sync, lambda: None)
    made = [request(node.pod(), number) for number in range(1, 6)]
    for each in made:
        kernel.attach(each)
        kernel.settle()
    sync.take_round()
    sync.read_again(prune=True)
    left = list(made)
    while not sync.idle:
        if left:
            kernel.detach(remembered(left.pop()))
        sync.step()
    assert not left
    assert sync.take_round().drift == []
    assert sync.difference() == ()
    assert "10.0.0." not in run("ip route") + run("nft list ruleset")


def test_work_is_cut_into_bounded_pieces(sync: Sync) -> None:
    sync.change(routes(3000))
    assert sync.waiting == 3000
    assert finish(sync) >= 3000 // FRAGMENTS + 3000 // CHUNK
    assert sync.waiting == 0
    assert len(run("ip route show proto 119").splitlines()) == 3000


def test_a_later_change_overtakes_what_waits(sync: Sync) -> None:
    sync.change(routes(1000))
    while not sync.known or len(run("ip route show proto 119").splitlines()) < CHUNK:
        sync.step()
    sync.change(dict.fromkeys(routes(1000)))
    finish(sync)
    assert run("ip route show proto 119") == ""
    assert sync.difference() == ()


def test_a_link_made_anew_has_everything_replayed(sync: Sync) -> None:
    on_it: dict[FragmentKey, Fragment | None] = {
        ("node", str(number)): Fragment((Route(bytes((10, 7, number, 0)), 24, "weft.vxlan"),))
        for number in range(CHUNK + 10)
    }
    sync.change({("link",): Fragment((LINK,)), **on_it})
    finish(sync)
    run("ip link del weft.vxlan")
    sync.read_again(prune=True)
    finish(sync)
    assert sync.difference() == ()
    drift = sync.take_round().drift
    assert {each.action for each in drift} == {"missing"}
    assert len(drift) == len(on_it) + 1


def test_pruning_takes_what_nobody_wants_and_only_then(sync: Sync) -> None:
    run("ip route add 10.99.0.0/24 dev lo proto 119")
    run("ip route append unreachable 10.99.0.0/24 proto 119")
    sync.read_again(prune=False)
    finish(sync)
    assert run("ip route show proto 119").count("10.99.0.0") == 2
    sync.read_again(prune=True)
    finish(sync)
    assert run("ip route show proto 119") == ""


def test_nftables_is_left_alone_until_the_desired_state_is_whole(node: Node) -> None:
    run("nft add table ip weft")
    run("nft add set ip weft mine { type ipv4_addr; }")
    with Nft() as nft:
        sync = Sync(node.host, nft)
        sync.change({("local",): LOCAL})
        finish(sync)
        assert "mine" in run("nft list ruleset")
        assert "postrouting" not in run("nft list ruleset")
        sync.complete = True
        finish(sync)
        assert "mine" not in run("nft list ruleset")
        assert "postrouting" in run("nft list ruleset")


def test_a_refused_transaction_is_a_failure_until_the_next_reading(
    sync: Sync, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NetlinkError(12, "no")

    elements = SetElements((2, TABLE), NODES, {bytes((192, 0, 2, 7)): b""})
    monkeypatch.setattr(Nft, "commit", refuse)
    sync.change({("sets",): Fragment(elements=(elements,))})
    finish(sync)
    assert list(sync.failures) == ["nftables"]
    monkeypatch.undo()
    sync.read_again(prune=True)
    finish(sync)
    assert sync.failures == {}
    assert "192.0.2.7" in run("nft list set ip weft nodes")


def test_a_pod_of_before_is_known_by_its_fragment(sync: Sync, node: Node) -> None:
    kernel = Kernel(sync, lambda: None)
    kernel.detach(Attachment("weft0000000000a", "/none", "eth0", bytes(6), 1450, (bytes((10, 0, 0, 9)),)))
    assert attachment_key("weft0000000000a") not in sync.fragments()
    wanted = request(node.pod(), 9)
    kernel.attach(wanted)
    kernel.settle()
    assert attachment_key(wanted.host_link) in sync.fragments()


def test_a_stray_pod_link_is_handed_to_the_reaper(node: Node) -> None:
    woken: list[bool] = []
    run("ip link add weft0123456789a type veth peer name far")
    with Nft() as nft:
        sync = Sync(node.host, nft, lambda: woken.append(True))
        sync.read_again(prune=True)
        finish(sync)
    assert woken
    node.reap()
    assert "weft0123456789a" not in run("ip link")
