"""What the node's links say of attachments: which are hosts' ends, and what their aliases remember. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from daemon.cni.naming import is_host_link, names
from datapath.attachment import DOOMED_GROUP
from ipam import alias
from ipam.errors import AliasError
from ipam.ports import PortMapping
from ipam.record import Record, State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from datapath.desired import Address
    from datapath.nft.hostports import HostPort


class Link(Protocol):
    """What is read of a link (datapath.netlink.links.LinkState)."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def kind(self) -> str:
        """Kind as rtnetlink names it."""

    @property
    def group(self) -> int:
        """IFLA_GROUP: detached links wait in one for their destruction."""

    @property
    def alias(self) -> str:
        """IFLA_IFALIAS."""

    @property
    def mtu(self) -> int:
        """Bytes."""


def aliases(links: Iterable[Link]) -> dict[str, str]:
    """Return the alias of each attachment's host link by its name."""
    return {link.name: link.alias for link in _host_links(links)}


def records_of(links: Iterable[Link], now: float) -> tuple[list[Record], list[str]]:
    """Return the attachments that links remember, without host ports, and in words what is strange.

    Args:
        links: all of the node.
        now: when the attachments are said to be created, in seconds of CLOCK_BOOTTIME.
    """
    records: list[Record] = []
    problems: list[str] = []
    for link in _host_links(links):
        if not link.alias:
            continue  # An ADD died before it set the alias, and told nobody: a collection removes the link.
        try:
            noted = alias.read(link.alias)
        except AliasError as error:
            problems.append(f"link {link.name}: {error}")
            continue
        if names(noted.key)[0] != link.name:
            problems.append(f"link {link.name} has the alias of another link: {link.alias!r}")
            continue
        records.append(
            Record(
                noted.key,
                noted.netns,
                link.name,
                noted.mac,
                link.mtu,
                noted.addresses,
                noted.pod_namespace,
                noted.pod_name,
                state=State.ATTACHED,
                created=now,
            )
        )
    return records, problems


def with_ports(records: Iterable[Record], ports: Mapping[Address, tuple[HostPort, ...]]) -> list[Record]:
    """Return records with the host ports that the kernel has for their addresses."""
    return [
        replace(
            record,
            ports=tuple(
                PortMapping(*each) for address in record.addresses for each in ports.get(address, ())
            ),
        )
        for record in records
    ]


def _host_links(links: Iterable[Link]) -> list[Link]:
    return [
        link
        for link in links
        if link.kind == "veth" and link.group != DOOMED_GROUP and is_host_link(link.name)
    ]
