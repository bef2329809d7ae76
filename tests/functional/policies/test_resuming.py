"""What is under way meets the cut mark; what lost its tracking is resumed by who called, and nobody else."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from datapath import marking
from datapath.desired import Fragment
from datapath.marking import Ends, Found
from datapath.netlink.ctnetlink import decode_flow, del_flow, get_flows
from datapath.netlink.transport import NETLINK_NETFILTER, Socket
from datapath.nft.policy import (
    CUT_MARK,
    FAMILIES,
    dispatch_chain,
    policy_chains,
    policy_table,
    subject_elements,
)
from datapath.policy import Direction, Rule, Rules
from datapath.text import parse_address
from tests.functional.policies.site import ADDRESSES, LINKS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.functional.policies.site import Site

IN, OUT = Direction.INGRESS, Direction.EGRESS
PORT = 4242
FAMILY = pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
KIND = pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"])


def isolate(node: Site, pod: str, direction: Direction, *rules: Rule) -> None:
    """Isolate a pod in a direction, in which these rules allow something."""
    tables, names = [], {}
    for family in FAMILIES:
        chains = policy_chains("shop/p", direction, family, Rules(rules, rules))
        dispatch = dispatch_chain(direction, [chains])
        tables.append(policy_table(family, chains.sets, (chains.chain, dispatch)))
        names[family, direction] = dispatch.name
    node.program([Fragment(elements=subject_elements(LINKS[pod], names), tables=tuple(tables))])


class Talk:
    """A connection from the client to the server."""

    def __init__(self, node: Site, family: int, kind: int, stack: contextlib.ExitStack) -> None:
        where = (ADDRESSES["server"][family], PORT)
        what = (socket.AF_INET, socket.AF_INET6)[family]
        server = stack.enter_context(node.server.socket(what, kind))
        server.bind(where)
        self.caller = stack.enter_context(node.client.socket(what, kind))
        self.caller.settimeout(3)
        if kind == socket.SOCK_STREAM:
            server.listen()
            self.caller.connect(where)
            self.called = stack.enter_context(server.accept()[0])
        else:
            self.caller.connect(where)
            self.caller.send(b"?")
            server.settimeout(3)
            self.called = server
            self.called.connect(server.recvfrom(1)[1])
        for each in (self.caller, self.called):
            each.settimeout(0.3)
        assert self.goes_on()

    def asks(self, text: bytes = b"?") -> bool:
        """Whether what the caller says arrives."""
        return _says(self.caller, self.called, text)

    def answers(self, text: bytes = b"!") -> bool:
        """Whether what the called one says arrives."""
        return _says(self.called, self.caller, text)

    def goes_on(self) -> bool:
        return self.asks() and self.answers()


def _says(one: socket.socket, other: socket.socket, text: bytes) -> bool:
    one.send(text)
    try:
        return other.recv(len(text)) == text
    except TimeoutError:
        return False


TRACKING = """
table inet tracking {
    chain forwarded { type filter hook forward priority 0; ct state new counter; }
    chain sent { type filter hook output priority 0; ct state new counter; }
}
"""


@pytest.fixture
def flows(node: Site) -> Iterator[Socket]:
    node.router.nft(TRACKING)
    with Socket(NETLINK_NETFILTER, namespace=node.router.descriptor) as opened:
        yield opened


def ends(family: int, kind: int) -> Ends:
    client, server = (parse_address(ADDRESSES[each][family]) for each in ("client", "server"))
    return Ends(client, server, 6 if kind == socket.SOCK_STREAM else 17, PORT)


def mark(node: Site, flows: Socket, wanted: dict[Ends, bool]) -> tuple[int, int]:
    addresses = {parse_address(each) for each in ADDRESSES["server"]}
    with Socket(NETLINK_NETFILTER, namespace=node.router.descriptor) as writing:
        return marking.write(flows, writing, addresses, CUT_MARK, wanted)


def lose(flows: Socket) -> int:
    """Have everything forgotten that is tracked."""
    listed = list(flows.stream(get_flows(), "flows"))
    assert flows.batch_collect([del_flow(each) for each in listed], "flows") == []
    return len(listed)


@FAMILY
@KIND
def test_what_bears_the_mark_is_cut_and_goes_on_without_it(
    node: Site, flows: Socket, family: int, kind: int
) -> None:
    isolate(node, "server", IN, Rule())
    about = ends(family, kind)
    with contextlib.ExitStack() as stack:
        talk = Talk(node, family, kind, stack)
        found = marking.read(flows, {about.destination}, CUT_MARK)
        assert found == {about: Found(marked=False, unmarked=True)}
        assert marking.read(flows, {parse_address("10.9.2.9")}, CUT_MARK) == {}
        assert mark(node, flows, {about: True}) == (1, 0)
        assert mark(node, flows, {about: True}) == (0, 0)
        assert not talk.answers()
        assert not talk.asks()
        assert marking.read(flows, None, CUT_MARK) == {about: Found(marked=True, unmarked=False)}
        assert mark(node, flows, {about: False, about._replace(port=1): True}) == (0, 1)
        assert marking.read(flows, None, CUT_MARK) == {}
        # What was said meanwhile is said again by TCP, and lost by UDP.
        talk.called.settimeout(3)
        assert talk.asks()


def test_other_bits_of_the_mark_are_left_alone(node: Site, flows: Socket) -> None:
    node.router.nft(
        """table inet other {
            chain c {
                type filter hook forward priority 0;
                ct state new ct mark set 0x10000007
            }
        }
        """
    )
    isolate(node, "server", IN, Rule())
    about = ends(0, socket.SOCK_STREAM)
    with contextlib.ExitStack() as stack:
        Talk(node, 0, socket.SOCK_STREAM, stack)
        for wanted, marks in ((True, 0x10000007 | CUT_MARK), (False, 0x10000007)):
            mark(node, flows, {about: wanted})
            assert [decode_flow(each).mark for each in flows.stream(get_flows(), "flows")] == [marks]


@FAMILY
@pytest.mark.parametrize(("pod", "direction"), [("server", IN), ("client", OUT)])
def test_the_called_one_cannot_resume_what_its_policies_forbid(
    node: Site, flows: Socket, family: int, pod: str, direction: Direction
) -> None:
    with contextlib.ExitStack() as stack:
        talk = Talk(node, family, socket.SOCK_STREAM, stack)
        isolate(node, pod, direction)
        assert talk.goes_on(), "without a mark it goes on"
        assert lose(flows) == 1
        assert not talk.answers()
        assert not talk.asks()
        assert list(flows.stream(get_flows(), "flows")) == [], "what is dropped is not tracked"


@FAMILY
@pytest.mark.parametrize(("pod", "direction"), [("server", IN), ("client", OUT)])
def test_the_caller_resumes_what_is_allowed(
    node: Site, flows: Socket, family: int, pod: str, direction: Direction
) -> None:
    with contextlib.ExitStack() as stack:
        talk = Talk(node, family, socket.SOCK_STREAM, stack)
        isolate(node, pod, direction, Rule())
        lose(flows)
        assert talk.goes_on()


@FAMILY
def test_the_called_one_resumes_what_no_policy_of_its_own_is_about(
    node: Site, flows: Socket, family: int
) -> None:
    with contextlib.ExitStack() as stack:
        talk = Talk(node, family, socket.SOCK_STREAM, stack)
        isolate(node, "client", IN, Rule())
        lose(flows)
        assert talk.answers()


@FAMILY
def test_the_node_cannot_resume_for_a_pod_what_its_policies_forbid(
    node: Site, flows: Socket, family: int
) -> None:
    """The called one is the node itself, whose packets are not forwarded."""
    where = (ADDRESSES["client"][family].replace("1.1", "1.2").replace("::1", "::2"), PORT)
    what = (socket.AF_INET, socket.AF_INET6)[family]
    with (
        node.router.socket(what, socket.SOCK_STREAM) as server,
        node.client.socket(what, socket.SOCK_STREAM) as caller,
    ):
        server.bind(where)
        server.listen()
        caller.connect(where)
        called = server.accept()[0]
        with called:
            called.settimeout(0.5)
            isolate(node, "client", OUT)
            assert _says(called, caller, b"1")
            lose(flows)
            assert not _says(called, caller, b"2")
            assert not _says(caller, called, b"3")
