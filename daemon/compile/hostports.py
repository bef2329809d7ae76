"""What follows from the host ports of this node's pods besides their elements. Pure.

Flows of UDP that lead to nobody when such a port comes or goes, and Services whose node ports they hide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.compile.local import Problem
from datapath.conntrack import Destination, StaleFlows
from datapath.nft.frontends import Frontend
from datapath.nft.rules import Family, Protocol
from ipam.ports import claims

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ipam.record import Record

HIDES_NODE_PORT = "HostPortHidesNodePort"

_FAMILIES = {4: Family.IPV4, 16: Family.IPV6}


def stale_flows(changed: Record, records: Iterable[Record]) -> StaleFlows:
    """Return the flows that may lead nowhere after an attachment with host ports came or went.

    Args:
        changed: the attachment.
        records: all attachments there are now, it among them if it came.
    """
    serving = {
        _destination(address, port): frozenset[tuple[bytes, int]]()
        for address, protocol, port in claims(changed.ports, map(len, changed.addresses))
        if protocol == Protocol.UDP
    }
    if not serving:
        return StaleFlows()
    touched = {(each.family, each.port) for each in serving}
    # Flows to a port at one address are none of those at every address: whoever has it is told too.
    for record in records:
        if record.ports:
            by_length = {len(address): address for address in record.addresses}
            for (address, protocol, port), each in claims(record.ports, by_length).items():
                if protocol == Protocol.UDP and (_FAMILIES[len(address)], port) in touched:
                    backend = (by_length[len(address)], each.container_port)
                    serving[_destination(address, port)] = frozenset((backend,))
    return StaleFlows(serving)


def hidden_node_ports(records: Iterable[Record], holder: Callable[[Frontend], str]) -> Iterator[Problem]:
    """Yield the Services whose node port a pod's host port takes away on this node.

    Args:
        records: all attachments.
        holder: names the Service that has a frontend, "" when none has.
    """
    for record in records:
        if not record.ports:
            continue
        lengths = map(len, record.addresses)
        for (address, protocol, port), each in claims(record.ports, lengths).items():
            service = holder(Frontend(_FAMILIES[len(address)], None, protocol, port))
            if service:
                pod = f"{record.pod_namespace}/{record.pod_name}"
                yield Problem(
                    HIDES_NODE_PORT,
                    "warning",
                    f"host port {each} of pod {pod} takes the connections to node port {port} of Service "
                    f"{service} on this node: give the pod another hostPort, or the Service another nodePort",
                    f"{pod} {each}",
                )


def _destination(address: bytes, port: int) -> Destination:
    return Destination(_FAMILIES[len(address)], address if any(address) else None, port)
