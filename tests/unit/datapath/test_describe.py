from __future__ import annotations

from datapath.describe import Difference, describe, differences, kind
from datapath.desired import Neighbour, PodLink, Route, RouteKind, Sysctl, VxlanLink, object_key
from datapath.diff import Action, Step

ROUTE = Route(bytes((10, 0, 0, 0)), 24, "eth0")
OTHER = Route(bytes((10, 0, 0, 0)), 24, "eth1", bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2)), metric=5)


def test_objects_read_like_the_commands_that_make_them() -> None:
    link = VxlanLink("weft.vxlan", 5, 4789, bytes((2, 0, 0, 0, 0, 1)), b"", 1450, tx_checksum=False, up=False)
    assert describe(link) == (
        "weft.vxlan vxlan id 5 dstport 4789 local none address 02:00:00:00:00:01 mtu 1450 "
        "tx-checksum off down"
    )
    assert describe(OTHER) == "10.0.0.0/24 via 192.0.2.1 dev eth1 src 192.0.2.2 metric 5"
    assert describe(Route(bytes(16), 0, None, kind=RouteKind.UNREACHABLE)) == "unreachable ::/0"
    assert describe(PodLink("weft0")) == "weft0 up"
    assert describe(Sysctl("a/b", "1")) == "a/b = 1"
    assert describe(Sysctl("a/b", "1", least=True)) == "a/b >= 1"
    assert kind(Neighbour("l", b"", b"")) == "neighbour"


def test_differences_say_what_is_wrong() -> None:
    key = object_key(ROUTE)
    steps = [
        Step(Action.ADD, key, None, ROUTE),
        Step(Action.REPLACE, key, OTHER, ROUTE),
        Step(Action.DELETE, key, ROUTE, None),
    ]
    assert differences(steps) == (
        Difference("route", "missing", "10.0.0.0/24 dev eth0"),
        Difference(
            "route",
            "changed",
            "10.0.0.0/24 dev eth0 (found: 10.0.0.0/24 via 192.0.2.1 dev eth1 src 192.0.2.2 metric 5)",
        ),
        Difference("route", "stale", "10.0.0.0/24 dev eth0"),
    )
