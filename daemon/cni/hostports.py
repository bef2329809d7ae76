"""Reads the host ports that a runtime asks for: `runtimeConfig.portMappings`, the CNI capability. Pure.

Conventions of CNI (CONVENTIONS.md, "Dynamic Plugin specific fields"): hostPort, containerPort, protocol and,
as containerd and CRI-O pass it, hostIP. Read strictly: a port that silently is not there is worse than a pod
that says why it does not start.
"""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING

from daemon.cni.errors import CniError, Code
from ipam.ports import ANY, PROTOCOLS, PortMapping, claims

if TYPE_CHECKING:
    from daemon.cni.document import Document

_MOST = 65_535


def read(runtime: Document) -> tuple[PortMapping, ...]:
    """Return the host ports in runtimeConfig, each once; hostPort 0 asks for none.

    Raises:
        CniError: code 6 for a member of the wrong type, 7 for a value that is none, or for two entries that
            lead one host port to different places.
    """
    found: dict[PortMapping, None] = {}
    for entry in runtime.children("portMappings"):
        port = _port(entry, "hostPort")
        if port:
            target = _port(entry, "containerPort")
            if not target:
                raise _invalid(entry, "containerPort", "is missing")
            found[PortMapping(_host_address(entry), _protocol(entry), port, target)] = None
    _require_one_target(found)
    return tuple(found)


def _port(entry: Document, name: str) -> int:
    number = entry.number(name) or 0
    if not 0 <= number <= _MOST:
        raise _invalid(entry, name, f"{number} is no port")
    return number


def _protocol(entry: Document) -> int:
    text = entry.text("protocol")
    number = PROTOCOLS.get(text.lower())
    if number is None:
        raise _invalid(entry, "protocol", f"must be tcp, udp or sctp, and is {text!r}")
    return number


def _host_address(entry: Document) -> bytes:
    text = entry.text("hostIP")
    if not text:
        return b""
    try:
        address = ip_address(text)
    except ValueError:
        raise _invalid(entry, "hostIP", f"{text!r} is no IP address") from None
    if isinstance(address, IPv6Address):
        if address.scope_id:
            raise _invalid(entry, "hostIP", f"{text!r} has a zone, which names a link and no address")
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped.packed
    return address.packed


def _require_one_target(ports: dict[PortMapping, None]) -> None:
    targets: dict[tuple[bytes, int, int], int] = {}
    for each in ports:
        for claim in claims((each,), ANY):
            if targets.setdefault(claim, each.container_port) != each.container_port:
                raise CniError(
                    Code.INVALID_CONFIG,
                    f"runtimeConfig.portMappings leads host port {each} to another port of the pod as well",
                    "give each hostPort of the pod one containerPort",
                )


def _invalid(entry: Document, name: str, why: str) -> CniError:
    return CniError(Code.INVALID_CONFIG, f"{entry.at}.{name}: {why}", "correct the pod's ports")
