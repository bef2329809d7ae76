"""What has to be done so that the kernel holds what is desired: ordered steps. Pure.

Adds come before deletes, so that a change never opens a gap: links → addresses → neighbours → FDB entries →
routes, then the deletions in the opposite order. The one exception is a link that can only be made anew
(VNI, port and local address are fixed at creation): it is deleted first, and what the kernel drops with
it, the routes that prefer one of its addresses included, is written again.
"""

from __future__ import annotations

from enum import Enum
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from datapath.desired import LINK, RANKS, SETTINGS, SYSCTL, LinkAddress, PodLink, Route, VxlanLink

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from datapath.desired import KernelObject, ObjectKey


class Action(Enum):
    """What a step does."""

    ADD = "add"
    REPLACE = "replace"
    DELETE = "delete"


class Step(NamedTuple):
    """One change of one object; `old` is what is known to be there, `new` what shall be."""

    action: Action
    key: ObjectKey
    old: KernelObject | None
    new: KernelObject | None


def diff(
    desired: Mapping[ObjectKey, KernelObject],
    known: Mapping[ObjectKey, KernelObject],
    keys: Collection[ObjectKey] | None = None,
) -> list[Step]:
    """Return the steps from `known` to `desired`, in the order in which they must be done.

    Args:
        desired: what shall be.
        known: what the kernel holds of ours, by its last reading and what was done since.
        keys: what to compare; None compares everything. What goes with a link that is made anew is included.
    """
    differing = _differing(desired, known, desired.keys() | known.keys() if keys is None else keys)
    links = [(key, old, new) for key, old, new in differing if key[0] == LINK]
    recreated = {key for key, old, new in links if _is_fixed(old, new)}
    lost: set[ObjectKey] = set()
    if recreated:
        lost = _lost(known, {key[1] for key in recreated})
        present = {key for key, _, _ in differing}
        differing += [(key, None, desired[key]) for key in lost if key in desired and key not in present]
    going = {key[1] for key, _, new in links if new is None or key in recreated}

    # By rank, which takes less than sorting.
    forward: tuple[list[Step], ...] = tuple([] for _ in RANKS)
    backward: tuple[list[Step], ...] = tuple([] for _ in RANKS)
    for key in recreated:
        forward[LINK].append(Step(Action.DELETE, key, known[key], None))
    add, replace = Action.ADD, Action.REPLACE
    for key, old, new in differing:
        if new is not None:
            if old is None or key in lost or key in recreated:
                forward[key[0]].append(Step(add, key, None, new))
            else:
                forward[key[0]].append(Step(replace, key, old, new))
        elif old is not None and key[0] not in SETTINGS and (key[0] == LINK or link_of(old) not in going):
            backward[key[0]].append(Step(Action.DELETE, key, old, None))
    _keep_order(forward[SYSCTL], desired)
    return [*chain(*forward), *chain(*reversed(backward))]


def ordered(keys: Iterable[ObjectKey], desired: Mapping[ObjectKey, KernelObject]) -> list[ObjectKey]:
    """Return keys in the order of `diff`, so that slices of the list may be done one after the other."""
    present: tuple[list[ObjectKey], ...] = tuple([] for _ in RANKS)
    absent: tuple[list[ObjectKey], ...] = tuple([] for _ in RANKS)
    for key in keys:
        (present if key in desired else absent)[key[0]].append(key)
    return [*chain(*present), *chain(*reversed(absent))]


def link_of(value: KernelObject) -> str | None:
    """Return the name of the link that an object needs; None for one that needs none."""
    return None if isinstance(value, VxlanLink | PodLink) else value.link


def _differing(
    desired: Mapping[ObjectKey, KernelObject],
    known: Mapping[ObjectKey, KernelObject],
    keys: Collection[ObjectKey],
) -> list[tuple[ObjectKey, KernelObject | None, KernelObject | None]]:
    """Return each key that differs with what is known and what is desired."""
    found = []
    for key in keys:
        new = desired.get(key)
        old = known.get(key)
        # Equal values are mostly the same object, which costs no comparison.
        if new is not old and new != old:
            found.append((key, old, new))
    return found


def _keep_order(sysctls: list[Step], desired: Mapping[ObjectKey, KernelObject]) -> None:
    """Put sysctls in the order in which they are desired: accept_ra before forwarding."""
    if len(sysctls) > 1:
        place = {key: index for index, key in enumerate(desired) if key[0] == SYSCTL}
        sysctls.sort(key=lambda step: place[step.key])


def _is_fixed(old: KernelObject | None, new: KernelObject | None) -> bool:
    """Whether a link of this name has to be made anew."""
    return (
        isinstance(old, VxlanLink)
        and isinstance(new, VxlanLink)
        and (old.vni, old.port, old.local) != (new.vni, new.port, new.local)
    )


def _lost(known: Mapping[ObjectKey, KernelObject], links: set[object]) -> set[ObjectKey]:
    """Return what the kernel drops by itself with these links."""
    sources = {
        value.address for value in known.values() if isinstance(value, LinkAddress) and value.link in links
    }
    return {
        key
        for key, value in known.items()
        if link_of(value) in links or (isinstance(value, Route) and value.source in sources)
    }
