"""What else on this machine concerns itself with pods' packets: other pod networks' remains, firewalls.

Reads only: names of links, and the chains of nftables (which iptables-nft writes too). What iptables-legacy
holds can't be seen through nftables.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from datapath.netlink.attributes import big_endian, parse, text
from datapath.netlink.nfnetlink import header, nft_kind
from datapath.netlink.transport import Message

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from datapath.netlink.transport import Socket

_GETCHAIN = 4  # enum nf_tables_msg_types
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY = 1, 3, 4, 5
_HOOK_NUMBER = 1
_FORWARD = 2  # NF_INET_FORWARD
_DROP = 0  # NF_DROP
_FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}
_GENMSG_BYTES = 4

_LINKS = (
    (re.compile(r"cni\d+"), "the bridge plugin (flannel uses it)"),
    (re.compile(r"flannel(-v6)?\.\d+"), "flannel"),
    (re.compile(r"cali[0-9a-f]{11}|vxlan(-v6)?\.calico"), "Calico"),
    (re.compile(r"cilium_\w+"), "Cilium"),
    (re.compile(r"antrea-gw\d+"), "Antrea"),
    (re.compile(r"weave"), "Weave Net"),
    (re.compile(r"kube-bridge"), "kube-router"),
)
_CHAINS = (
    ("cali-", "Calico"),
    ("CILIUM_", "Cilium"),
    ("FLANNEL-", "flannel"),
    ("ANTREA-", "Antrea"),
    ("WEAVE-", "Weave Net"),
    ("KUBE-ROUTER-", "kube-router"),
)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What was found.

    Attributes:
        leftovers: by product, what remains of it, in words.
        dropping: base chains at the forward hook with policy drop, as "family table chain".
        firewalld: whether firewalld's table is there.
    """

    leftovers: Mapping[str, str] = field(default_factory=dict)
    dropping: tuple[str, ...] = ()
    firewalld: bool = False


@dataclass(frozen=True, slots=True)
class ForeignChain:
    """A chain of nftables, and whether it is one at the forward hook that drops by policy."""

    family: str
    table: str
    name: str
    forward_drop: bool


def observe(netfilter: Socket) -> Surroundings:
    """Look around in this thread's network namespace.

    Raises:
        NetlinkError: nftables can't be read.
        NetlinkDumpInterruptedError: it changed over and over; look again later.
    """
    request = Message(nft_kind(_GETCHAIN), 0, header(0))
    chains = [_chain(payload) for payload in netfilter.dump(request, "chains of nftables could not be read")]
    return describe(
        [name for _, name in socket.if_nameindex()], [each for each in chains if each is not None]
    )


def describe(links: Iterable[str], chains: Iterable[ForeignChain]) -> Surroundings:
    """Tell what links and chains mean."""
    remains: dict[str, list[str]] = {}
    for link in links:
        for pattern, product in _LINKS:
            if pattern.fullmatch(link):
                remains.setdefault(product, []).append(f"link {link}")
    chains = list(chains)
    for start, product in _CHAINS:
        if count := sum(chain.name.startswith(start) for chain in chains):
            remains.setdefault(product, []).append(f"{count} chains {start}* of nftables")
    return Surroundings(
        leftovers={product: _words(items) for product, items in remains.items()},
        dropping=tuple(
            f"{chain.family} {chain.table} {chain.name}" for chain in chains if chain.forward_drop
        ),
        firewalld=any(chain.table == "firewalld" for chain in chains),
    )


def _words(items: list[str]) -> str:
    shown = ", ".join(items[:3])
    return f"{shown} and {len(items) - 3} more" if len(items) > 3 else shown


def _chain(payload: bytes) -> ForeignChain | None:
    family = _FAMILIES.get(payload[0])
    if family is None:
        return None
    found = parse(payload, _GENMSG_BYTES)
    hook = parse(found.get(_CHAIN_HOOK, b""))
    forward = _HOOK_NUMBER in hook and big_endian(hook[_HOOK_NUMBER]) == _FORWARD
    return ForeignChain(
        family,
        text(found.get(_CHAIN_TABLE, b"")),
        text(found.get(_CHAIN_NAME, b"")),
        forward and _CHAIN_POLICY in found and big_endian(found[_CHAIN_POLICY]) == _DROP,
    )
