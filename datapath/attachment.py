"""Wires a pod to its node: a veth without bridge, one batch of messages for each namespace.

Owns what an attachment looks like in the kernel, on both sides, and how it comes and goes. Knows nothing of
CNI and of who hands out addresses. Everything here is synchronous and runs on a thread that is in the
node's namespace.

The pod has its address alone on its link (/32, /128) and reaches all else through GATEWAYS, which the
node's end of the veth holds. Two things make the neighbours need no care when a later plugin changes the
pod's MAC address: the pod announces such a change (arp_notify, ndisc_notify), and the node's entry is
written as an externally learned one, which the kernel neither collects nor keeps against what the pod says.
In the pod the gateway's entry is permanent; the kernel drops it with the change, and then the pod asks and
the node's end answers.
"""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datapath import sysctls
from datapath.arrival import await_local
from datapath.desired import PodLink, Sysctl
from datapath.errors import AttachError, DatapathError, InterfaceExistsError, NetlinkError
from datapath.ethtool import settle
from datapath.netlink.links import decode_link, decode_pair, del_link, get_link, set_link
from datapath.netlink.routes import is_local
from datapath.netlink.transport import Socket
from datapath.netns import entered, open_namespace
from datapath.nft.hostports import is_on_loopback
from datapath.podmessages import GATEWAYS as GATEWAYS
from datapath.podmessages import host_lead, host_pairs, host_side, pair, pod_side

if TYPE_CHECKING:
    from collections.abc import Callable

    from datapath.desired import Address, KernelObject, Mac
    from datapath.netlink.links import LinkState
    from datapath.nft.hostports import HostPort
    from datapath.policy import Direction

HOST_MAC: Mac = b"\xee" * 6
"""MAC address of the node's end of each veth: there is no need to tell them apart."""

DOOMED_GROUP = 0x77656674
"""IFLA_GROUP of detached links that wait to be destroyed ("weft"); everything in it is deleted."""


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """What a pod gets.

    Attributes:
        netns: path of the pod's network namespace.
        ifname: the pod's interface.
        host_link: name of the node's end.
        mac: MAC address of the pod's end.
        host_mac: MAC address of the node's end.
        mtu: of both ends.
        addresses: the pod's, at most one of each family.
        sources: the node's addresses, which the node prefers as source when it talks to the pod.
        alias: IFLA_IFALIAS of the node's end, at most 255 bytes: from it a lost database is rebuilt.
        closed: in which directions nothing may pass until policies are known.
        ports: ports of the node that lead to the pod.
    """

    netns: str
    ifname: str
    host_link: str
    mac: Mac
    mtu: int
    addresses: tuple[Address, ...]
    sources: tuple[Address, ...] = ()
    alias: str = ""
    host_mac: Mac = HOST_MAC
    closed: tuple[Direction, ...] = ()
    ports: tuple[HostPort, ...] = ()


@dataclass(frozen=True, slots=True)
class Attachment:
    """A wired pod as it is remembered."""

    host_link: str
    netns: str
    ifname: str
    mac: Mac
    mtu: int
    addresses: tuple[Address, ...]
    ports: tuple[HostPort, ...] = ()


@dataclass(frozen=True, slots=True)
class Attached:
    """The outcome of `attach`: both indices, each in its namespace, and where the time went, in seconds."""

    host_index: int
    pod_index: int
    create_seconds: float
    pod_seconds: float
    host_seconds: float


@dataclass(frozen=True, slots=True)
class Detached:
    """The outcome of `detach`; `found` is False when there was no link any more."""

    found: bool
    seconds: float


def attach(
    host: Socket,
    request: AttachRequest,
    *,
    home: int | None = None,
    close: Callable[[int], object] = os.close,
) -> Attached:
    """Wire a pod; on failure everything is undone.

    Args:
        host: a socket in the namespace of the calling thread.
        request: what the pod gets.
        home: descriptor of that namespace, for callers that keep it open.
        close: is given the descriptors that were opened, and may close them later.

    Raises:
        NamespaceGoneError, NotANamespaceError: the pod's namespace can't be opened.
        InterfaceExistsError: it has an interface of that name.
        AttachError: anything else, with the cause.
    """
    started = time.perf_counter()
    namespace = open_namespace(request.netns)
    try:
        try:
            index, pod_index = _create(host, request, namespace)
            created = time.perf_counter()
            pod = _pod_socket(request, namespace, home)
            try:
                arrives = _wire_pod(pod, request, namespace, home, pod_index)
                wired = time.perf_counter()
                _wire_host(host, request, index)
                # The pod's end went up first, and would lose what the pod says before the kernel looks at it.
                settle(pod.fileno(), request.ifname)
                if not arrives:
                    await_local(pod, request.addresses)
            finally:
                close(pod.detach())
        except InterfaceExistsError:
            raise
        except BaseException:
            # By name, as the error may have come before its index was known.
            _destroy(host, request.host_link)
            raise
    except (DatapathError, OSError) as error:
        if isinstance(error, AttachError):
            raise
        raise AttachError(f"{request.ifname} in {request.netns} can't be wired: {error}") from error
    finally:
        close(namespace)
    done = time.perf_counter()
    return Attached(index, pod_index, created - started, wired - created, done - wired)


