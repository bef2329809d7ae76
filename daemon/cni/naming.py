"""What follows from an attachment's key alone: its host link's name and its pod's MAC address. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

try:
    # OpenSSL's, which hashlib prefers, takes 20 us longer when its code is not in the caches.
    from _sha256 import sha256  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    from hashlib import sha256

from datapath.desired import VETH_PREFIX

if TYPE_CHECKING:
    from datapath.desired import Mac
    from ipam.record import AttachmentKey

_HOST_LINK = re.compile(re.escape(VETH_PREFIX) + "[0-9a-f]{11}")


def names(key: AttachmentKey) -> tuple[str, Mac]:
    """Return the host link's name and the pod's MAC address, locally administered unicast."""
    digest: bytes = sha256("\0".join(key).encode()).digest()
    return f"{VETH_PREFIX}{digest.hex()[:11]}", bytes(((digest[8] & 0xFC) | 0x02,)) + digest[9:14]


def is_host_link(name: str) -> bool:
    """Whether a link is named as the host's end of an attachment."""
    return _HOST_LINK.fullmatch(name) is not None
