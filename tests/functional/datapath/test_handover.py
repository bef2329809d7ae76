"""An address that is handed on carries nothing of its former owner's connections; tried on live flows."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

import pytest

from daemon.cni.attachments import Attachments, Request
from datapath.desired import Fragment
from datapath.handover import Handover, forget
from datapath.kernel import Kernel
from datapath.netlink.attributes import attribute, be16, be32, nest, u8
from datapath.netlink.ctnetlink import CT_NEW, decode_flow, get_flows
from datapath.netlink.nfnetlink import header
from datapath.netlink.transport import NETLINK_NETFILTER, NLM_F_CREATE, NLM_F_EXCL, Message, Socket
from datapath.netns import entered, open_namespace
from datapath.nft.connection import Nft
from datapath.nft.elements import Range
from datapath.nft.tables import TableOptions, node_tables
from datapath.policy import Direction
from datapath.sync import Sync
from datapath.text import address, parse_address
from ipam.allocator import Allocator
from ipam.pool import Pool
from ipam.record import AttachmentKey
from ipam.store import Store
from tests.functional.datapath.conftest import NODE4, NODE6

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.functional.datapath.conftest import Node

FOUR, SIX = Pool(parse_address("10.5.0.0"), 30), Pool(parse_address("fd05::"), 126)
"""One address of IPv4, two of IPv6."""
ELSEWHERE = (Pool(parse_address("10.6.0.0"), 24), Pool(parse_address("fd06::"), 64))
PORT = 7000
SECONDS = 1.0
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58


@pytest.fixture
def netfilter(node: Node) -> Iterator[Socket]:
    with Socket(NETLINK_NETFILTER) as opened:
        yield opened


@pytest.fixture
def kernel(node: Node) -> Iterator[Kernel]:
    with Nft() as nft:
        sync = Sync(node.host, nft)
        sync.complete = True
        sync.change({("local",): Fragment(tables=node_tables(TableOptions()))})
        while not sync.idle:
            sync.step()
        yield Kernel(sync, lambda: None)


@pytest.fixture
def handover() -> Iterator[Handover]:
    loop = asyncio.new_event_loop()
    namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    made = Handover(loop, namespace=namespace)
    yield made
    made.close()
    os.close(namespace)
    loop.close()


class Pod:
    """An attached pod, and sockets in it."""

    def __init__(self, path: str, addresses: tuple[bytes, ...]) -> None:
        self.path = path
        self.addresses = {len(each): address(each) for each in addresses}
        self.descriptor = open_namespace(path)

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        with entered(self.descriptor):
            opened = socket.socket(family, kind, protocol)
        opened.settimeout(3)
        return opened

    def server(self, width: int, kind: int) -> Any:
        opened = self.socket(_family(width), kind)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((self.addresses[width], PORT))
        if kind == socket.SOCK_STREAM:
            opened.listen()
        return opened


class Pods:
    """Attaches and detaches pods."""

    def __init__(self, node: Node, kernel: Kernel, store: Store, handover: Handover | None) -> None:
        self.node, self.kernel = node, kernel
        self.attachments = Attachments(Allocator(store, cooldown=0), handover=handover)
        self.keys: dict[str, AttachmentKey] = {}
        self.opened: list[int] = []

    def add(self, name: str, pools: tuple[Pool, ...], *closed: Direction) -> Pod:
        path = self.node.pod()
        key = self.keys[name] = AttachmentKey("weft", name, "eth0")
        sources = (parse_address(NODE4), parse_address(NODE6))
        request = Request(key, path, pools, sources, 1450, ("default", name, ""), closed=closed)
        added = self.attachments.add(self.kernel, request)
        pod = Pod(path, added.record.addresses)
        self.opened.append(pod.descriptor)
        return pod

    def close(self) -> None:
        for each in self.opened:
            os.close(each)

    def delete(self, name: str) -> None:
        self.attachments.delete(self.kernel, self.keys[name])


def _family(width: int) -> int:
    return socket.AF_INET if width == 4 else socket.AF_INET6


def _tap(path: str) -> socket.socket:
    """Hears every packet of a namespace, on links to come as well."""
    descriptor = open_namespace(path)
    with entered(descriptor):
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
    os.close(descriptor)
    return opened


def _heard(tap: socket.socket, source: str, seconds: float) -> int:
    """How many packets from an address came to this namespace in a time."""
    packed, count = parse_address(source), 0
    start = 12 if len(packed) == 4 else 8
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([tap], [], [], left)[0]:
            data, where = tap.recvfrom(2048)
            count += where[2] != socket.PACKET_OUTGOING and data[start : start + len(packed)] == packed
    return count


@pytest.mark.parametrize("cleaned", [True, False], ids=["cleaned", "not cleaned"])
@pytest.mark.parametrize("width", [4, 16], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["UDP", "TCP"])
def test_a_live_flow_of_the_former_owner_does_not_reach_a_closed_pod(
    node: Node,
    kernel: Kernel,
    handover: Handover,
    tmp_path: Path,
    cleaned: bool,
    width: int,
    kind: int,
) -> None:
    """Without cleaning it does, since what is established is accepted: the reason for all this."""
    store = Store(f"{tmp_path}/state.db")
    pods = Pods(node, kernel, store, handover if cleaned else None)
    client = pods.add("client", ELSEWHERE)
    pods.add("other", (SIX,))
    former = pods.add("former", (FOUR, SIX))
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(former.server(width, kind))
        sender = stack.enter_context(client.socket(_family(width), kind))
        sender.connect((former.addresses[width], PORT))
        answerer = server
        if kind == socket.SOCK_STREAM:
            answerer = stack.enter_context(server.accept()[0])
        sender.sendall(b"?")
        _, source = answerer.recvfrom(1)
        answerer.sendto(b"!", source or sender.getsockname())
        assert sender.recv(1) == b"!"

        pods.delete("former")
        sender.setblocking(False)
        _send(sender)
        heir = pods.add("heir", (FOUR, SIX), Direction.INGRESS)
        assert heir.addresses == former.addresses, "it has the same address at once"
        tap = stack.enter_context(_tap(heir.path))
        for _ in range(10):
            _send(sender)
        # A retransmission of TCP may take its time.
        came = _heard(tap, client.addresses[width], SECONDS)
    pods.close()
    store.close()
    assert bool(came) is not cleaned


def _send(sender: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sender.send(b"?")


def _flow(protocol: int, ends: tuple[str, str, str, str], number: int = 7) -> Message:
    """A flow with these ends: source and destination, and those of its answers."""
    packed = [parse_address(each) for each in ends]
    first = 1 if len(packed[0]) == 4 else 3
    numbers: list[tuple[bytes, ...]]
    if protocol in (ICMP, ICMPV6):
        echo = {ICMP: (4, 8, 0), ICMPV6: (7, 128, 129)}[protocol]
        numbers = [
            (be16(echo[0], number), u8(echo[0] + 1, kind), u8(echo[0] + 2, 0)) for kind in (echo[1], echo[2])
        ]
    else:
        numbers = [(be16(2, one), be16(3, other)) for one, other in ((number, 53), (53, number))]
    tuples = [
        nest(
            kind,
            nest(1, attribute(first, source), attribute(first + 1, destination)),
            nest(2, u8(1, protocol), *numbers[kind - 1]),
        )
        for kind, source, destination in ((1, packed[0], packed[1]), (2, packed[2], packed[3]))
    ]
    family = header(_family(len(packed[0])))
    state = nest(4, nest(1, u8(1, 3))) if protocol == TCP else b""
    payload = b"".join((family, *tuples, be32(7, 600), be32(3, 0xE), state))
    return Message(CT_NEW, NLM_F_CREATE | NLM_F_EXCL, payload)


def _ends(netfilter: Socket) -> list[tuple[str, ...]]:
    flows = [decode_flow(each) for each in netfilter.stream(get_flows(), "flows")]
    return sorted(
        tuple(map(address, (each.source, each.destination, each.answerer, each.answered_to)))
        for each in flows
    )


@pytest.mark.parametrize("protocol", [TCP, UDP, ICMP])
def test_an_address_is_found_at_every_end_and_nothing_else_is_touched(
    netfilter: Socket, protocol: int
) -> None:
    four, six = "10.5.0.2", "fd05::2"
    gone: list[Message] = []
    for own, others in ((four, ("10.9.0.1", "10.9.0.2")), (six, ("fd09::1", "fd09::2"))):
        one, other = others
        kind = ICMPV6 if protocol == ICMP and own == six else protocol
        gone += [
            _flow(kind, (own, one, one, own), 1),
            _flow(kind, (one, own, own, one), 2),
            _flow(kind, (one, other, own, one), 3),
            _flow(kind, (other, one, one, own), 4),
        ]
    stay = [("10.9.0.1", "10.9.0.3", "10.9.0.3", "10.9.0.1"), ("fd09::1", "fd09::3", "fd09::3", "fd09::1")]
    netfilter.batch([*gone, *(_flow(TCP, each) for each in stay)], "flows")
    assert len(_ends(netfilter)) == len(gone) + 2
    assert forget(netfilter, {parse_address(four), parse_address(six)}) == len(gone)
    assert _ends(netfilter) == stay


def test_a_pool_that_was_never_seen_is_cleaned_but_for_those_who_live(
    netfilter: Socket, handover: Handover
) -> None:
    pool = Range(parse_address("10.5.0.2"), parse_address("10.5.0.254"))
    ends = [(f"10.5.0.{each}", "10.9.0.1", "10.9.0.1", f"10.5.0.{each}") for each in (1, 2, 3, 254, 255)]
    netfilter.batch([_flow(UDP, each) for each in ends], "flows")
    held = [parse_address("10.5.0.3"), parse_address("10.5.0.2")]
    # The second is about to be given out, and so is held already, by its next owner.
    handover.require_clean(held[1:], {pool}, lambda: held)
    assert _ends(netfilter) == [ends[0], ends[4], ends[2]]
    netfilter.batch([_flow(UDP, ends[1])], "flow")
    handover.require_clean(held[1:], {pool}, lambda: held)
    assert len(_ends(netfilter)) == 4, "once is enough"
    handover.give_back(held[1:])
    assert handover.waiting == 1
    handover.require_clean([parse_address("10.5.0.9")], {pool})
    assert len(_ends(netfilter)) == 4, "another's address is no reason to look"
    handover.require_clean(held[1:], {pool})
    assert len(_ends(netfilter)) == 3
    assert handover.waiting == 0


def test_ten_thousand_flows_are_looked_through_in_no_time(netfilter: Socket) -> None:
    made = []
    for index in range(10_000):
        one = address(struct.pack("!I", 0x0A090000 + index))
        made.append(_flow(UDP, (one, "10.8.0.1", "10.8.0.1", one)))
    netfilter.batch(made, "flows")
    unclean = {struct.pack("!I", 0x0A090000 + index * 10) for index in range(250)}
    began = time.perf_counter()
    assert forget(netfilter, unclean) == 250
    # Far above what is measured (0.04).
    assert time.perf_counter() - began < 1
