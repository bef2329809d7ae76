"""What has to be done so that the kernel holds what is desired: ordered steps. Pure.

Adds come before deletes, so that a change never opens a gap: links → addresses → neighbours → FDB entries →
routes, then the deletions in the opposite order. The one exception is a link that can only be made anew
(VNI, port and local address are fixed at creation): it is deleted first, and what the kernel drops with
it, the routes that prefer one of its addresses included, is written again.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from datapath.desired import LINK, SETTINGS, SYSCTL, LinkAddress, PodLink, Route, VxlanLink

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

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
    wanted = desired.keys() | known.keys() if keys is None else keys
    differing = [key for key in wanted if _differs(desired.get(key), known.get(key))]
    recreated = {key for key in differing if key[0] == LINK and _is_fixed(known.get(key), desired.get(key))}
    lost = _lost(known, {key[1] for key in recreated}) if recreated else set()
    if lost:
        present = set(differing)
        differing += [key for key in lost if key in desired and key not in present]
    going = {key[1] for key in differing if key[0] == LINK and key not in desired}
    going |= {key[1] for key in recreated}

    forward = [Step(Action.DELETE, key, known[key], None) for key in recreated]
    backward: list[Step] = []
    for key in differing:
        old, new = known.get(key), desired.get(key)
        if new is not None:
            fresh = old is None or key in lost or key in recreated
            forward.append(Step(Action.ADD if fresh else Action.REPLACE, key, None if fresh else old, new))
        elif old is not None and key[0] not in SETTINGS and (key[0] == LINK or link_of(old) not in going):
            backward.append(Step(Action.DELETE, key, old, None))
    # Sorting is stable: the deletion of a link to be made anew stays before its creation.
    forward.sort(key=_step_rank)
    _keep_order_of_sysctls(forward, desired)
    backward.sort(key=_step_rank, reverse=True)
    return forward + backward


def link_of(value: KernelObject) -> str | None:
    """Return the name of the link that an object needs; None for one that needs none."""
    return None if isinstance(value, VxlanLink | PodLink) else value.link


def _differs(wanted: KernelObject | None, present: KernelObject | None) -> bool:
    return wanted is not present and wanted != present


def _step_rank(step: Step) -> int:
    return step.key[0]


def _keep_order_of_sysctls(steps: list[Step], desired: Mapping[ObjectKey, KernelObject]) -> None:
    """Put the sysctls, which come first, in the order in which they are desired."""
    count = sum(1 for step in steps if step.key[0] == SYSCTL)
    if count > 1:
        place = {key: index for index, key in enumerate(desired) if key[0] == SYSCTL}
        steps[:count] = sorted(steps[:count], key=lambda step: place[step.key])


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
