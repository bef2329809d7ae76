"""Tells the node's ends of pods' links from all other links. Reads only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datapath.attachment import DOOMED_GROUP
from datapath.netlink.links import decode_link, get_links
from datapath.observe import POD_LINK

if TYPE_CHECKING:
    from collections.abc import Iterable

    from datapath.netlink.links import LinkState
    from datapath.netlink.transport import Socket


def aliases(links: Iterable[LinkState]) -> dict[str, str]:
    """Return the alias of each pod link by its name; those that wait to be destroyed are none any more."""
    return {
        link.name: link.alias
        for link in links
        if link.kind == "veth" and link.group != DOOMED_GROUP and POD_LINK.fullmatch(link.name)
    }


def read(host: Socket) -> dict[str, str]:
    """Return the same of the namespace that the socket belongs to.

    Raises:
        NetlinkError: the links can't be listed.
    """
    return aliases(map(decode_link, host.dump(get_links("veth"), "list pod links")))
