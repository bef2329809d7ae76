"""Does steps: encodes them, sends them in one batch, and says of each whether the kernel took it.

Owns the order of messages for one object (a link is created, set up, brought up) and which refusals mean
"already so". Decides nothing about what should be; runs on the writer's thread.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, NamedTuple

from datapath.attachment import DOOMED_GROUP
from datapath.desired import (
    FdbEntry,
    LinkAddress,
    Neighbour,
    PodLink,
    Route,
    Sysctl,
    VxlanLink,
)
from datapath.diff import Action
from datapath.errors import DatapathError, NetlinkError
from datapath.ethtool import set_tx_checksum, tx_checksum
from datapath.netlink.addresses import del_address, new_address
from datapath.netlink.links import (
    address_family_settings,
    decode_link,
    del_link,
    get_link,
    get_links,
    new_vxlan,
    set_link,
)
from datapath.netlink.neighbours import del_fdb, del_neighbour, new_fdb, new_neighbour
from datapath.netlink.routes import del_route, new_route
from datapath.observe import read_setting, write_setting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from datapath.desired import KernelObject, ObjectKey
    from datapath.diff import Step
    from datapath.netlink.links import LinkState
    from datapath.netlink.transport import Message, Socket

_ABSENT = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL})
"""A deletion that is refused so has nothing to delete."""
_SINGLE = (Sysctl, VxlanLink, PodLink)
_NO_LINK_LOCAL = address_family_settings({}, ipv6_link_local=False)


class Outcome(NamedTuple):
    """What became of a number of steps.

    Attributes:
        done: the steps that the kernel holds now.
        failed: why others failed, by key.
        blocked: keys whose link does not exist; trying again is of use when it does.
        stale: whether what is known must be read anew: links changed, or indexes were wrong.
    """

    done: list[Step]
    failed: dict[ObjectKey, DatapathError]
    blocked: set[ObjectKey]
    stale: bool


def execute(route: Socket, steps: Sequence[Step], indexes: dict[str, int]) -> Outcome:
    """Do the steps in order; a refused one does not stop the others.

    Args:
        route: a socket of the calling thread's namespace.
        steps: what `diff` returned.
        indexes: index by link name; links that are created and deleted here are put in and taken out.
    """
    outcome = Outcome([], {}, set(), stale=False)
    stale = False
    waiting: list[tuple[Step, Message]] = []
    for step in steps:
        value = step.new if step.new is not None else step.old
        assert value is not None
        if isinstance(value, _SINGLE):
            stale |= _send(route, waiting, outcome)
            waiting.clear()
            stale |= _single(route, step, value, indexes, outcome)
            continue
        link = value.link
        index = 0 if link is None else indexes.get(link)
        if index is not None:
            encode = (_PUT if step.new is not None else _DELETE)[type(value)]
            waiting.append((step, encode(value, index)))
        elif step.new is None:
            outcome.done.append(step)
        else:
            outcome.blocked.add(step.key)
    stale |= _send(route, waiting, outcome)
    return outcome._replace(stale=stale)


def _put_address(address: LinkAddress, index: int) -> Message:
    return new_address(address, index, prefix_route=False, link_scope=address.address[:2] == b"\xa9\xfe")


_PUT: dict[type[KernelObject], Callable[[Any, int], Message]] = {
    Route: new_route,
    Neighbour: new_neighbour,
    FdbEntry: new_fdb,
    LinkAddress: _put_address,
}
_DELETE: dict[type[KernelObject], Callable[[Any, int], Message]] = {
    Route: del_route,
    Neighbour: del_neighbour,
    FdbEntry: del_fdb,
    LinkAddress: del_address,
}


def _send(route: Socket, waiting: list[tuple[Step, Message]], outcome: Outcome) -> bool:
    """Send what waits; returns whether an index was wrong."""
    if not waiting:
        return False
    refused = {
        error.index: error
        for error in route.batch_collect([message for _, message in waiting], "the kernel refused")
    }
    if not refused:
        outcome.done.extend([step for step, _ in waiting])
        return False
    stale = False
    for place, (step, _) in enumerate(waiting):
        error = refused.get(place)
        if error is None or (step.action is Action.DELETE and error.code in _ABSENT):
            outcome.done.append(step)
        elif error.code == errno.ENODEV:
            stale = True
            outcome.blocked.add(step.key)
        else:
            outcome.failed[step.key] = error
    return stale


def _single(
    route: Socket,
    step: Step,
    value: Sysctl | VxlanLink | PodLink,
    indexes: dict[str, int],
    outcome: Outcome,
) -> bool:
    """Do a step that is no part of a batch; returns whether what is known must be read anew."""
    try:
        match value:
            case Sysctl():
                if value.link is not None and value.link not in indexes:
                    outcome.blocked.add(step.key)
                    return False
                current = read_setting(value.path) if value.least else None
                if current is None or not value.met_by(current):
                    write_setting(value.path, value.value)
                stale = False
            case PodLink():
                if value.name not in indexes:
                    if step.action is not Action.DELETE:
                        outcome.blocked.add(step.key)
                        return False
                elif step.action is Action.DELETE:
                    doom = set_link(value.name, up=False, group=DOOMED_GROUP, alias="")
                    route.batch((doom,), f"link {value.name} can't be taken down")
                else:
                    route.batch((set_link(value.name, up=True),), f"link {value.name} can't be brought up")
                stale = True
            case VxlanLink():
                _vxlan(route, step, value, indexes)
                stale = True
    except DatapathError as error:
        if isinstance(error, NetlinkError) and error.code == errno.ENODEV:
            indexes.pop(value.name if not isinstance(value, Sysctl) else "", None)
            if step.action is Action.DELETE:
                outcome.done.append(step)
                return True
        outcome.failed[step.key] = error
        return True
    outcome.done.append(step)
    return stale


def _vxlan(route: Socket, step: Step, link: VxlanLink, indexes: dict[str, int]) -> None:
    if step.action is Action.DELETE:
        route.batch((del_link(link.name),), f"link {link.name} can't be deleted")
        indexes.pop(link.name, None)
        return
    if step.action is Action.ADD or link.name not in indexes:
        try:
            route.batch((new_vxlan(link),), f"link {link.name} can't be created")
        except NetlinkError as error:
            raise _port_taken(route, link, error) from error
        found = route.request(get_link(link.name), f"link {link.name} can't be read")
        indexes[link.name] = decode_link(found).index
    index = indexes[link.name]
    if tx_checksum(link.name) != link.tx_checksum:
        set_tx_checksum(link.name, enabled=link.tx_checksum)
    # Only what differs: a MAC address that is set, be it the same, makes the kernel drop the neighbours.
    old = step.old if isinstance(step.old, VxlanLink) else link
    changes = (
        # Before it goes up, or the kernel gives it a link-local address.
        set_link(
            index,
            mac=link.mac if old.mac != link.mac else None,
            mtu=link.mtu if old.mtu != link.mtu else None,
            settings=_NO_LINK_LOCAL,
        ),
        set_link(index, up=True),
    )
    try:
        route.batch(changes, f"link {link.name} can't be set up")
    except NetlinkError as error:
        raise _port_taken(route, link, error) from error


def _port_taken(route: Socket, link: VxlanLink, error: NetlinkError) -> DatapathError:
    """Return an error that names what holds the port, if that is the matter."""
    if error.code not in (errno.EEXIST, errno.EADDRINUSE):
        return error
    others = [
        state
        for state in _links(route)
        if state.vxlan is not None and state.vxlan.port == link.port and state.name != link.name
    ]
    holder = _holder(others) if others else "another program (ss -ulnp shows it)"
    return DatapathError(
        f"link {link.name} can't be brought up: UDP port {link.port} (VNI {link.vni}) is held by {holder}; "
        "remove it, or set vxlanPort (vni) to another value on all nodes"
    )


def _holder(others: Iterable[LinkState]) -> str:
    return ", ".join(
        f"VXLAN link {state.name} (VNI {state.vxlan.vni})" for state in others if state.vxlan is not None
    )


def _links(route: Socket) -> list[LinkState]:
    return [decode_link(payload) for payload in route.dump(get_links("vxlan"), "links could not be read")]
