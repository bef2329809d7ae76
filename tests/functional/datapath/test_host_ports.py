"""Host ports of an attachment in the kernel: they come before its link and are gone when it is detached."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from datapath import attachment as wiring
from datapath.desired import Fragment
from datapath.errors import AttachError, NamespaceGoneError
from datapath.kernel import Kernel, attachment_fragment, attachment_key
from datapath.nft.connection import Nft
from datapath.nft.hostports import HostPort
from datapath.nft.tables import TableOptions, node_tables
from datapath.sync import Sync
from datapath.text import parse_address
from tests.functional.datapath.conftest import NODE4, remembered, request, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datapath.attachment import Attached, Attachment, AttachRequest
    from tests.functional.datapath.conftest import Node

LINK = "weft00000000005"
LOCALNET = f"net.ipv4.conf.{LINK}.route_localnet"
WEB = HostPort(b"", 6, 8080, 80)
DNS = HostPort(parse_address(NODE4), 17, 53, 5353)


@pytest.fixture
def sync(node: Node) -> Iterator[Sync]:
    with Nft() as nft:
        made = Sync(node.host, nft)
        made.complete = True
        made.change({("local",): Fragment(tables=node_tables(TableOptions()))})
        finish(made)
        yield made


def finish(sync: Sync) -> None:
    for _ in range(10_000):
        if sync.idle:
            return
        sync.step()
    raise AssertionError("it never ends")


def exposed(node: Node, *ports: HostPort, number: int = 5) -> AttachRequest:
    return replace(request(node.pod(), number), ports=ports or (WEB, DNS))


def known(made: AttachRequest) -> Attachment:
    return replace(remembered(made), ports=made.ports)


def maps() -> str:
    """All elements of host ports, and that the ruleset can be listed at all."""
    assert "host-port" in run("nft list ruleset")
    return "".join(
        run(f"nft list map {family} weft {name}")
        for family in ("ip", "ip6")
        for name in ("host-ports", "host-ports-at")
    )


def test_they_come_and_go_with_the_attachment(sync: Sync, node: Node) -> None:
    kernel = Kernel(sync, lambda: None)
    made = exposed(node)
    kernel.attach(made)
    kernel.settle()
    held = maps()
    for words in (
        "tcp . 8080 : 10.0.0.5 . 80",
        "tcp . 8080 : fd00::5 . 80",
        f"{NODE4} . udp . 53 : 10.0.0.5 . 5353",
    ):
        assert words in held
    assert run(f"sysctl -n {LOCALNET}").strip() == "1"
    assert sync.difference() == ()
    assert kernel.inspect(known(made)) == ()
    kernel.detach(known(made))
    assert " : 10.0.0.5" not in maps()
    assert "fd00::5" not in maps()
    assert sync.difference() == ()


def test_they_are_there_before_the_link(sync: Sync, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def attach(*arguments: Any, **options: Any) -> Attached:
        seen.append("tcp . 8080 : 10.0.0.5 . 80" in maps() and LINK not in run("ip link"))
        return real(*arguments, **options)

    real = wiring.attach
    monkeypatch.setattr(wiring, "attach", attach)
    kernel = Kernel(sync, lambda: None)
    kernel.attach(exposed(node))
    kernel.settle()
    assert seen == [True]


def test_only_who_is_reached_by_loopback_routes_to_it(sync: Sync, node: Node) -> None:
    kernel = Kernel(sync, lambda: None)
    for number, ports in ((5, (DNS,)), (6, ()), (7, (WEB,))):
        kernel.attach(exposed(node, *ports, number=number) if ports else request(node.pod(), number))
        kernel.settle()
        path = f"net.ipv4.conf.weft{number:011x}.route_localnet"
        assert run(f"sysctl -n {path}").strip() == ("1" if WEB in ports else "0")


def test_a_pod_that_cannot_be_wired_leaves_none(sync: Sync, node: Node) -> None:
    kernel = Kernel(sync, lambda: None)
    with pytest.raises(NamespaceGoneError):
        kernel.attach(replace(exposed(node), netns="/run/netns/none"))
    assert "10.0.0.5" not in maps()
    with pytest.raises(AttachError):
        kernel.attach(replace(exposed(node), mtu=1))
    assert "10.0.0.5" not in maps()


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        ("nft flush map ip weft host-ports", "host port tcp 8080 (IPv4) does not lead to the pod"),
        ("nft flush map ip6 weft host-ports", "host port tcp 8080 (IPv6) does not lead to the pod"),
        ("nft flush map ip weft host-ports-at", f"host port udp 53 at {NODE4} does not lead to the pod"),
        ("nft delete table ip6 weft", "host port tcp 8080 (IPv6) does not lead to the pod"),
        (f"sysctl -qw {LOCALNET}=0", "the node does not reach the pod by 127.0.0.1"),
    ],
)
def test_what_is_missing_is_named_and_repaired(sync: Sync, node: Node, damage: str, fault: str) -> None:
    kernel = Kernel(sync, lambda: None)
    made = exposed(node)
    kernel.attach(made)
    kernel.settle()
    run(damage)
    (found,) = kernel.inspect(known(made))
    assert fault in found
    sync.read_again(prune=True)
    finish(sync)
    assert kernel.inspect(known(made)) == ()


def test_a_port_that_leads_elsewhere_is_a_fault(sync: Sync, node: Node) -> None:
    kernel = Kernel(sync, lambda: None)
    made = exposed(node, WEB)
    kernel.attach(made)
    kernel.settle()
    other = replace(known(made), ports=(WEB._replace(target_port=81),))
    assert len(kernel.inspect(other)) == 2


def test_the_kernel_tells_which_ports_lead_where(sync: Sync, node: Node) -> None:
    kernel = Kernel(sync, lambda: None)
    assert kernel.host_ports() == {}
    kernel.attach(exposed(node))
    kernel.settle()
    kernel.attach(exposed(node, WEB._replace(port=81), number=6))
    kernel.settle()
    found = kernel.host_ports()
    assert set(found[bytes((10, 0, 0, 5))]) == {WEB._replace(host_address=bytes(4)), DNS}
    assert found[parse_address("fd00::6")] == (HostPort(bytes(16), 6, 81, 80),)
    run("nft delete table ip weft")
    assert bytes((10, 0, 0, 5)) not in kernel.host_ports()


def test_a_daemon_that_returns_finds_nothing_to_do(sync: Sync, node: Node) -> None:
    made = exposed(node)
    kernel = Kernel(sync, lambda: None)
    kernel.attach(made)
    kernel.settle()
    with Nft() as nft:
        successor = Sync(node.host, nft)
        successor.complete = True
        fragment = attachment_fragment(known(made), made.sources)
        successor.change(
            {
                ("local",): Fragment(tables=node_tables(TableOptions())),
                attachment_key(made.host_link): fragment,
            }
        )
        finish(successor)
        done = successor.take_round()
        assert (done.steps, done.drift) == (0, [])
        assert successor.difference() == ()
