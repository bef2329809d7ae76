"""Objects and differences in words, as `ip`, `bridge` and `sysctl` would put them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from datapath import text
from datapath.desired import (
    FdbEntry,
    LinkAddress,
    Neighbour,
    PodLink,
    Route,
    RouteKind,
    Sysctl,
    VxlanLink,
)
from datapath.diff import Action

if TYPE_CHECKING:
    from collections.abc import Iterable

    from datapath.desired import KernelObject
    from datapath.diff import Step

_KINDS = {
    VxlanLink: "link",
    PodLink: "link",
    LinkAddress: "address",
    Neighbour: "neighbour",
    FdbEntry: "fdb",
    Route: "route",
    Sysctl: "sysctl",
}
_WRONG = {Action.ADD: "missing", Action.REPLACE: "changed", Action.DELETE: "stale"}


class Difference(NamedTuple):
    """One difference between the kernel and what is desired.

    Attributes:
        kind: of the object: link, address, neighbour, fdb, route, sysctl, nft.
        action: what is wrong with it: missing, changed, stale.
        object: the object in words; a changed one as desired, then as found.
    """

    kind: str
    action: str
    object: str


def differences(steps: Iterable[Step]) -> tuple[Difference, ...]:
    """Return in words what steps would put right."""
    found = []
    for step in steps:
        value = step.new if step.new is not None else step.old
        assert value is not None
        words = describe(value)
        if step.action is Action.REPLACE and step.old is not None:
            words += f" (found: {describe(step.old)})"
        found.append(Difference(kind(value), _WRONG[step.action], words))
    return tuple(found)


def kind(value: KernelObject) -> str:
    """Return the word for what kind of object this is."""
    return _KINDS[type(value)]


def describe(value: KernelObject) -> str:
    """Return an object in words, as `ip` and `bridge` would put it."""
    match value:
        case VxlanLink():
            state = "" if value.up else " down"
            return (
                f"{value.name} vxlan id {value.vni} dstport {value.port} local "
                f"{text.address(value.local) if value.local else 'none'} address {text.mac(value.mac)} "
                f"mtu {value.mtu}{'' if value.tx_checksum else ' tx-checksum off'}{state}"
            )
        case PodLink():
            return f"{value.name} {'up' if value.up else 'down'}"
        case LinkAddress():
            return f"{text.prefix(value.address, value.length)} dev {value.link}"
        case Neighbour():
            return f"{text.address(value.address)} lladdr {text.mac(value.mac)} dev {value.link}"
        case FdbEntry():
            return f"{text.mac(value.mac)} dst {text.address(value.remote)} dev {value.link}"
        case Route():
            return _describe_route(value)
        case Sysctl():
            return f"{value.path} {'>=' if value.least else '='} {value.value}"


def _describe_route(route: Route) -> str:
    words = [text.prefix(route.destination, route.length)]
    if route.kind is not RouteKind.UNICAST:
        words.insert(0, route.kind.name.lower())
    if route.gateway is not None:
        words.append(f"via {text.address(route.gateway)}")
    if route.link is not None:
        words.append(f"dev {route.link}")
    if route.source is not None:
        words.append(f"src {text.address(route.source)}")
    if route.metric:
        words.append(f"metric {route.metric}")
    if route.onlink:
        words.append("onlink")
    return " ".join(words)
