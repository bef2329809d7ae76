"""Reads which tracked flows concern some addresses, and sets or clears a bit of marks as it is told.

Owns no opinion on which flows are to be marked. Flows are told apart by their ends only (`Ends`), never by
the caller's port: a pod with a thousand connections to one other is one question. So nothing in here grows
with the table of flows, which is streamed once to ask and once more only where something is to be changed.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

from datapath.errors import NetlinkError
from datapath.netlink.ctnetlink import flow_addresses, flow_call, get_flows, mark_flow

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from datapath.desired import Address
    from datapath.netlink.transport import Message, Socket

MOST_AT_ONCE = 10_000
"""Changes of marks held in memory."""
EXPECTED = 1
"""IPS_EXPECTED: a flow that a helper of the kernel foresaw (FTP's data), which passes with its master."""


class Ends(NamedTuple):
    """What a policy asks about a flow, as seen at pods: after service DNAT, before masquerade.

    `port` is the one that was called, 0 for a protocol without.
    """

    source: Address
    destination: Address
    protocol: int
    port: int


class Found(NamedTuple):
    """Whether flows with the same ends bear the bit: some do, some don't, or both."""

    marked: bool
    unmarked: bool


def read(netfilter: Socket, addresses: Collection[Address] | None, bit: int) -> dict[Ends, Found]:
    """Return the ends of tracked flows.

    Args:
        netfilter: of protocol NETLINK_NETFILTER, in the namespace of the flows.
        addresses: flows are meant that one of these began or answers; None means all that bear the bit.
        bit: of the mark.

    Raises:
        DatapathError: the kernel can't list flows.
    """
    found: dict[Ends, Found] = {}
    for _, ends, mark in _concerned(netfilter, addresses, bit):
        before = found.get(ends, _NEITHER)
        if mark & bit:
            if not before.marked:
                found[ends] = Found(True, before.unmarked)
        elif not before.unmarked:
            found[ends] = Found(before.marked, True)
    return found


def write(
    listing: Socket,
    writing: Socket,
    addresses: Collection[Address] | None,
    bit: int,
    wanted: Mapping[Ends, bool],
) -> tuple[int, int]:
    """Set or clear the bit of all flows with these ends; returns how many were set, and cleared.

    Args:
        listing: as for `read`.
        writing: another such socket.
        addresses: as for `read`.
        bit: as for `read`.
        wanted: whether flows shall bear the bit, by their ends; others are left as they are.

    Raises:
        DatapathError: the kernel can't list or mark flows; some may be marked already.
    """
    set_, cleared = 0, 0
    requests: list[Message] = []
    for payload, ends, mark in _concerned(listing, addresses, bit):
        value = wanted.get(ends)
        if value is None or value is bool(mark & bit):
            continue
        requests.append(mark_flow(payload, bit if value else 0, bit))
        set_, cleared = set_ + value, cleared + (not value)
        if len(requests) == MOST_AT_ONCE:
            _send(writing, requests)
            requests = []
    _send(writing, requests)
    return set_, cleared


def _concerned(
    netfilter: Socket, addresses: Collection[Address] | None, bit: int
) -> Iterator[tuple[bytes, Ends, int]]:
    """Yield the message, the ends and the mark of each flow that is meant."""
    selection = get_flows(mark=(bit, bit)) if addresses is None else get_flows()
    for payload in netfilter.stream(selection, "tracked flows could not be listed"):
        source, _, answerer, _ = flow_addresses(payload)
        if addresses is not None and source not in addresses and answerer not in addresses:
            continue
        protocol, port, status, mark = flow_call(payload)
        # A kernel that does not know the selection lists all flows.
        if not status & EXPECTED and (addresses is not None or mark & bit):
            yield payload, Ends(source, answerer, protocol, port), mark


def _send(netfilter: Socket, requests: list[Message]) -> None:
    for error in netfilter.batch_collect(requests, "a tracked flow could not be marked"):
        # Gone by itself meanwhile.
        if error.code != errno.ENOENT:
            raise NetlinkError(error.code, str(error), index=error.index) from error


_NEITHER = Found(False, False)
