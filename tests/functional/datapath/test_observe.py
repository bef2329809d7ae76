"""What `ip`, `bridge` and sysctl write is read back as values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datapath.describe import describe
from datapath.desired import RouteKind, Sysctl, VxlanLink
from datapath.observe import Observer
from tests.functional.datapath.conftest import request, run

if TYPE_CHECKING:
    from tests.functional.datapath.conftest import Node

VXLAN = "type vxlan id 5 dstport 4789 local 192.0.2.1"
COMMANDS = (
    f"ip link add weft.vxlan address 02:00:00:00:00:01 mtu 1450 {VXLAN} nolearning",
    "ip link set weft.vxlan addrgenmode none",
    "ip link set weft.vxlan up",
    "ip addr add 10.1.0.0/32 dev weft.vxlan",
    "ip addr add fd01::/128 dev weft.vxlan nodad",
    "ip neigh add 10.2.0.0 lladdr 02:00:00:00:00:02 dev weft.vxlan nud permanent",
    "ip neigh add 10.3.0.0 lladdr 02:00:00:00:00:03 dev weft.vxlan nud reachable",
    "ip neigh add fd02:: lladdr 02:00:00:00:00:02 dev weft.vxlan nud permanent",
    "bridge fdb append 02:00:00:00:00:02 dst 192.0.2.2 dev weft.vxlan",
    "ip route add 10.2.0.0/24 via 10.2.0.0 dev weft.vxlan onlink src 10.1.0.0 proto 119",
    "ip route add fd02::/64 via fd02:: dev weft.vxlan onlink proto 119 metric 7",
    "ip route add unreachable 10.1.0.0/24 proto 119",
    "ip route add 10.9.0.0/24 dev weft.vxlan proto static",
    "ip route add 10.8.0.0/24 dev weft.vxlan proto 119 table 77",
    "ip link add weft0123456789a type veth peer name far",
    "ip link add wefty type veth peer name other",
)  # fmt: skip


def make() -> None:
    for command in COMMANDS:
        run(command)


def test_ours_is_read_and_nothing_else(node: Node) -> None:
    make()
    observed = Observer(node.host).read([Sysctl("net/ipv4/ip_forward", "anything"), Sysctl("net/none", "1")])
    words = sorted(describe(value) for value in observed.objects.values())
    assert words == sorted(
        [
            "weft.vxlan vxlan id 5 dstport 4789 local 192.0.2.1 address 02:00:00:00:00:01 mtu 1450",
            "weft0123456789a down",
            "10.1.0.0/32 dev weft.vxlan",
            "fd01::/128 dev weft.vxlan",
            "10.2.0.0 lladdr 02:00:00:00:00:02 dev weft.vxlan",
            "fd02:: lladdr 02:00:00:00:00:02 dev weft.vxlan",
            "02:00:00:00:00:02 dst 192.0.2.2 dev weft.vxlan",
            "10.2.0.0/24 via 10.2.0.0 dev weft.vxlan src 10.1.0.0 onlink",
            "fd02::/64 via fd02:: dev weft.vxlan metric 7 onlink",
            "unreachable 10.1.0.0/24",
            "net/ipv4/ip_forward = 1",
        ]
    )
    assert observed.extras == []
    assert "wefty" in observed.indexes


def test_reading_again_gives_the_same_and_sees_changes(node: Node) -> None:
    make()
    observer = Observer(node.host)
    before = observer.read().objects
    assert observer.read().objects == before
    run("ip route replace 10.2.0.0/24 via 10.2.0.1 dev weft.vxlan onlink proto 119")
    changed = observer.read().objects
    assert {key for key in before if changed.get(key) != before[key]} == {
        key for key, value in before.items() if getattr(value, "gateway", None) == bytes((10, 2, 0, 0))
    }


def test_a_link_that_was_made_anew_is_not_taken_for_the_old_one(node: Node) -> None:
    make()
    observer = Observer(node.host)
    observer.read()
    run("ip link del weft.vxlan")
    run("ip link add weft.vxlan type vxlan id 5 dstport 4789 local 192.0.2.1 nolearning")
    run("ip link set weft.vxlan up")
    run("ip route add 10.2.0.0/24 dev lo proto 119")
    words = {describe(value) for value in observer.read().objects.values()}
    assert "10.2.0.0/24 dev lo" in words
    assert not any("10.2.0.0/24" in each and "vxlan" in each for each in words)


def test_what_is_no_vxlan_link_of_our_kind_compares_with_none(node: Node) -> None:
    for options in (VXLAN, "type vxlan external dstport 4789", "type veth"):
        run(f"ip link add weft.vxlan {options}")
        observed = Observer(node.host).read()
        (link,) = [value for value in observed.objects.values() if isinstance(value, VxlanLink)]
        assert link.vni == -1
        run("ip link del weft.vxlan")


def test_objects_that_share_a_key_are_told_apart(node: Node) -> None:
    run("ip route add 10.2.0.0/24 dev lo proto 119")
    run("ip route append unreachable 10.2.0.0/24 proto 119")
    observed = Observer(node.host).read()
    kinds = [value.kind for value in (*observed.objects.values(), *observed.extras) if hasattr(value, "kind")]
    assert sorted(kinds) == [RouteKind.UNICAST, RouteKind.UNREACHABLE]
    assert len(observed.extras) == 1


def test_a_detached_link_is_not_ours_any_more(node: Node) -> None:
    from datapath.attachment import attach, detach
    from tests.functional.datapath.conftest import remembered

    wanted = request(node.pod())
    attach(node.host, wanted)
    observer = Observer(node.host)
    assert any(wanted.host_link in describe(value) for value in observer.read().objects.values())
    detach(node.host, remembered(wanted))
    assert not any(wanted.host_link in describe(value) for value in observer.read().objects.values())
