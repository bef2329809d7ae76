"""Forgets UDP flows that lead to nobody: connection tracking would go on sending a client to a dead backend.

A UDP client that keeps its port is one flow for as long as it sends, and NAT asks the Services' maps for the
first packet only. So when the backends of a frontend change, the flows to it whose answerer serves no more
are deleted, and the next packet finds a living one. The same holds for a host port on ADD and DEL. TCP and
SCTP have ends of their own and are left alone. Nothing here flushes: a flow is deleted by its tuple and id.

Flows are deleted after the maps were changed, never before: a packet in between would bring the old one back.
"""

from __future__ import annotations

import asyncio
import errno
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from datapath.backoff import Backoff
from datapath.errors import DatapathError, NetlinkError
from datapath.netlink.addresses import decode_address, get_addresses
from datapath.netlink.ctnetlink import IPPROTO_UDP, decode_flow, del_flow, ends, get_flows
from datapath.netlink.transport import NETLINK_NETFILTER, Socket
from datapath.nft.rules import Family

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from datapath.desired import Address
    from datapath.netlink.ctnetlink import Flow
    from datapath.netlink.transport import Message

Peer: TypeAlias = "tuple[Address, int]"
"""Who answers: address and port of a backend."""

ONE_BY_ONE = 8
"""Up to so many times the kernel searches the table (20 ms each with 50,000 flows) and lists what it finds;
for more destinations it lists all UDP flows once (120 ms, and 60 to judge them)."""
MOST_AT_ONCE = 20_000
"""Deletions held in memory; when there are more the table is read again."""
SHARE = 4
"""The sweeper rests this many times as long as a sweep took: a busy cluster costs a fifth of a core."""
RETRY_SECONDS, RETRY_LIMIT_SECONDS = 1.0, 60.0

_UDP = bytes((IPPROTO_UDP,))
_FAMILIES = (Family.IPV4, Family.IPV6)
_PATTERNS = {family: ends(family) for family in _FAMILIES}


class Destination(NamedTuple):
    """Where clients send to; without an address the port on every address of this host (node, host ports)."""

    family: Family
    address: Address | None
    port: int


@dataclass(frozen=True, slots=True)
class StaleFlows:
    """UDP flows to these destinations whose answerer is none of those that serve them now.

    `serving` has, by destination, every backend that may keep its clients: ready ones, and terminating ones
    that still serve. With none, all flows to the destination are stale.
    """

    serving: Mapping[Destination, frozenset[Peer]] = field(default_factory=dict)

    def then(self, newer: StaleFlows) -> StaleFlows:
        """Return both as one; where both know a destination the newer one counts."""
        return StaleFlows({**self.serving, **newer.serving})


def delete_stale(netfilter: Socket, stale: StaleFlows, local: Collection[Address] = ()) -> int:
    """Delete stale flows; returns how many were.

    Args:
        netfilter: of protocol NETLINK_NETFILTER, in the namespace of the flows.
        stale: which.
        local: the addresses of this host, for destinations without one.

    Raises:
        DatapathError: the kernel can't list or delete flows; some may be deleted already.
    """
    deleted = 0
    for family in _FAMILIES:
        wanted = {key: peers for key, peers in stale.serving.items() if key.family == family}
        if not wanted:
            continue
        is_stale = _judge(family, wanted, local)
        for selection in _selections(family, wanted):
            deleted += delete_listed(netfilter, selection, is_stale)
    return deleted


def delete_listed(netfilter: Socket, selection: Message, unwanted: Callable[[bytes], bool]) -> int:
    """Delete the flows of a selection (`get_flows`) that a predicate does not want; returns how many were.

    The predicate is given the message of each flow of the selection, also of those that an old kernel did
    not leave out: decoding all of them is what takes the time.

    Raises:
        DatapathError: as for `delete_stale`.
    """
    deleted = 0
    while True:
        requests: list[Message] = []
        for payload in netfilter.stream(selection, "tracked flows could not be listed"):
            if len(requests) < MOST_AT_ONCE and unwanted(payload):
                requests.append(del_flow(payload))
        refused = netfilter.batch_collect(requests, "a tracked flow could not be deleted")
        for error in refused:
            # Gone by itself meanwhile, or another one is in its place.
            if error.code != errno.ENOENT:
                raise NetlinkError(error.code, str(error), index=error.index) from error
        deleted += len(requests) - len(refused)
        if len(requests) < MOST_AT_ONCE:
            return deleted


