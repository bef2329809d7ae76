"""Results of ADD: built once in the newest form, converted to the version that a request speaks.

Also reads prevResult of any version back. Pure. Source: CNI specification 1.1.0, "Success"; 0.2.0 to 1.0.0
for the older forms.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Any

from daemon.cni.errors import CniError, Code

if TYPE_CHECKING:
    from daemon.cni.document import Document

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""What Weft speaks, oldest first."""
_WITH_FAMILY = frozenset({"0.3.0", "0.3.1", "0.4.0"})
_BY_FAMILY = frozenset({"", "0.1.0", "0.2.0"})
_ROUTE_NUMBERS = ("mtu", "advmss", "priority", "table", "scope")


@dataclass(frozen=True, slots=True)
class Interface:
    """A link; `sandbox` is its namespace's path, "" on the host."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socket_path: str = ""
    pci_id: str = ""


@dataclass(frozen=True, slots=True)
class Ip:
    """An address with its prefix length, and the index of the interface that has it."""

    address: str
    gateway: str = ""
    interface: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """A route; `numbers` are the members of 1.1.0 that were given."""

    destination: str
    gateway: str = ""
    numbers: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Dns:
    """What a result says about names."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.nameservers or self.domain or self.search or self.options)


@dataclass(frozen=True, slots=True)
class Result:
    """What an ADD did, in the form of 1.1.0."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[Ip, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = field(default_factory=Dns)

    def followed_by(self, other: Result) -> Result:
        """Return this result, of a plugin before us in a chain, with ours appended."""
        shift = len(self.interfaces)
        ips = tuple(
            ip if ip.interface is None else replace(ip, interface=ip.interface + shift) for ip in other.ips
        )
        return Result(
            self.interfaces + other.interfaces,
            self.ips + ips,
            self.routes + other.routes,
            other.dns or self.dns,
        )

    def to_json(self, version: str) -> bytes:
        """Return the result in one of `VERSIONS`."""
        newest = version == VERSIONS[-1]
        body = {
            "cniVersion": version,
            "interfaces": [_interface(interface, newest=newest) for interface in self.interfaces],
            "ips": [_ip(ip, family=version in _WITH_FAMILY) for ip in self.ips],
            "routes": [_route(route, newest=newest) for route in self.routes],
            "dns": dns_members(self.dns),
        }
        return json.dumps(body).encode() + b"\n"


def read_result(document: Document, version: str) -> Result:
    """Read a prevResult.

    Args:
        document: the object.
        version: the configuration's cniVersion, which holds unless the result names its own.

    Raises:
        CniError: code 6 for a member of the wrong type, code 7 for a version or address that is none.
    """
    version = document.text("cniVersion", version)
    if version in _BY_FAMILY:
        return _read_by_family(document)
    if version not in _WITH_FAMILY and version not in VERSIONS:
        raise CniError(
            Code.INVALID_CONFIG, "prevResult has an unknown cniVersion", f"{version!r}; known: {VERSIONS}"
        )
    interfaces = tuple(
        Interface(
            item.text("name"),
            item.text("mac"),
            item.number("mtu") or 0,
            item.text("sandbox"),
            item.text("socketPath"),
            item.text("pciID"),
        )
        for item in document.children("interfaces")
    )
    ips = tuple(
        Ip(_checked(item, "address"), item.text("gateway"), item.number("interface"))
        for item in document.children("ips")
    )
    for ip in ips:
        if ip.interface is not None and not 0 <= ip.interface < len(interfaces):
            raise CniError(
                Code.INVALID_CONFIG,
                f"prevResult: address {ip.address} is on interface {ip.interface} of {len(interfaces)}",
            )
    return Result(interfaces, ips, _read_routes(document), read_dns(document.child("dns")))


def read_dns(document: Document) -> Dns:
    """Read a `dns` object."""
    return Dns(
        document.texts("nameservers"),
        document.text("domain"),
        document.texts("search"),
        document.texts("options"),
    )


def dns_members(dns: Dns) -> dict[str, Any]:
    """The members of a `dns` object that have a value."""
    members = {
        "nameservers": list(dns.nameservers),
        "domain": dns.domain,
        "search": list(dns.search),
        "options": list(dns.options),
    }
    return {name: value for name, value in members.items() if value}


def _interface(interface: Interface, *, newest: bool) -> dict[str, Any]:
    members: dict[str, Any] = {"name": interface.name}
    if interface.mac:
        members["mac"] = interface.mac
    if newest and interface.mtu:
        members["mtu"] = interface.mtu
    if interface.sandbox:
        members["sandbox"] = interface.sandbox
    if newest and interface.socket_path:
        members["socketPath"] = interface.socket_path
    if newest and interface.pci_id:
        members["pciID"] = interface.pci_id
    return members


def _ip(ip: Ip, *, family: bool) -> dict[str, Any]:
    members: dict[str, Any] = {"version": "6" if ":" in ip.address else "4"} if family else {}
    if ip.interface is not None:
        members["interface"] = ip.interface
    members["address"] = ip.address
    if ip.gateway:
        members["gateway"] = ip.gateway
    return members


def _route(route: Route, *, newest: bool) -> dict[str, Any]:
    members: dict[str, Any] = {"dst": route.destination}
    if route.gateway:
        members["gw"] = route.gateway
    if newest:
        members.update(route.numbers)
    return members


def _read_routes(document: Document) -> tuple[Route, ...]:
    routes = []
    for item in document.children("routes"):
        numbers = ((name, item.number(name)) for name in _ROUTE_NUMBERS)
        given = tuple((name, number) for name, number in numbers if number is not None)
        routes.append(Route(_checked(item, "dst"), item.text("gw"), given))
    return tuple(routes)


def _read_by_family(document: Document) -> Result:
    """Read the form of 0.1.0 and 0.2.0: an address of each family with its routes, no interfaces."""
    ips: list[Ip] = []
    routes: list[Route] = []
    for name in ("ip4", "ip6"):
        if document.raw(name) is not None:
            item = document.child(name)
            ips.append(Ip(_checked(item, "ip"), item.text("gateway")))
            routes += _read_routes(item)
    return Result((), tuple(ips), tuple(routes), read_dns(document.child("dns")))


def _checked(document: Document, name: str) -> str:
    text = document.text(name)
    try:
        ip_interface(text)
    except ValueError as error:
        raise CniError(
            Code.INVALID_CONFIG, f"{document.at}.{name} is no address with a prefix length", repr(text)
        ) from error
    return text
