"""The kernel's rules for one pod, held against what they should be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from daemon.compile.policy_tables import PolicyTables
from daemon.compile.policy_verdict import Flow
from datapath.desired import Fragment
from datapath.netlink.transport import NETLINK_NETFILTER, Socket
from datapath.nft.policy import TABLE
from datapath.nft.policy_inspection import inspect
from datapath.policy import Direction
from tests.unit.daemon.compile.town import block, packed, pods, shop

if TYPE_CHECKING:
    from tests.functional.nft.spaces import Space
    from tests.functional.policies.site import Site

pytestmark = pytest.mark.root

DB, WEB = "weft-shop-db", "weft-shop-web"
INGRESS: list[dict[str, Any]] = [
    {"from": [pods("app=web"), block("192.0.2.0/24")], "ports": [{"port": 80}]},
    {"ports": [{"port": "http"}]},
]


class Programmed:
    """A town's policies in a real kernel."""

    def __init__(self, node: Site) -> None:
        self.space: Space = node.router
        self.town = shop()
        self.town.policy("shop/p", "app=db", ingress=INGRESS)
        self.model = self.town.models["here"]
        self.tables = PolicyTables()
        taken = self.tables.take(self.model, self.model.changes())
        node.program(each for each in taken.values() if isinstance(each, Fragment))

    def faults(self, source: str = "10.244.1.10", link: str = DB, port: int = 80) -> tuple[str, ...]:
        subject = self.model.subjects[link]
        flow = Flow(packed(source), subject.addresses[0 if "." in source else 1], 6, port)
        expected = self.tables.expected(self.model, subject, Direction.INGRESS, flow)
        with Socket(NETLINK_NETFILTER, namespace=self.space.descriptor) as socket:
            return inspect(socket, expected)


@pytest.fixture
def programmed(node: Site) -> Programmed:
    return Programmed(node)


def test_what_was_programmed_agrees(programmed: Programmed) -> None:
    for source in ("10.244.1.10", "192.0.2.1", "8.8.8.8", "fd00:0:0:1::10"):
        for port in (80, 8080, 81):
            assert programmed.faults(source, port=port) == ()
    assert programmed.faults(link=WEB) == (), "who is not isolated is not isolated there either"


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("delete table ip {table}", "the pod is not isolated there"),
        ("flush map ip {table} ingress-subjects", "the pod is not isolated there"),
        ("flush set ip {table} {peers}", "set {peers} lacks the address or port there"),
        ("add element ip {table} tunnels {{ 10.244.1.10 }}", "set tunnels holds the address or port there"),
        ("insert rule ip {table} {policy} accept", "chain {policy} has other rules there"),
        ("add rule ip {table} {dispatch} accept", "chain {dispatch} has other rules there"),
    ],
)
def test_what_somebody_changed_is_found(programmed: Programmed, command: str, fault: str) -> None:
    subject = programmed.model.subjects[DB]
    flow = Flow(packed("10.244.1.10"), subject.addresses[0], 6, 80)
    expected = programmed.tables.expected(programmed.model, subject, Direction.INGRESS, flow)
    assert expected.dispatch is not None
    names = {
        "table": TABLE,
        "peers": next(name for name, _, _ in expected.members if name.startswith("peers")),
        "policy": expected.chains[0].name,
        "dispatch": expected.dispatch.name,
    }
    programmed.space.nft(command.format(**names))
    assert programmed.faults() == (fault.format(**names),)


def test_elements_of_blocks_and_ports_are_looked_at(programmed: Programmed) -> None:
    listed = programmed.space.run("nft", "list", "table", "ip", TABLE)
    (ports,) = [
        line.split()[1]
        for line in listed.splitlines()
        if line.startswith("\tset ports-") and "interval" in listed.split(line)[1].split("}")[0]
    ]
    programmed.space.nft(f"flush set ip {TABLE} {ports}")
    assert programmed.faults() == (f"set {ports} has other elements there",)
