"""Takes everything of ours out of one namespace's kernel, for good: what uninstalling Weft means there.

Recognises what is ours as the observer does (names of links, protocol of routes, names of tables), so it
needs no desired state and no database. Settings below /proc/sys stay: what they were before is not known, and
others may rely on them by now. Never used by the daemon, which must not run meanwhile.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datapath import podlinks
from datapath.attachment import DOOMED_GROUP
from datapath.desired import Route
from datapath.netlink.links import decode_link, del_group, del_link, get_links
from datapath.netlink.routes import del_route
from datapath.nft.encode import delete_table
from datapath.observe import OWN_LINK, Observer
from datapath.text import prefix

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from datapath.netlink.transport import Message, Socket
    from datapath.nft.connection import Nft

_GONE = frozenset({errno.ENODEV, errno.ESRCH, errno.ENOENT})


@dataclass(frozen=True, slots=True)
class Remains:
    """What is there of ours.

    Attributes:
        pods: alias of each pod link by the link's name; a pod uses each of them.
        links: other links.
        routes: with our protocol, as text.
        tables: of nftables, by family and name.
    """

    pods: Mapping[str, str]
    links: tuple[str, ...]
    routes: tuple[str, ...]
    tables: tuple[tuple[int, str], ...]

    def __bool__(self) -> bool:
        return bool(self.pods or self.links or self.routes or self.tables)


def find(route: Socket, nft: Nft) -> Remains:
    """Read what is there. Raises DatapathError."""
    links = [decode_link(payload) for payload in route.dump(get_links(), "links could not be read")]
    return Remains(
        pods=podlinks.aliases(links),
        links=tuple(link.name for link in links if link.name.startswith(OWN_LINK)),
        routes=tuple(prefix(each.destination, each.length) for each, _ in _routes(route)),
        tables=tuple(nft.read().tables),
    )


def remove_links(route: Socket, names: Iterable[str]) -> None:
    """Delete links, with the addresses, neighbours, forwarding entries and routes on them; also doomed ones.

    Raises:
        NetlinkError: the kernel refused for another reason than absence.
    """
    _delete(route, (del_link(name) for name in names), "a link can't be deleted")
    _delete(route, (del_group(DOOMED_GROUP),), "detached links can't be destroyed")


def remove_routes(route: Socket) -> None:
    """Delete all routes with our protocol. Raises DatapathError."""
    _delete(route, (del_route(each, index) for each, index in _routes(route)), "a route can't be deleted")


def remove_tables(nft: Nft) -> None:
    """Delete our tables in one transaction. Raises DatapathError."""
    tables = nft.read().tables
    nft.commit([delete_table(*key) for key in tables], "nftables could not be cleared")


def _routes(route: Socket) -> Iterator[tuple[Route, int]]:
    """Yield routes of ours, each with the index of its link or 0."""
    observed = Observer(route).read()
    for value in (*observed.objects.values(), *observed.extras):
        if isinstance(value, Route):
            yield value, observed.indexes[value.link] if value.link else 0


def _delete(route: Socket, messages: Iterable[Message], action: str) -> None:
    listed = tuple(messages)
    if not listed:
        return
    for error in route.batch_collect(listed, action):
        if error.code not in _GONE:
            raise error
