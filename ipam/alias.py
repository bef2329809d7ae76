"""The attachment as its host link's alias: how the kernel itself remembers who holds which address.

An empty database is rebuilt from these, so the text is a format with a version, written compactly
(IFLA_IFALIAS holds 255 bytes, linux/if.h IFALIASZ) and read strictly:

    weft1 <network> <container id> <ifname> <mac, 12 hex digits> <address>[,<address>] <pod> [<netns path>]

The pod is `namespace/name`, or `-` where it is not known or does not fit. The namespace's path comes last and
is left out where it does not fit; the link's disappearance tells then that the namespace is gone. Pure: knows
no netlink and no database.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, inet_ntop
from typing import TYPE_CHECKING

from ipam.errors import AliasError
from ipam.record import AttachmentKey

if TYPE_CHECKING:
    from ipam.record import Record

LIMIT = 255
"""Bytes that fit, without the terminating zero."""

_FORM = re.compile(
    r"weft1 (?P<network>[a-zA-Z0-9][a-zA-Z0-9_.\-]*) (?P<container>[a-zA-Z0-9][a-zA-Z0-9_.\-]*) "
    r"(?P<ifname>[^\s/:]{1,15}) (?P<mac>[0-9a-f]{12}) (?P<addresses>[0-9a-f.:]+(?:,[0-9a-f.:]+)?) "
    r"(?:(?P<namespace>[a-zA-Z0-9.\-]+)/(?P<name>[a-zA-Z0-9.\-]+)|-)"
    r"(?: (?P<netns>/[^\x00-\x1f\x7f]*))?"
)
_FAMILIES = {4: AF_INET, 16: AF_INET6}
_POD = re.compile(r"[a-zA-Z0-9.\-]+/[a-zA-Z0-9.\-]+")


@dataclass(frozen=True, slots=True)
class Alias:
    """What an alias says."""

    key: AttachmentKey
    mac: bytes
    addresses: tuple[bytes, ...]
    netns: str
    pod_namespace: str
    pod_name: str


def is_alias(text: str) -> bool:
    """Whether a link's alias claims to be one of ours, of whatever version."""
    return re.match(r"weft\d+ ", text) is not None


def write(record: Record) -> str:
    """Return the alias for a record's host link; the names in its key are valid.

    Raises:
        AliasError: it is longer than the kernel takes: the network's name or the container id is to blame.
    """
    key = record.key
    # A list: join() would make one of a generator, with two calls more for each address.
    addresses = ",".join([inet_ntop(_FAMILIES[len(address)], address) for address in record.addresses])
    start = f"weft1 {key.network} {key.container_id} {key.ifname} {record.mac.hex()} {addresses}"
    pod = f"{record.pod_namespace}/{record.pod_name}"
    if not _POD.fullmatch(pod):
        pod = "-"
    netns = f" {record.netns}" if record.netns[:1] == "/" and record.netns.isprintable() else ""
    for text in (f"{start} {pod}{netns}", f"{start} -{netns}", f"{start} {pod}", f"{start} -"):
        if len(text) <= LIMIT and (text.isascii() or len(text.encode()) <= LIMIT):
            return text
    raise AliasError(
        f"attachment {key} can't be noted in its link's alias, which holds {LIMIT} bytes: use a shorter "
        "network name in the CNI configuration"
    )


def is_of(text: str, record: Record) -> bool:
    """Whether an alias is the one that `write` makes of a record."""
    try:
        return text == write(record)
    except AliasError:
        return False


def read(text: str) -> Alias:
    """Return what an alias says.

    Raises:
        AliasError: it is not exactly what `write` makes.
    """
    match = _FORM.fullmatch(text)
    if match is None or len(text.encode()) > LIMIT:
        raise AliasError(f"link alias {text!r} is not one of Weft's")
    try:
        addresses = tuple(ip_address(part).packed for part in match["addresses"].split(","))
    except ValueError as error:
        raise AliasError(f"link alias {text!r} holds an address that is none") from error
    if len({len(address) for address in addresses}) != len(addresses):
        raise AliasError(f"link alias {text!r} holds two addresses of one family")
    key = AttachmentKey(match["network"], match["container"], match["ifname"])
    return Alias(
        key,
        bytes.fromhex(match["mac"]),
        addresses,
        match["netns"] or "",
        match["namespace"] or "",
        match["name"] or "",
    )