def detach(host: Socket, attachment: Attachment) -> Detached:
    """Cut a pod off: when this returns the node has no route or neighbour of it, and the link is down.

    The link is destroyed later by the Reaper: the kernel takes tens of milliseconds for one and hardly
    longer for many. Nothing being there is success.

    Raises:
        NetlinkError: the kernel refused for another reason than absence.
    """
    started = time.perf_counter()
    # One message does all: a link that goes down takes its routes, neighbours and IPv6 addresses along. The
    # alias goes because a database is rebuilt from aliases.
    doom = set_link(attachment.host_link, up=False, group=DOOMED_GROUP, alias="")
    try:
        host.batch((doom,), f"link {attachment.host_link} can't be taken down")
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise
        return Detached(False, time.perf_counter() - started)
    return Detached(True, time.perf_counter() - started)


def host_objects(attachment: Attachment, sources: tuple[Address, ...]) -> tuple[KernelObject, ...]:
    """Return what the node's side of an attachment should hold, for the reconciler.

    Neighbours are not among it: the kernel keeps them itself, and the pod's MAC address may change.
    """
    return host_objects_of(attachment.host_link, attachment.addresses, sources, attachment.ports)


def host_objects_of(
    link: str,
    addresses: tuple[Address, ...],
    sources: tuple[Address, ...],
    ports: tuple[HostPort, ...] = (),
) -> tuple[KernelObject, ...]:
    """Return the same for a pod that is to be wired."""
    objects: list[KernelObject] = [PodLink(link)]
    if ports and is_on_loopback(addresses, ports):
        objects.append(Sysctl(f"net/ipv4/conf/{link}/route_localnet", "1"))
    for each in host_pairs(link, addresses, sources):
        objects += each
    return tuple(objects)


def _create(host: Socket, request: AttachRequest, namespace: int) -> tuple[int, int]:
    """Create the pair; returns the indices of both ends."""
    links = pair(request, namespace)
    action = f"veth {request.host_link} can't be created"
    try:
        replies = host.batch_filled(*links, action)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
        _clear_way(host, request, namespace)
        replies = host.batch_filled(*links, action)
    # Else a pod's router advertisement gives the node a default route, where accept_ra=2 is the default.
    _write_setting(f"net/ipv6/conf/{request.host_link}/accept_ra", "0")
    return decode_pair(replies[0].payload)


def _clear_way(host: Socket, request: AttachRequest, namespace: int) -> None:
    """Destroy what holds one of the two names if it is ours to destroy, else raise InterfaceExistsError."""
    with Socket(namespace=namespace) as pod:
        occupant = _find(pod, request.ifname)
    if occupant is not None:
        # A detached pair that still waits for the Reaper is in no one's way.
        other = _find(host, occupant.peer_index) if occupant.kind == "veth" else None
        if other is None or other.group != DOOMED_GROUP or other.peer_index != occupant.index:
            raise InterfaceExistsError(f"{request.netns} has an interface {request.ifname} already")
        _destroy(host, other.index)
    # The name is a hash of the attachment's key, so its holder is what an earlier try of the same left.
    leftover = _find(host, request.host_link)
    if leftover is not None:
        _destroy(host, leftover.index)


def _find(where: Socket, link: int | str) -> LinkState | None:
    try:
        return decode_link(where.request(get_link(link), f"link {link} can't be read"))
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise


def _destroy(host: Socket, link: int | str) -> None:
    errors = host.batch_collect((del_link(link),), f"link {link} can't be destroyed")
    if errors and errors[0].code != errno.ENODEV:
        raise errors[0]


def _pod_socket(request: AttachRequest, namespace: int, home: int | None) -> Socket:
    """Open a socket in the pod's namespace, and write what only files set there."""
    settings = f"net/ipv6/conf/{request.ifname}"
    with entered(namespace, home):
        # Before the link goes up: an inherited accept_ra=2 takes a default route from whoever offers one.
        _write_setting(f"{settings}/accept_ra", "0")
        if any(len(address) == 16 for address in request.addresses):
            _write_setting(f"{settings}/ndisc_notify", "1")
        return Socket(bulk=False)


def _wire_pod(pod: Socket, request: AttachRequest, namespace: int, home: int | None, index: int) -> bool:
    """Set up the pod's end. IPv6 is switched on if an IPv6 address asks for it.

    Returns:
        Whether packets to all its addresses arrive already.
    """
    side = pod_side(request, index)
    action = f"{request.ifname} can't be set up in {request.netns}"
    try:
        replies = pod.batch_filled(*side, action)
    except NetlinkError as error:
        if error.code != errno.EACCES or not any(len(address) == 16 for address in request.addresses):
            raise
        with entered(namespace, home):
            _write_setting("net/ipv6/conf/all/disable_ipv6", "0")
            _write_setting(f"net/ipv6/conf/{request.ifname}/disable_ipv6", "0")
        replies = pod.batch_filled(*side, action)
    return all(is_local(each.payload) for each in replies)


def _wire_host(host: Socket, request: AttachRequest, index: int) -> None:
    on_loopback = bool(request.ports) and is_on_loopback(request.addresses, request.ports)
    lead = host_lead(request, index, on_loopback=on_loopback)
    host.batch_filled(*host_side(request, index), f"link {request.host_link} can't be set up", lead)


def _write_setting(path: str, value: str) -> None:
    """Write a kernel setting in the calling thread's namespace; a kernel without IPv6 lacks the file."""
    try:
        descriptor = os.open(f"{sysctls.WRITABLE}/{path}", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)
