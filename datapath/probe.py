"""Tries what the daemon needs of the kernel, in a network namespace that exists for the trial only.

Doing is the only sure test: modules load on demand, and a distribution's kernel may lack one piece of a
family. The namespace goes away with the thread that made it, so nothing has to be undone and nothing on the
machine is touched.
"""

from __future__ import annotations

import ctypes
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datapath.desired import VxlanLink
from datapath.errors import DatapathError
from datapath.netlink.ctnetlink import get_flows
from datapath.netlink.links import VethPair, new_veth, new_vxlan
from datapath.netlink.transport import NETLINK_NETFILTER, Socket
from datapath.nft.connection import Nft
from datapath.nft.observe import ObservedRuleset
from datapath.nft.plan import plan
from datapath.nft.policy import FAMILIES, LOGGED_BYTES
from datapath.nft.rules import Chain, Limit, Log, Ruleset, Table, rule
from datapath.nft.tables import node_tables
from datapath.nft.trial import TABLE, trial

if TYPE_CHECKING:
    from collections.abc import Callable

    from datapath.nft.policy import DenialLog
    from datapath.nft.tables import TableOptions

_CLONE_NEWNET = 0x40000000
_MAC, _PEER_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class MissingFeature:
    """Something that did not work: what, what it is for, the kernel option, and the error."""

    name: str
    purpose: str
    option: str
    error: str


def missing_features(options: TableOptions) -> tuple[MissingFeature, ...]:
    """Try everything; returns what failed. Takes some tens of milliseconds, so it belongs on a thread."""
    found: list[MissingFeature] = []
    if error := _apart(lambda: _try_all(options, found)):
        return (
            MissingFeature(
                "network namespaces", "pods (or CAP_SYS_ADMIN is missing)", "CONFIG_NET_NS", error
            ),
        )
    return tuple(found)


def log_refusal(log: DenialLog) -> str:
    """Return why denied packets can't be logged, "" where they can.

    Where they can't, the kernel would refuse all policies because of these rules. Belongs on a thread too.
    """
    rules = (rule(Limit(log.rate, 2 * log.rate), Log(log.group, "weft-probe", LOGGED_BYTES)),)
    found: list[str] = []

    def attempt() -> None:
        try:
            with Nft() as nft:
                for family in FAMILIES:
                    table = Table(family, TABLE, 1, (), (Chain("log", rules),))
                    nft.commit(trial(table, {}).messages, "rules that log packets are refused")
        except (DatapathError, OSError) as error:
            found.append(str(error))

    return _apart(attempt) or "".join(found)


def _apart(work: Callable[[], None]) -> str:
    """Do it in a network namespace of its own; returns why there can't be one."""
    found: list[str] = []

    def enter() -> None:
        if _libc.unshare(_CLONE_NEWNET) != 0:
            found.append(os.strerror(ctypes.get_errno()))
            return
        work()

    thread = threading.Thread(target=enter, name="kernel-probe")
    thread.start()
    thread.join()
    return "".join(found)


def _try_all(options: TableOptions, found: list[MissingFeature]) -> None:
    trials: tuple[tuple[str, str, str, Callable[[], None]], ...] = (
        ("veth links", "the interfaces of pods", "CONFIG_VETH", _veth),
        ("VXLAN links", "pods on other nodes", "CONFIG_VXLAN", _vxlan),
        (
            "nftables with sets, conntrack and masquerade",
            "egress, and the protection of overlay and pods' addresses",
            "CONFIG_NF_TABLES, CONFIG_NFT_CT, CONFIG_NFT_MASQ, CONFIG_NFT_NAT",
            lambda: _nftables(options),
        ),
        (
            "connection tracking by netlink",
            "UDP clients of Services whose endpoints change, and addresses that are handed on",
            "CONFIG_NF_CT_NETLINK",
            _flows,
        ),
    )
    for name, purpose, option, attempt in trials:
        try:
            attempt()
        except (DatapathError, OSError) as error:
            found.append(MissingFeature(name, purpose, option, str(error)))


def _veth() -> None:
    namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with Socket() as route:
            pair = VethPair("weft-probe", _MAC, "eth0", _PEER_MAC, namespace, 1400)
            route.batch([new_veth(pair)], "a veth link can't be created")
    finally:
        os.close(namespace)


def _vxlan() -> None:
    with Socket() as route:
        link = VxlanLink("weft.probe", 1, 4789, _MAC, bytes((192, 0, 2, 1)), 1400)
        route.batch([new_vxlan(link)], "a VXLAN link can't be created")


def _flows() -> None:
    with Socket(NETLINK_NETFILTER) as netfilter:
        for _ in netfilter.stream(get_flows(), "flows can't be listed"):
            pass


def _nftables(options: TableOptions) -> None:
    with Nft() as nft:
        nft.apply(plan(Ruleset(node_tables(options)), ObservedRuleset(0, {})))
