"""What IPAM remembers of an attachment, as values. Pure: knows no database and no time."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ipam.ports import PortMapping


class AttachmentKey(NamedTuple):
    """What identifies an attachment, everywhere and for ever. Never a pod's name or UID.

    A late DEL for an old sandbox carries the old container id, so it can't free what the pod's new sandbox
    holds.
    """

    network: str
    container_id: str
    ifname: str

    def __str__(self) -> str:
        return f"{self.network}/{self.container_id}/{self.ifname}"


class State(IntEnum):
    """How far an attachment got; the numbers are what the database holds."""

    PENDING = 0
    """Addresses are reserved, the kernel may hold any part of the wiring."""
    ATTACHED = 1
    """The wiring is complete."""
    RELEASING = 2
    """The wiring is being taken down; the addresses are not free yet."""


@dataclass(frozen=True, slots=True)
class Record:
    """One attachment.

    Attributes:
        key: what identifies it.
        netns: path of the pod's network namespace as the runtime gave it; "" when it is not known any more.
        host_link: name of the veth's end on the host, unique on the node.
        mac: of the pod's interface, 6 bytes.
        mtu: of the pod's interface.
        addresses: packed, at most one of each family.
        pod_namespace: of the pod, as are pod_name and pod_uid; for people, never for decisions; may be "".
        state: how far it got.
        created: seconds of CLOCK_BOOTTIME.
        ports: ports of the node that lead to the pod, as its ADD asked for them.
    """

    key: AttachmentKey
    netns: str
    host_link: str
    mac: bytes
    mtu: int
    addresses: tuple[bytes, ...]
    pod_namespace: str = ""
    pod_name: str = ""
    pod_uid: str = ""
    state: State = State.PENDING
    created: float = 0.0
    ports: tuple[PortMapping, ...] = ()

    def in_state(self, state: State) -> Record:
        """Return the record with another state."""
        # Spelt out, as dataclasses.replace() takes a multiple of the time, and every ADD and DEL does this.
        return Record(
            self.key,
            self.netns,
            self.host_link,
            self.mac,
            self.mtu,
            self.addresses,
            self.pod_namespace,
            self.pod_name,
            self.pod_uid,
            state,
            self.created,
            self.ports,
        )
