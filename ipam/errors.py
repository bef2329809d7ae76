"""The exceptions that IPAM raises. Every message says what happened and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ipam.ports import PortMapping
    from ipam.record import Record


class IpamError(Exception):
    """Addresses could not be handed out or taken back."""


class ExhaustedError(IpamError):
    """No pool of a family has an address left.

    Attributes:
        pool: the pool's prefix as text.
        size: how many addresses it can hand out.
        used: how many are held by attachments.
        cooling: how many were released and still rest; 0 unless something else holds them back.
    """

    def __init__(self, pool: str, *, size: int, used: int, cooling: int) -> None:
        self.pool = pool
        self.size = size
        self.used = used
        self.cooling = cooling
        super().__init__(
            f"no IP addresses available in range {pool}: {used} of {size} in use, {cooling} resting after "
            "release; remove pods from this node, lower kubelet's maxPods, or give the node a larger podCIDR"
        )


class UnknownAttachmentError(IpamError):
    """No attachment is recorded under the key."""


class DuplicateError(IpamError):
    """The attachment, its link or one of its addresses is recorded already; nothing was changed."""


class PortTakenError(IpamError):
    """Another attachment holds a host port; nothing was recorded.

    Attributes:
        holder: that attachment.
    """

    def __init__(self, port: PortMapping, holder: Record) -> None:
        self.holder = holder
        pod = f"{holder.pod_namespace}/{holder.pod_name}" if holder.pod_name else "a pod without a name"
        super().__init__(
            f"host port {port} is held by pod {pod} (container {holder.key.container_id}); delete that pod, "
            "or give one of the two another hostPort, hostIP or protocol"
        )


class AliasError(IpamError):
    """A link's alias is not one of ours, or an attachment can't be written as one."""


class StoreError(IpamError):
    """The database can't be read or written."""


class UnreadableStoreError(StoreError):
    """What is in the file can't be used: damaged, or written by a newer Weft."""
