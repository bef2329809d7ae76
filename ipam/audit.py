"""Compares what IPAM remembers with what the node has: leases without a pod, links without a lease. Pure.

It names what is wrong and changes nothing; the daemon's own collection takes it back. The caller brings what
it read from the kernel, so that the daemon and weftctl without a daemon judge alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ipam.alias import is_of, read
from ipam.errors import AliasError
from ipam.record import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ipam.record import Record

PATIENCE = 300.0
"""Seconds that an attachment may stay pending or releasing: longer than a runtime waits for an answer."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that does not fit.

    Attributes:
        addresses: that it holds, packed; empty when they are not known.
        container_id: of the attachment; "" when it is not known.
        host_link: of the attachment.
        reason: what does not fit, in words.
    """

    addresses: tuple[bytes, ...]
    container_id: str
    host_link: str
    reason: str


def audit(
    records: Iterable[Record], *, links: Mapping[str, str], lives: Callable[[str], bool], now: float
) -> tuple[Fault, ...]:
    """Return what does not fit, leases first.

    Args:
        records: all that IPAM remembers.
        links: the node's pod links, name to alias.
        lives: whether there is a network namespace at a path.
        now: seconds of CLOCK_BOOTTIME.
    """
    known = tuple(records)
    leased = {record.host_link for record in known}
    faults = [_judge(record, links, lives, now) for record in known]
    faults += [_unleased(name, alias) for name, alias in sorted(links.items()) if name not in leased]
    return tuple(fault for fault in faults if fault is not None)


def is_complete(record: Record, links: Mapping[str, str]) -> bool:
    """Whether a daemon that starts takes an attachment for wired; arguments as for `audit`.

    A link gets its alias in one step with the last of its wiring. So a pending record whose link bears it
    lacks nothing but the word of a daemon that died before it could write that.
    """
    if record.state is State.PENDING:
        return is_of(links.get(record.host_link, ""), record)
    return record.state is State.ATTACHED


def _judge(
    record: Record, links: Mapping[str, str], lives: Callable[[str], bool], now: float
) -> Fault | None:
    reason = ""
    if not is_complete(record, links):
        waited = now - record.created
        if waited > PATIENCE:
            reason = f"it is {record.state.name.lower()} since {waited:.0f} s"
    elif record.netns and not lives(record.netns):
        reason = f"network namespace {record.netns} is gone"
    elif record.host_link not in links:
        reason = f"host link {record.host_link} is missing"
    return Fault(record.addresses, record.key.container_id, record.host_link, reason) if reason else None


def _unleased(name: str, text: str) -> Fault:
    try:
        alias = read(text)
    except AliasError:
        return Fault((), "", name, f"link {name} has no lease, and its alias does not name one")
    return Fault(alias.addresses, alias.key.container_id, name, f"link {name} has no lease")
