"""Two pods behind a router that polices one of them: the smallest node there is."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from datapath.nft.connection import Nft
from datapath.nft.observe import ObservedRuleset
from datapath.nft.plan import plan
from datapath.nft.rules import Ruleset
from tests.functional.nft.spaces import spaces

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from datapath.desired import Fragment
    from datapath.nft.rules import SetKey, Table
    from tests.functional.nft.spaces import Space

LINKS = {"client": "weft1", "server": "weft2"}
ADDRESSES = {"client": ("10.9.1.1", "fd09:1::1"), "server": ("10.9.2.1", "fd09:2::1")}


class Site:
    """The router and its two pods."""

    def __init__(self, router: Space, client: Space, server: Space) -> None:
        self.router, self.client, self.server = router, client, server
        for space in (router, client, server):
            # Duplicates are looked for over a second, in which IPv6 does not work.
            space.set(net__ipv6__conf__default__accept_dad="0")
        for number, (name, space) in enumerate((("client", client), ("server", server)), start=1):
            link = LINKS[name]
            router.ip(
                f"link add {link} type veth peer name eth0 netns {space.name}",
                f"addr add 10.9.{number}.2/24 dev {link}",
                f"addr add fd09:{number}::2/64 dev {link} nodad",
                f"link set {link} up",
            )
            space.ip(
                f"addr add 10.9.{number}.1/24 dev eth0",
                f"addr add fd09:{number}::1/64 dev eth0 nodad",
                "link set eth0 up",
                f"route add default via 10.9.{number}.2",
                f"route add default via fd09:{number}::2",
            )
        router.set(net__ipv4__ip_forward="1", net__ipv6__conf__all__forwarding="1")

    def program(self, fragments: Iterable[Fragment]) -> None:
        """Make these the rules of the router."""
        tables: dict[tuple[int, str], Table] = {}
        elements: dict[SetKey, Mapping[bytes, bytes]] = {}
        for fragment in fragments:
            tables |= {table.key: table for table in fragment.tables}
            for each in fragment.elements:
                elements[each.key] = {**elements.get(each.key, {}), **each.elements}
        with Nft(namespace=self.router.descriptor) as nft:
            nft.apply(plan(Ruleset(tuple(tables.values()), elements), ObservedRuleset(0, {})))

    def send(self, count: int, *, family: int = 0, port: int = 4242) -> None:
        """Send datagrams of 10 bytes from the client to the server, and wait until they must have come."""
        address = ADDRESSES["server"][family]
        with self.client.receiver(ADDRESSES["client"][family], 0) as sender:
            for _ in range(count):
                sender.sendto(bytes(10), (address, port))


@contextlib.contextmanager
def site() -> Iterator[Site]:
    with spaces("router", "client", "server") as (router, client, server):
        yield Site(router, client, server)
