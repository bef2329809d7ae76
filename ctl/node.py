"""What weftctl finds out on the node itself while the daemon is down: by its files and its kernel.

Opens everything for reading only. Answers are messages of weft.admin.v1, as the daemon would give them.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctl.exits import FailedError
from datapath import podlinks, snapshot
from datapath.attachment import Attachment
from datapath.desired import ROUTE_PROTOCOL, RouteKind
from datapath.errors import DatapathError, NamespaceError
from datapath.kernel import attachment_fragment, attachment_key
from datapath.netlink.routes import decode_route, get_routes
from datapath.netlink.transport import Socket
from datapath.netns import open_namespace
from datapath.nft.connection import Nft
from datapath.nft.hostports import HostPort
from datapath.snapshot import SnapshotError
from datapath.sync import Sync
from ipam import messages, reading
from ipam.audit import audit, is_complete
from ipam.errors import StoreError
from ipam.pool import Pool
from weft_rpc import admin_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ipam.reading import Reading
    from ipam.record import Record

DIRECTORY = "/run/weft"


@dataclass(slots=True)
class NodeState:
    """The node as its files and its kernel show it.

    Attributes:
        directory: where the daemon keeps its state.
        age_seconds: how old what was read last is; None when it is current or nothing was read.
    """

    directory: str = DIRECTORY
    age_seconds: float | None = None

    def attachments(self) -> admin_pb2.ListAttachmentsResponse:
        """Lists the attachments that the state database holds. Raises FailedError."""
        return messages.attachments(self._database().records, now=_boottime())

    def pools(self) -> admin_pb2.ShowIpamResponse:
        """Lists the pools, found by the routes that the daemon made for them. Raises FailedError."""
        pools = self._pools()
        return messages.usage(self._database().usage(pools, now=time.clock_gettime_ns(time.CLOCK_BOOTTIME)))

    def leaks(self) -> admin_pb2.CheckIpamResponse:
        """Compares the state database with the kernel. Raises FailedError."""
        return messages.leaks(
            audit(self._database().records, links=self._links(), lives=_is_namespace, now=_boottime())
        )

    def difference(self) -> admin_pb2.DiffResponse:
        """Compares the kernel with the desired state that the daemon applied last. Raises FailedError."""
        database = self._database()
        try:
            wanted = snapshot.read(os.path.join(self.directory, "desired.db"))
            with Socket() as route, Nft() as nft:
                sync = Sync(route, nft)
                for key, fragment in wanted.fragments.items():
                    sync.desired.replace(key, fragment)
                links = self._links()
                for pod in (_attachment(each) for each in database.records if is_complete(each, links)):
                    fragment = attachment_fragment(pod, wanted.sources)
                    sync.desired.replace(attachment_key(pod.host_link), fragment)
                found = sync.difference()
        except SnapshotError as error:
            raise FailedError(f"{error}; start the daemon to compare") from error
        except (DatapathError, OSError) as error:
            raise FailedError(f"kernel and desired state can't be compared: {error}") from error
        self.age_seconds = wanted.age_seconds
        return admin_pb2.DiffResponse(
            differences=[
                admin_pb2.Difference(kind=row.kind, action=row.action, object=row.object) for row in found
            ],
            desired_age_seconds=wanted.age_seconds,
        )

    def _database(self) -> Reading:
        try:
            found = reading.read(os.path.join(self.directory, "state.db"))
        except StoreError as error:
            raise FailedError(f"{error}; start the daemon to see more") from error
        self.age_seconds = found.age_seconds
        return found

    def _links(self) -> Mapping[str, str]:
        try:
            with Socket() as host:
                return podlinks.read(host)
        except (DatapathError, OSError) as error:
            raise FailedError(f"pod links can't be read: {error}") from error

    def _pools(self) -> tuple[Pool, ...]:
        """Finds this node's pod CIDRs: each has an unreachable route of ours."""
        try:
            with Socket() as host:
                routes = [
                    decode_route(payload)
                    for family in (socket.AF_INET, socket.AF_INET6)
                    for payload in host.dump(get_routes(family, protocol=ROUTE_PROTOCOL), "list routes")
                ]
        except (DatapathError, OSError) as error:
            raise FailedError(f"routes can't be read: {error}") from error
        return tuple(
            Pool(route.destination, route.length)
            for route in routes
            if route.kind == RouteKind.UNREACHABLE and route.protocol == ROUTE_PROTOCOL
        )


def _attachment(record: Record) -> Attachment:
    ports = tuple(HostPort(*each) for each in record.ports)
    return Attachment(
        record.host_link, record.netns, record.key.ifname, record.mac, record.mtu, record.addresses, ports
    )


def _is_namespace(path: str) -> bool:
    try:
        os.close(open_namespace(path))
    except NamespaceError:
        return False
    return True


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
