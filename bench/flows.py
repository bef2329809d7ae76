"""Stale UDP flows deleted among many that live: one frontend, as after a change, and all at once.

50,000 flows to 200 frontends, of which 250 lead to a backend that left. The floor is the kernel's own time to
search the table once, the peer the program conntrack.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench.tables import comparison, in_turn
from datapath.conntrack import Destination, StaleFlows, delete_stale
from datapath.netlink.attributes import attribute, be16, be32, nest, u8
from datapath.netlink.ctnetlink import CT_NEW, IPPROTO_UDP, get_flows
from datapath.netlink.nfnetlink import header
from datapath.netlink.transport import NETLINK_NETFILTER, NLM_F_CREATE, Message, Socket
from datapath.netns import open_namespace
from datapath.nft.rules import Family
from datapath.text import address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.tables import Table

FLOWS, FRONTENDS, ROUNDS = 50_000, 200, 15
NAMESPACE = "weft-bench-flows"
LIVE, LEFT = bytes((10, 244, 1, 1)), bytes((10, 244, 1, 2))
STALE = 7
"""The frontend whose clients all still talk to the backend that left."""
_SEEN = 0x2 | 0x4 | 0x8  # IPS_SEEN_REPLY, ASSURED, CONFIRMED


def run() -> Iterator[Table]:
    """Measure in a namespace of its own."""
    with _space() as netfilter:
        ways = {
            "floor": lambda _: _timed(netfilter, lambda: _search(netfilter)),
            "one frontend": lambda _: _timed(netfilter, lambda: delete_stale(netfilter, _serving(STALE))),
            "200 frontends": lambda _: _timed(
                netfilter, lambda: delete_stale(netfilter, _serving(*range(FRONTENDS)))
            ),
        }
        if shutil.which("conntrack"):
            ways["conntrack -D"] = lambda _: _timed(netfilter, _by_tool)
        title = f"{FLOWS // FRONTENDS} of {FLOWS} flows deleted"
        yield comparison(title, in_turn(ways, ROUNDS), "floor")


def _frontend(number: int) -> bytes:
    return bytes((10, 96, 0, number))


def _serving(*numbers: int) -> StaleFlows:
    live = frozenset({(LIVE, 5353)})
    return StaleFlows({Destination(Family.IPV4, _frontend(number), 53): live for number in numbers})


def _flow(index: int) -> Message:
    frontend = index % FRONTENDS
    client = (bytes((10, 244, 2 + (index >> 14), 1)), 1024 + (index & 0x3FFF))
    backend = (LEFT if frontend == STALE else LIVE, 5353)
    ways = ((1, client, (_frontend(frontend), 53)), (2, backend, client))
    tuples = [
        nest(
            kind,
            nest(1, attribute(1, source[0]), attribute(2, destination[0])),
            nest(2, u8(1, IPPROTO_UDP), be16(2, source[1]), be16(3, destination[1])),
        )
        for kind, source, destination in ways
    ]
    payload = b"".join((header(socket.AF_INET), *tuples, be32(7, 600), be32(3, _SEEN)))
    return Message(CT_NEW, NLM_F_CREATE, payload)


def _timed(netfilter: Socket, work: Callable[[], object]) -> float:
    """Time some work with all stale flows there; what it deleted is made again before."""
    netfilter.batch([_flow(index) for index in range(STALE, FLOWS, FRONTENDS)], "flows can't be made")
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _search(netfilter: Socket) -> None:
    for _ in netfilter.stream(get_flows(Family.IPV4, protocol=IPPROTO_UDP, port=9), "flows can't be listed"):
        pass


def _by_tool() -> None:
    command = ["conntrack", "-D", "-p", "udp", "--orig-dst", address(_frontend(STALE))]
    command += ["--orig-port-dst", "53", "--reply-src", address(LEFT)]
    subprocess.run(
        ["ip", "netns", "exec", NAMESPACE, *command],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@contextmanager
def _space() -> Iterator[Socket]:
    """A namespace with the flows, and a socket in it."""
    subprocess.run(["ip", "netns", "add", NAMESPACE], check=True)
    try:
        descriptor = open_namespace(f"/run/netns/{NAMESPACE}")
        with Socket(NETLINK_NETFILTER, namespace=descriptor) as netfilter:
            netfilter.batch([_flow(index) for index in range(FLOWS)], "flows can't be made")
            yield netfilter
    finally:
        subprocess.run(["ip", "netns", "delete", NAMESPACE], check=True)
