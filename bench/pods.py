"""Wires and cuts off pods at the level of the datapath: no gRPC, no IPAM, no nftables.

The floor is `floor.c`: the same pod by 13 writes in C. `ip -batch` stands for a plugin that executes
programs: two processes a pod, one for each namespace.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from bench.tables import comparison, in_turn
from datapath.attachment import DOOMED_GROUP, HOST_MAC, Attachment, AttachRequest, attach, detach
from datapath.errors import NetlinkError
from datapath.netlink.links import del_group, set_link
from datapath.netlink.transport import Socket
from datapath.netns import THREAD_NAMESPACE, entered, open_namespace
from datapath.text import address, mac, parse_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.tables import Table

PODS = 50
ROUNDS_ALONE = 60
ROUNDS_TOGETHER = 7
WORKERS = 4
NODE = (parse_address("192.0.2.1"), parse_address("fd00:ffff::1"))
GATEWAY_COMMANDS = (
    "route add 169.254.1.1 dev eth0 scope link",
    "route add default via 169.254.1.1 dev eth0",
    "route add default via fe80::1 dev eth0",
    f"neigh replace 169.254.1.1 dev eth0 lladdr {mac(HOST_MAC)} nud permanent",
    f"neigh replace fe80::1 dev eth0 lladdr {mac(HOST_MAC)} nud permanent",
)


def run() -> Iterator[Table]:
    """Measure in a node's namespace of its own."""
    with ExitStack() as stack:
        node = stack.enter_context(_namespace(f"weft-b-node-{os.getpid()}"))
        spaces = [stack.enter_context(_namespace(f"weft-b-{os.getpid()}-{number}")) for number in range(PODS)]
        descriptor = open_namespace(node)
        stack.callback(os.close, descriptor)
        stack.enter_context(entered(descriptor))
        for command in (
            "ip link set lo up",
            f"ip addr add {address(NODE[0])}/32 dev lo",
            f"ip addr add {address(NODE[1])}/128 dev lo nodad",
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        ):
            subprocess.run(command.split(), check=True)
        pods = _Pods(spaces)
        yield pods.alone()
        yield pods.cut_off()
        yield pods.together()
        yield pods.destroyed()


