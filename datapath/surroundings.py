"""What else on this machine is about pods' packets: remains of other networks, firewalls, kube-proxy.

Reads only: names of links, the chains of nftables (which iptables-nft writes too), and who listens on
kube-proxy's ports. What iptables-legacy holds can't be seen through nftables, only that it holds something.
"""

from __future__ import annotations

import os
import re
import socket
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from datapath.netlink.attributes import big_endian, parse, text
from datapath.netlink.nfnetlink import header, nft_kind
from datapath.netlink.transport import Message

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping

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
_KUBE_PROXY_TABLE = "kube-proxy"
_KUBE_PROXY_LINK = "kube-ipvs0"
_KUBE_PROXY_CHAINS = re.compile(
    r"KUBE-(SERVICES|NODEPORTS|EXTERNAL-SERVICES|FORWARD|PROXY-.*|(SVC|SEP|EXT|SVL|XLB|FW)-[A-Z0-9]{16})"
)
"""Its chains of iptables mode. kubelet makes others of its own: KUBE-FIREWALL, KUBE-MARK-MASQ,
KUBE-KUBELET-*, KUBE-IPTABLES-HINT."""
_KUBE_PROXY_PORTS = frozenset({10249, 10256})
"""Its metrics and its health."""
_TCP_TABLES = ("/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6")
_LEGACY_TABLES = "/proc/thread-self/net/ip_tables_names"
_LISTEN = "0A"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What was found.

    Attributes:
        leftovers: by product, what remains of it, in words.
        dropping: base chains at the forward hook with policy drop, as "family table chain".
        firewalld: whether firewalld's table is there.
        kube_proxy: what there is of kube-proxy's rules, in words.
        kube_proxy_ports: those of its ports on which another process listens: it runs.
        legacy_nat: whether iptables-legacy has a nat table, which may hold its rules unseen.
    """

    leftovers: Mapping[str, str] = field(default_factory=dict)
    dropping: tuple[str, ...] = ()
    firewalld: bool = False
    kube_proxy: tuple[str, ...] = ()
    kube_proxy_ports: tuple[int, ...] = ()
    legacy_nat: bool = False


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
        [name for _, name in socket.if_nameindex()],
        [each for each in chains if each is not None],
        ports=foreign_listeners(_KUBE_PROXY_PORTS),
        legacy_nat="nat" in _words_of(_LEGACY_TABLES),
    )


def describe(
    links: Iterable[str],
    chains: Iterable[ForeignChain],
    *,
    ports: Iterable[int] = (),
    legacy_nat: bool = False,
) -> Surroundings:
    """Tell what links and chains mean; `ports` of kube-proxy are those on which another process listens."""
    links = list(links)
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
        kube_proxy=tuple(_of_kube_proxy(links, chains)),
        kube_proxy_ports=tuple(sorted(ports)),
        legacy_nat=legacy_nat,
    )


def foreign_listeners(ports: Container[int]) -> tuple[int, ...]:
    """Return those of these TCP ports on which another process listens in this thread's network namespace."""
    listening = [
        (port, inode)
        for path in _TCP_TABLES
        for address, inode in _listeners(path)
        if (port := int(address.rpartition(":")[2], 16)) in ports
    ]
    # Ours are looked at afterwards: one that was just opened is in both, or in neither.
    own = _own_sockets()
    return tuple(sorted({port for port, inode in listening if inode not in own}))


def _listeners(path: str) -> Iterator[tuple[str, str]]:
    """Yield address and inode of each listening socket, in the words of /proc/net/tcp."""
    with suppress(OSError), open(path, encoding="ascii") as file:
        next(file, None)
        for line in file:
            fields = line.split()
            # The kernel lists these first; of connections there may be 100,000.
            if fields[3] != _LISTEN:
                return
            yield fields[1], fields[9]


def _of_kube_proxy(links: Iterable[str], chains: Iterable[ForeignChain]) -> Iterator[str]:
    tables = {(chain.family, chain.table) for chain in chains if chain.table == _KUBE_PROXY_TABLE}
    yield from (f"table {family} {table}" for family, table in sorted(tables))
    counts = Counter(
        (chain.family, chain.table) for chain in chains if _KUBE_PROXY_CHAINS.fullmatch(chain.name)
    )
    for (family, table), count in sorted(counts.items()):
        yield f"{count} chains KUBE-* in table {family} {table}"
    if _KUBE_PROXY_LINK in links:
        yield f"link {_KUBE_PROXY_LINK} (IPVS)"


def _own_sockets() -> frozenset[str]:
    """Return the inode numbers of this process's sockets, as /proc/net/tcp has them."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            kind, _, inode = os.readlink(f"/proc/self/fd/{name}").partition(":[")
            if kind == "socket":
                found.add(inode.rstrip("]"))
    return frozenset(found)


def _words_of(path: str) -> list[str]:
    """Return the words of a file of /proc; none where there is no such file."""
    with suppress(OSError), open(path, encoding="ascii") as file:
        return file.read().split()
    return []


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
