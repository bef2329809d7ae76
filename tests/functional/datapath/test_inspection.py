"""Each kind of fault of an attachment is found and named; what later plugins change is none."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from datapath.attachment import attach, detach
from datapath.inspection import inspect
from tests.functional.datapath.conftest import remembered, request, run

if TYPE_CHECKING:
    from tests.functional.datapath.conftest import Node

LINK = "weft00000000005"


@pytest.mark.parametrize("families", ["4", "6", "46"])
def test_a_fresh_attachment_has_no_fault(node: Node, families: str) -> None:
    made = request(node.pod(), families=families)
    attach(node.host, made)
    assert inspect(node.host, remembered(made)) == ()


@pytest.mark.parametrize(
    ("damage", "faults"),
    [
        (f"ip link del {LINK}", (f"the node has no link {LINK}",)),
        (f"ip route del 10.0.0.5 dev {LINK}", (f"the node has no route to 10.0.0.5 by {LINK}",)),
        (f"ip -6 route del fd00::5 dev {LINK}", (f"the node has no route to fd00::5 by {LINK}",)),
        (
            f"ip addr del 169.254.1.1/32 dev {LINK}",
            (f"the node's link {LINK} lacks the gateway's address 169.254.1.1", "*"),
        ),
        (
            f"ip addr del fe80::1/128 dev {LINK}",
            (f"the node's link {LINK} lacks the gateway's address fe80::1",),
        ),
        (
            f"ip neigh replace 10.0.0.5 dev {LINK} lladdr 02:00:00:00:00:99 nud permanent",
            ("the node sends to 10.0.0.5 at 02:00:00:00:00:99, but the pod has 02:00:00:00:00:05",),
        ),
        ("POD link set eth0 down", (f"the node's link {LINK} has no carrier: its other end is down", "*")),
        ("POD link del eth0", (f"the node has no link {LINK}",)),
        ("POD addr del 10.0.0.5/32 dev eth0", ("eth0 in NETNS has no address 10.0.0.5", "*")),
        ("POD addr del fd00::5/128 dev eth0", ("eth0 in NETNS has no address fd00::5", "*")),
        ("POD route del default", ("NETNS has no default route 0.0.0.0/0",)),
        ("POD -6 route del default", ("NETNS has no default route ::/0",)),
        (
            "POD neigh replace 169.254.1.1 dev eth0 lladdr 02:00:00:00:00:99 nud permanent",
            ("NETNS sends to 169.254.1.1 at 02:00:00:00:00:99, which no link of the node has",),
        ),
    ],
)
def test_a_fault_is_named(node: Node, damage: str, faults: tuple[str, ...]) -> None:
    made = request(node.pod())
    attach(node.host, made)
    run(damage.replace("POD", f"ip -n {os.path.basename(made.netns)}"))
    found = inspect(node.host, remembered(made))
    expected = tuple(fault.replace("NETNS", made.netns) for fault in faults)
    if expected[-1] == "*":
        assert set(expected[:-1]) <= set(found)
    else:
        assert found == expected


def test_a_link_that_is_down_loses_all_it_had(node: Node) -> None:
    made = request(node.pod(), families="4")
    attach(node.host, made)
    run(f"ip link set {LINK} down")
    found = inspect(node.host, remembered(made))
    assert f"the node's link {LINK} is down" in found
    assert f"the node has no route to 10.0.0.5 by {LINK}" in found


def test_another_interface_of_the_same_name(node: Node) -> None:
    made = request(node.pod())
    attach(node.host, made)
    name = os.path.basename(made.netns)
    run(f"ip -n {name} link set eth0 name moved")
    assert inspect(node.host, remembered(made)) == (f"{made.netns} has no interface eth0",)
    run(f"ip -n {name} link add eth0 type veth peer name other")
    assert f"eth0 in {made.netns} is not the other end of {LINK}" in inspect(node.host, remembered(made))


def test_a_namespace_that_is_gone(node: Node) -> None:
    made = request(node.pod())
    attach(node.host, made)
    keeper = os.open(made.netns, os.O_RDONLY)
    run(f"ip netns delete {os.path.basename(made.netns)}")
    found = inspect(node.host, remembered(made))
    os.close(keeper)
    assert found == (f"there is no network namespace at {made.netns}: its sandbox was removed",)


def test_a_detached_link_is_none(node: Node) -> None:
    made = request(node.pod())
    attach(node.host, made)
    detach(node.host, remembered(made))
    assert inspect(node.host, remembered(made)) == (f"the node has no link {LINK}",)


def test_what_later_plugins_change_is_no_fault(node: Node) -> None:
    made = request(node.pod())
    attach(node.host, made)
    pod = f"ip -n {os.path.basename(made.netns)}"
    run(f"{pod} link set eth0 address 02:00:00:00:00:77")
    run(f"{pod} link set eth0 mtu 1300")
    run(f"{pod} addr add 10.9.9.9/24 dev eth0")
    run(f"{pod} route add 10.8.0.0/16 dev eth0")
    run("ping -c1 -W1 10.0.0.5")
    assert inspect(node.host, remembered(made)) == ()
