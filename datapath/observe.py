"""What the kernel holds of ours, read back as the values of `datapath.desired`. Reads only.

Ours are: links named `weft.*` that are VXLAN, links of attachments, addresses on both, permanent neighbours
and forwarding entries of the VXLAN links, routes of the main table with our protocol, and the settings that
somebody asks for. The reading is cut into pieces, so that the writer can attach a pod between two of them;
it is therefore no snapshot, and whoever changes the kernel meanwhile has to remember what.
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from datapath import sysctls
from datapath.attachment import DOOMED_GROUP
from datapath.desired import (
    ROUTE_PROTOCOL,
    VETH_PREFIX,
    FdbEntry,
    LinkAddress,
    Neighbour,
    PodLink,
    VxlanLink,
    object_key,
)
from datapath.errors import DatapathError
from datapath.ethtool import tx_checksum
from datapath.netlink.addresses import decode_address, get_addresses
from datapath.netlink.links import decode_link, get_links
from datapath.netlink.neighbours import decode_fdb, decode_neighbour, get_fdb, get_neighbours
from datapath.netlink.routes import TABLE_MAIN, decode_route, get_routes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from datapath.desired import KernelObject, ObjectKey, Route, Sysctl
    from datapath.netlink.links import LinkState
    from datapath.netlink.transport import Socket

POD_LINK = re.compile(VETH_PREFIX + r"[0-9a-f]{11}")
OWN_LINK = VETH_PREFIX + "."
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_MEMO_LIMIT = 200_000


@dataclass(slots=True)
class Observed:
    """One reading.

    Attributes:
        objects: ours, by key.
        extras: objects that share their key with another one (a route appended to another).
        indexes: index of every link by name, foreign ones too.
        links: our links and others' that could be in the way.
    """

    objects: dict[ObjectKey, KernelObject] = field(default_factory=dict)
    extras: list[KernelObject] = field(default_factory=list)
    indexes: dict[str, int] = field(default_factory=dict)
    links: tuple[LinkState, ...] = ()

    def add(self, value: KernelObject) -> None:
        """Include an object."""
        key = object_key(value)
        if key in self.objects:
            self.extras.append(value)
        else:
            self.objects[key] = value


class Observer:
    """Reads the kernel of one namespace again and again; used by one thread, in that namespace."""

    def __init__(self, route: Socket) -> None:
        self._route = route
        # The kernel lists an unchanged route with the same bytes each time, and decoding is what costs.
        self._routes: dict[bytes, Route | None] = {}
        self._names: dict[int, str] = {}

    def read(self, settings: Iterable[Sysctl] = ()) -> Observed:
        """Return one reading at once. Raises as `pieces`."""
        observed = Observed()
        for _ in self.pieces(observed, settings):
            pass
        return observed

    def pieces(self, observed: Observed, settings: Iterable[Sysctl] = ()) -> Iterator[None]:
        """Fill `observed`, piece by piece; the writer may do something else after each.

        Args:
            observed: what to fill.
            settings: which settings to read; what need not change is observed as it is given.

        Raises:
            NetlinkError, NetlinkOverrunError, NetlinkDumpInterruptedError: the reading failed.
        """
        ours = self._read_links(observed)
        yield
        self._read_addresses(observed, {link.index: link.name for link in ours})
        for setting in settings:
            value = read_setting(setting.path)
            if value is not None:
                observed.add(setting if setting.met_by(value) else replace(setting, value=value))
        yield
        for link in ours:
            if link.kind == "vxlan":
                self._read_fdb(observed, link)
                yield
                for family in _FAMILIES:
                    self._read_neighbours(observed, link, family)
                    yield
        for family in _FAMILIES:
            self._read_routes(observed, family)
            yield

    def _read_links(self, observed: Observed) -> list[LinkState]:
        payloads = self._route.dump(get_links(), "links could not be read")
        states = [decode_link(payload) for payload in payloads]
        names = {state.index: state.name for state in states}
        if names != self._names:
            self._routes.clear()
            self._names = names
        observed.indexes = {state.name: state.index for state in states}
        observed.links = tuple(states)
        ours = []
        for state in states:
            if state.name.startswith(OWN_LINK):
                observed.add(_vxlan(state))
                ours.append(state)
            elif state.kind == "veth" and POD_LINK.fullmatch(state.name) and state.group != DOOMED_GROUP:
                observed.add(PodLink(state.name, state.up))
                ours.append(state)
        return ours

    def _read_addresses(self, observed: Observed, names: dict[int, str]) -> None:
        if not names:
            return
        for family in _FAMILIES:
            for payload in self._route.dump(get_addresses(family), "addresses could not be read"):
                state = decode_address(payload)
                link = names.get(state.link_index)
                if link is not None:
                    observed.add(LinkAddress(link, state.address, state.length))

    def _read_fdb(self, observed: Observed, link: LinkState) -> None:
        for payload in self._route.dump(get_fdb(link.index), f"FDB of {link.name} could not be read"):
            state = decode_fdb(payload)
            if state.remote is not None:
                observed.add(FdbEntry(link.name, state.mac, state.remote))

    def _read_neighbours(self, observed: Observed, link: LinkState, family: int) -> None:
        action = f"neighbours of {link.name} could not be read"
        for payload in self._route.dump(get_neighbours(family, link.index), action):
            state = decode_neighbour(payload)
            if state.permanent and state.mac is not None:
                observed.add(Neighbour(link.name, state.address, state.mac))

    def _read_routes(self, observed: Observed, family: int) -> None:
        memo = self._routes
        if len(memo) > _MEMO_LIMIT:
            memo.clear()
        names = self._names
        action = "routes could not be read"
        for payload in self._route.dump(get_routes(family, protocol=ROUTE_PROTOCOL), action):
            if payload in memo:
                route = memo[payload]
            else:
                state = decode_route(payload)
                ours = state.protocol == ROUTE_PROTOCOL and state.table == TABLE_MAIN
                route = memo[payload] = state.route(names) if ours else None
            if route is not None:
                observed.add(route)


def read_setting(path: str) -> str | None:
    """Return a setting below /proc/sys as text; None when there is none of that name."""
    try:
        with open(f"/proc/sys/{path}", encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DatapathError(f"/proc/sys/{path} can't be read: {error.strerror}") from error


def write_setting(path: str, value: str) -> None:
    """Write a setting below /proc/sys. Raises DatapathError with what to do."""
    try:
        descriptor = os.open(f"{sysctls.WRITABLE}/{path}", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise DatapathError(
            f"{sysctls.WRITABLE}/{path} does not exist: the kernel lacks the feature"
        ) from error
    except OSError as error:
        raise DatapathError(
            f"{sysctls.WRITABLE}/{path} can't be written: {error.strerror} (a container needs the node's "
            "/proc/sys/net mounted writable, and WEFT_SYSCTLS to name the directory above it)"
        ) from error
    try:
        os.write(descriptor, value.encode())
    except OSError as error:
        raise DatapathError(f"/proc/sys/{path} refused {value}: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _vxlan(state: LinkState) -> VxlanLink:
    """Return a link of our name as what it is; what is no VXLAN link of our kind compares with none."""
    device = state.vxlan
    if device is None or device.learning or device.external:
        return VxlanLink(state.name, -1, 0, state.mac, b"", state.mtu, up=state.up)
    return VxlanLink(
        name=state.name,
        vni=device.vni,
        port=device.port,
        mac=state.mac,
        local=device.local or b"",
        mtu=state.mtu,
        tx_checksum=tx_checksum(state.name),
        up=state.up,
    )
