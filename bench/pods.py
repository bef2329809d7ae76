"""Wires and cuts off pods at the level of the datapath: no gRPC, no IPAM, no nftables."""

from __future__ import annotations

import errno
import subprocess
import time
from typing import TYPE_CHECKING

from bench.tables import comparison, in_turn
from bench.wiring import PODS, WORKERS, Floor, batch_processes, node_and_pods, parallel_batches, request
from datapath.attachment import DOOMED_GROUP, Attachment, attach, detach
from datapath.errors import NetlinkError
from datapath.netlink.links import del_group, set_link
from datapath.netlink.transport import Socket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.tables import Table
    from datapath.attachment import AttachRequest

ROUNDS_ALONE = 60
ROUNDS_TOGETHER = 7


def run() -> Iterator[Table]:
    """Measure in a node's namespace of its own."""
    with node_and_pods() as (_, spaces):
        pods = _Pods(spaces)
        yield pods.alone()
        yield pods.cut_off()
        yield pods.together()
        yield pods.destroyed()


class _Pods:
    """Fifty pods' namespaces, and the ways to wire them."""

    def __init__(self, spaces: Sequence[str]) -> None:
        self._requests = [request(space, number) for number, space in enumerate(spaces, 1)]
        self._host = Socket()
        self._floor = Floor()

    def alone(self) -> Table:
        """One ADD at a time."""
        measured = in_turn(
            {
                "floor": lambda number: self._timed(self._floor.attach, number),
                "weft": lambda number: self._timed(self._attach, number),
                "ip -batch": lambda number: self._timed(batch_processes, number),
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
                name: lambda _: self._timed_all(lambda: parallel_batches(self._requests)),
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
        for each in self._requests:
            work(each)

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


def _delete_process(request: AttachRequest) -> None:
    subprocess.run(["ip", "link", "del", request.host_link], check=True)