def local_addresses(route: Socket) -> frozenset[Address]:
    """Return the addresses of all links of the socket's namespace. Raises DatapathError."""
    return frozenset(
        decode_address(payload).address
        for family in _FAMILIES
        for payload in route.dump(get_addresses(family), "addresses could not be read")
    )


class Sweeper:
    """Deletes stale flows on a thread: what is offered while a sweep runs is one sweep afterwards.

    `offer` is for the event loop's thread; `run` is a task that never ends. A sweep that fails is tried again
    until it succeeds or something newer is known of the destination.
    """

    def __init__(
        self,
        *,
        namespace: int | None = None,
        deleted: Callable[[int], None] = lambda _: None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Nothing runs yet.

        Args:
            namespace: descriptor of the flows' network namespace; None is the daemon's.
            deleted: told of each sweep how many flows it deleted.
            report: told why sweeps fail, and "" when one succeeded again.
        """
        self._namespace = namespace
        self._deleted = deleted
        self._report = report
        self._waiting = StaleFlows()
        self._wake = asyncio.Event()
        self._sockets: tuple[Socket, Socket] | None = None

    def offer(self, stale: StaleFlows) -> None:
        """Have these looked for; call it when the kernel's maps hold what `stale` says."""
        if stale.serving:
            self._waiting = self._waiting.then(stale)
            self._wake.set()

    async def run(self) -> None:
        """Sweep whatever is offered."""
        retries = Backoff(self._report, RETRY_SECONDS, RETRY_LIMIT_SECONDS)
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                stale, self._waiting = self._waiting, StaleFlows()
                began = time.monotonic()
                try:
                    count = await asyncio.to_thread(self._sweep, stale)
                except DatapathError as error:
                    self._waiting = stale.then(self._waiting)
                    self._wake.set()
                    await asyncio.sleep(retries.failed(error))
                    continue
                retries.succeeded()
                self._deleted(count)
                await asyncio.sleep(SHARE * (time.monotonic() - began))
        finally:
            self._close()

    def _sweep(self, stale: StaleFlows) -> int:
        try:
            if self._sockets is None:
                self._sockets = (
                    Socket(NETLINK_NETFILTER, namespace=self._namespace),
                    Socket(namespace=self._namespace),
                )
            netfilter, route = self._sockets
            anywhere = any(destination.address is None for destination in stale.serving)
            return delete_stale(netfilter, stale, local_addresses(route) if anywhere else ())
        except DatapathError:
            self._close()
            raise

    def _close(self) -> None:
        sockets, self._sockets = self._sockets, None
        for each in sockets or ():
            each.close()


def _judge(
    family: Family, serving: Mapping[Destination, frozenset[Peer]], local: Collection[Address]
) -> Callable[[bytes], bool]:
    """Return what tells stale flows of one family by their bytes, without making a value of each."""
    match = _PATTERNS[family].match
    # Address and port as they travel, one after the other.
    exact: dict[bytes, frozenset[bytes]] = {}
    anywhere: dict[bytes, frozenset[bytes]] = {}
    for destination, peers in serving.items():
        packed = frozenset(address + _port(port) for address, port in peers)
        if destination.address is None:
            anywhere[_port(destination.port)] = packed
        else:
            exact[destination.address + _port(destination.port)] = packed

    def is_stale(payload: bytes) -> bool:
        matched = match(payload)
        if matched is None:
            address, protocol, port, answerer, answerer_port = _ends(decode_flow(payload))
        else:
            address, protocol, port, answerer, answerer_port = matched.groups()
        if protocol != _UDP:
            return False
        keep = exact.get(address + port)
        if keep is None:
            keep = anywhere.get(port)
            if keep is None or address not in local:
                return False
        return answerer + answerer_port not in keep

    return is_stale


def _ends(flow: Flow) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    """Return what the pattern's groups would be."""
    return (
        flow.destination,
        bytes((flow.protocol,)),
        _port(flow.destination_port),
        flow.answerer,
        _port(flow.answerer_port),
    )


def _selections(family: Family, wanted: Iterable[Destination]) -> Collection[Message]:
    """Return the dumps that together list every flow to these destinations."""
    single = {
        get_flows(family, protocol=IPPROTO_UDP, destination=each.address, port=each.port) for each in wanted
    }
    return single if len(single) <= ONE_BY_ONE else (get_flows(family, protocol=IPPROTO_UDP),)


def _port(number: int) -> bytes:
    return number.to_bytes(2, "big")