class _Pods:
    """Fifty pods' namespaces, and the ways to wire them."""

    def __init__(self, spaces: Sequence[str]) -> None:
        self._requests = [_request(space, number) for number, space in enumerate(spaces, 1)]
        self._host = Socket()
        self._floor = _Floor()

    def alone(self) -> Table:
        """One ADD at a time."""
        measured = in_turn(
            {
                "floor": lambda number: self._timed(self._floor.attach, number),
                "weft": lambda number: self._timed(self._attach, number),
                "ip -batch": lambda number: self._timed(_batch_processes, number),
            },
            ROUNDS_ALONE,
        )
        remark = "weft writes 4 settings, 2 addresses, 2 neighbours and an alias more than the floor."
        return comparison("One pod wired, dual stack", measured, "floor", remark=remark)

    def cut_off(self) -> Table:
        """One DEL at a time: until routes and neighbours are gone and the link is down."""
        measured = in_turn(
            {
                "weft": lambda number: self._timed_detach(self._detach, number),
                "ip link del": lambda number: self._timed_detach(_delete_process, number),
            },
            ROUNDS_ALONE // 2,
        )
        remark = "weft leaves the link's destruction to the reaper; `ip link del` waits for it."
        return comparison("One pod cut off", measured, "weft", remark=remark)

    def together(self) -> Table:
        """Fifty ADDs at once."""
        name = f"ip -batch, {WORKERS} at once"
        measured = in_turn(
            {
                "floor": lambda _: self._timed_all(lambda: self._each(self._floor.attach)),
                "weft": lambda _: self._timed_all(lambda: self._each(self._attach)),
                name: lambda _: self._timed_all(self._parallel_batches),
            },
            ROUNDS_TOGETHER,
        )
        return comparison(f"{PODS} pods wired, one thread", measured, name)

    def destroyed(self) -> Table:
        """Fifty DELs at once, with the links' destruction."""
        measured = in_turn(
            {
                "cut off": lambda _: self._timed_detachments(self._detach),
                "cut off and destroyed": lambda _: self._timed_detachments(self._detach, destroy=True),
                "ip link del": lambda _: self._timed_detachments(_delete_process),
            },
            ROUNDS_TOGETHER,
        )
        return comparison(f"{PODS} pods cut off", measured, "cut off")

    def _attach(self, request: AttachRequest) -> None:
        attach(self._host, request)

    def _detach(self, request: AttachRequest) -> None:
        known = (request.host_link, request.netns, request.ifname, request.mac, request.mtu)
        detach(self._host, Attachment(*known, request.addresses))

    def _timed(self, work: Callable[[AttachRequest], None], number: int) -> float:
        request = self._requests[number % PODS]
        started = time.perf_counter()
        work(request)
        seconds = time.perf_counter() - started
        self._clean((request,))
        return seconds

    def _timed_detach(self, work: Callable[[AttachRequest], None], number: int) -> float:
        request = self._requests[number % PODS]
        self._attach(request)
        started = time.perf_counter()
        work(request)
        seconds = time.perf_counter() - started
        self._clean((request,))
        return seconds

    def _timed_all(self, work: Callable[[], None]) -> float:
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
        self._clean(self._requests)
        return seconds

    def _timed_detachments(self, work: Callable[[AttachRequest], None], *, destroy: bool = False) -> float:
        self._each(self._attach)
        started = time.perf_counter()
        self._each(work)
        if destroy:
            self._reap()
        seconds = time.perf_counter() - started
        self._clean(self._requests)
        return seconds

    def _each(self, work: Callable[[AttachRequest], None]) -> None:
        for request in self._requests:
            work(request)

    def _parallel_batches(self) -> None:
        home = open_namespace(THREAD_NAMESPACE)
        waiting = iter(self._requests)
        turn = threading.Lock()

        def worker() -> None:
            with entered(home):
                while True:
                    with turn:
                        request = next(waiting, None)
                    if request is None:
                        return
                    _batch_processes(request)

        threads = [threading.Thread(target=worker) for _ in range(WORKERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os.close(home)

    def _clean(self, requests: Sequence[AttachRequest]) -> None:
        doom = [set_link(request.host_link, up=False, group=DOOMED_GROUP) for request in requests]
        self._host.batch_collect(doom, "clean up")
        self._reap()

    def _reap(self) -> None:
        try:
            self._host.batch((del_group(DOOMED_GROUP),), "clean up")
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise


class _Floor:
    """floor.c, built and loaded."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            library = os.path.join(directory, "floor.so")
            source = os.path.join(os.path.dirname(__file__), "floor.c")
            subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
            self._library = ctypes.CDLL(library)
        self._host = self._library.floor_socket()
        self._home = open_namespace(THREAD_NAMESPACE)

    def attach(self, request: AttachRequest) -> None:
        """Wire one pod."""
        names = request.netns.encode(), request.host_link.encode()
        result = self._library.floor_attach(
            self._host, self._home, *names, *request.addresses, request.mac, request.mtu
        )
        if result < 0:
            raise OSError(-result, "the floor failed")


def _batch_processes(request: AttachRequest) -> None:
    """Wire one pod by two processes."""
    link, own4, own6 = request.host_link, *map(address, request.addresses)
    name = os.path.basename(request.netns)
    node = (
        (
            f"link add {link} mtu {request.mtu} address {mac(HOST_MAC)} type veth "
            f"peer name eth0 mtu {request.mtu} address {mac(request.mac)} netns {name}"
        ),
        f"link set {link} up",
        f"route replace {own4}/32 dev {link} src {address(NODE[0])}",
        f"route replace {own6}/128 dev {link} src {address(NODE[1])}",
    )
    pod = (
        "link set lo up",
        f"addr add {own4}/32 dev eth0",
        f"addr add {own6}/128 dev eth0 nodad",
        "link set eth0 up",
        *GATEWAY_COMMANDS,
    )
    for command, lines in ((["ip"], node), (["ip", "-n", name], pod)):
        subprocess.run([*command, "-batch", "-"], input="\n".join(lines).encode(), check=True)


def _delete_process(request: AttachRequest) -> None:
    subprocess.run(["ip", "link", "del", request.host_link], check=True)


def _request(space: str, number: int) -> AttachRequest:
    return AttachRequest(
        netns=space,
        ifname="eth0",
        host_link=f"weft{number:011x}",
        mac=bytes((2, 0, 0, 0, 0, number)),
        mtu=1450,
        addresses=(bytes((10, 0, 0, number)), parse_address(f"fd00::{number:x}")),
        sources=NODE,
        alias="alias".ljust(120, "."),
    )


@contextmanager
def _namespace(name: str) -> Iterator[str]:
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield f"/run/netns/{name}"
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
