"""Holds the kernel's rules for one pod against what they should be. Reads, changes nothing.

What is asked is what decides one flow: where the map from the pod's link leads, the rules on that way, and
the elements that these look up. So it costs what one pod's policies are, not what all Services and sets are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from datapath.errors import NetlinkError
from datapath.nft import encode, observe
from datapath.nft.elements import interface, key, parse_verdict, verdict
from datapath.nft.plan import same_rules
from datapath.nft.policy import SUBJECTS, TABLE
from datapath.nft.rules import goto

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datapath.netlink.transport import Socket
    from datapath.nft.rules import Chain, Family
    from datapath.policy import Direction


@dataclass(frozen=True, slots=True)
class ExpectedVerdict:
    """What the kernel must hold for one flow at one pod.

    Attributes:
        family: of the flow.
        direction: at which end of the flow the pod is.
        host_link: the pod's.
        dispatch: the chain that decides for it; None where the pod is not isolated.
        chains: the policies' chains on the way.
        static: sets of these policies' own, with all their elements.
        members: names of shared sets, an element, and whether it is in.
    """

    family: Family
    direction: Direction
    host_link: str
    dispatch: Chain | None
    chains: tuple[Chain, ...] = ()
    static: tuple[tuple[str, Mapping[bytes, bytes]], ...] = ()
    members: tuple[tuple[str, bytes, bool], ...] = ()


def inspect(socket: Socket, expected: ExpectedVerdict) -> tuple[str, ...]:
    """Return in which way the kernel departs from what is expected, in words; nothing when it does not.

    Raises:
        DatapathError: the kernel can't be read.
    """
    family = expected.family
    subjects = _elements(socket, family, SUBJECTS[expected.direction])
    leads = subjects.get(key(interface(expected.host_link)))
    if expected.dispatch is None:
        return () if leads is None else (f"the pod is isolated there, by chain {parse_verdict(leads).chain}",)
    if leads is None:
        return ("the pod is not isolated there",)
    if leads != verdict(goto(expected.dispatch.name)):
        return (f"chain {parse_verdict(leads).chain} decides there instead of {expected.dispatch.name}",)
    present = observe.read_chains(socket, family, TABLE)
    faults = [
        f"chain {chain.name} has other rules there"
        for chain in (expected.dispatch, *expected.chains)
        if not same_rules(encode.encode_chain(chain, family), present.get(chain.name))
    ]
    faults += [
        f"set {name} has other elements there"
        for name, elements in expected.static
        if _elements(socket, family, name) != elements
    ]
    for name, element, is_in in expected.members:
        if observe.has_element(socket, (family, TABLE, name), element) is not is_in:
            faults.append(f"set {name} {'lacks' if is_in else 'holds'} the address or port there")
    return tuple(faults)


def _elements(socket: Socket, family: Family, name: str) -> Mapping[bytes, bytes]:
    try:
        return observe.read_elements(socket, (family, TABLE, name)) or {}
    except NetlinkError as error:
        if error.code != observe.ABSENT:
            raise
        return {}
