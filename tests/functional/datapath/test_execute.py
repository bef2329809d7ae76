"""Steps become what `ip`, `bridge` and `ethtool` list; refusals are told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from datapath.attachment import attach
from datapath.desired import (
    FdbEntry,
    LinkAddress,
    Neighbour,
    PodLink,
    Route,
    RouteKind,
    Sysctl,
    VxlanLink,
    object_key,
)
from datapath.diff import Action, Step, diff
from datapath.ethtool import set_tx_checksum, tx_checksum
from datapath.execute import execute
from datapath.observe import Observer
from datapath.text import parse_address, parse_mac
from tests.functional.datapath.conftest import request, run

if TYPE_CHECKING:
    from datapath.desired import KernelObject
    from datapath.execute import Outcome
    from tests.functional.datapath.conftest import Node

MAC, PEER = parse_mac("02:00:00:00:00:01"), parse_mac("02:00:00:00:00:02")
LINK = VxlanLink("weft.vxlan", 5, 4789, MAC, parse_address("192.0.2.1"), 1400)
ON_IT: tuple[KernelObject, ...] = (
    Sysctl("net/ipv4/conf/weft.vxlan/rp_filter", "2"),
    LinkAddress("weft.vxlan", parse_address("10.1.0.0"), 32),
    LinkAddress("weft.vxlan", parse_address("fd01::"), 128),
    Neighbour("weft.vxlan", parse_address("10.2.0.0"), PEER),
    Neighbour("weft.vxlan", parse_address("fd02::"), PEER),
    FdbEntry("weft.vxlan", PEER, parse_address("192.0.2.2")),
    *(
        Route(to, bits, "weft.vxlan", to, source, onlink=True)
        for to, bits, source in (
            (parse_address("10.2.0.0"), 24, parse_address("10.1.0.0")),
            (parse_address("fd02::"), 64, parse_address("fd01::")),
        )
    ),
    Route(parse_address("10.1.0.0"), 24, None, kind=RouteKind.UNREACHABLE),
    Route(parse_address("fd01::"), 64, None, kind=RouteKind.UNREACHABLE),
)


def state(*values: KernelObject) -> dict[object, KernelObject]:
    return {object_key(value): value for value in values}


def bring(node: Node, *values: KernelObject, strict: bool = True) -> Outcome:
    """Bring the kernel from what it holds to these objects."""
    settings = [value for value in values if isinstance(value, Sysctl)]
    observed = Observer(node.host).read(settings)
    outcome = execute(node.host, diff(state(*values), observed.objects), observed.indexes)  # type: ignore[arg-type]
    if strict and not outcome.failed and not outcome.blocked:
        assert Observer(node.host).read(settings).objects == state(*values)
    return outcome


def test_everything_is_written_and_read_back_the_same(node: Node) -> None:
    outcome = bring(node, LINK, *ON_IT)
    assert outcome.failed == {}
    assert outcome.blocked == set()
    assert outcome.stale
    assert "weft.vxlan" in run("ip -d link show weft.vxlan")
    assert "fe80" not in run("ip addr show weft.vxlan")


def test_the_same_again_is_no_step(node: Node) -> None:
    bring(node, LINK, *ON_IT)
    assert bring(node, LINK, *ON_IT).done == []


def test_everything_goes_again(node: Node) -> None:
    bring(node, LINK, *ON_IT)
    assert bring(node).failed == {}
    assert "weft" not in run("ip link")
    assert run("ip route show proto 119") == ""


@pytest.mark.parametrize(
    "other",
    [
        VxlanLink("weft.vxlan", 6, 4789, MAC, parse_address("192.0.2.1"), 1400),
        VxlanLink("weft.vxlan", 5, 4790, MAC, parse_address("192.0.2.1"), 1400),
        VxlanLink("weft.vxlan", 5, 4789, MAC, parse_address("192.0.2.9"), 1400),
        VxlanLink("weft.vxlan", 5, 4789, MAC, parse_address("fd00:ffff::1"), 1400),
        VxlanLink("weft.vxlan", 5, 4789, PEER, parse_address("192.0.2.1"), 1400),
        VxlanLink("weft.vxlan", 5, 4789, MAC, parse_address("192.0.2.1"), 1399, tx_checksum=False),
    ],
)
def test_a_changed_link_keeps_what_is_on_it(node: Node, other: VxlanLink) -> None:
    on_it = [value for value in ON_IT if not isinstance(value, FdbEntry)]
    bring(node, LINK, *on_it)
    outcome = bring(node, other, *on_it, strict=other.mac == MAC)
    # What the kernel drops with a new MAC address is found by the reading that is asked for.
    assert outcome.stale
    assert bring(node, other, *on_it).failed == {}
    assert bring(node, other, *on_it).done == []


def test_a_link_of_our_name_that_is_no_vxlan_link_gives_way(node: Node) -> None:
    run("ip link add weft.vxlan type veth peer name foreign0")
    assert bring(node, LINK, *ON_IT).failed == {}


def test_one_refusal_stops_no_other(node: Node) -> None:
    bad = Route(parse_address("10.9.0.0"), 24, "lo", source=parse_address("203.0.113.9"))
    good = Route(parse_address("10.8.0.0"), 24, "lo")
    outcome = bring(node, bad, good)
    assert [step.new for step in outcome.done] == [good]
    assert list(outcome.failed) == [object_key(bad)]


def test_what_has_no_link_waits(node: Node) -> None:
    values = (
        Route(parse_address("10.9.0.0"), 24, "eth7"),
        Sysctl("net/ipv4/conf/weft0123456789a/forwarding", "1"),
        PodLink("weft0123456789a"),
    )
    outcome = bring(node, *values)
    assert outcome.blocked == set(state(*values))
    assert outcome.failed == {}


def test_deleting_what_is_not_there_is_success(node: Node) -> None:
    bring(node, LINK, *ON_IT)
    observed = Observer(node.host).read()
    steps = [Step(Action.DELETE, key, value, None) for key, value in reversed(observed.objects.items())]
    assert execute(node.host, steps, dict(observed.indexes)).failed == {}
    outcome = execute(node.host, steps, dict(observed.indexes))
    assert outcome.failed == {}
    assert len(outcome.done) == len(steps)


def test_a_wrong_index_asks_for_a_new_reading(node: Node) -> None:
    route = Route(parse_address("10.9.0.0"), 24, "eth7")
    steps = [Step(Action.ADD, object_key(route), None, route)]
    outcome = execute(node.host, steps, {"eth7": 9999})
    assert outcome.blocked == {object_key(route)}
    assert outcome.stale


def test_a_pods_link_is_brought_up_and_a_stray_one_doomed(node: Node) -> None:
    wanted = request(node.pod())
    attach(node.host, wanted)
    run(f"ip link set {wanted.host_link} down")
    down, up = PodLink(wanted.host_link, up=False), PodLink(wanted.host_link)
    indexes = dict(Observer(node.host).read().indexes)
    execute(node.host, [Step(Action.REPLACE, object_key(up), down, up)], indexes)
    assert "state UP" in run(f"ip link show {wanted.host_link}")
    execute(node.host, [Step(Action.DELETE, object_key(up), up, None)], indexes)
    assert object_key(up) not in Observer(node.host).read().objects
    node.reap()
    assert wanted.host_link not in run("ip link")


def test_offload_is_switched_off_and_on(node: Node) -> None:
    bring(node, LINK)
    assert tx_checksum("weft.vxlan")
    set_tx_checksum("weft.vxlan", enabled=False)
    assert not tx_checksum("weft.vxlan")
    set_tx_checksum("weft.vxlan", enabled=True)
    assert tx_checksum("weft.vxlan")


def test_a_port_held_by_a_program_is_named(node: Node) -> None:
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
        program.bind(("0.0.0.0", 4789))
        outcome = bring(node, LINK)
    (error,) = outcome.failed.values()
    assert "UDP port 4789 (VNI 5) is held by another program" in str(error)
