"""When packets to a pod's IPv6 addresses arrive: waits for what the kernel leaves to a work queue.

Owns the waiting. An address is there when its message was answered, and may be sent from; but the local route
by which packets to it are taken in is entered later, by the work queue that also detects duplicates
(net/ipv6/addrconf.c), detection or not. Until then they count as strangers'. Must not change anything.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from datapath.errors import NetlinkError
from datapath.netlink.routes import get_route, is_local

if TYPE_CHECKING:
    from collections.abc import Iterable

    from datapath.desired import Address
    from datapath.netlink.transport import Socket

PAUSE_SECONDS = 0.00005
PATIENCE_SECONDS = 0.02
"""After that the work queue is stuck, and other pods wait: the packets will be taken in when it goes on."""


def await_local(pod: Socket, addresses: Iterable[Address]) -> bool:
    """Wait until a namespace takes in packets to its addresses; returns whether it does.

    Args:
        pod: a socket of the namespace.
        addresses: were added; their link is up.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not all(_is_local(pod, each) for each in addresses if len(each) == 16):
        if time.monotonic() > deadline:
            return False
        time.sleep(PAUSE_SECONDS)
    return True


def _is_local(pod: Socket, address: Address) -> bool:
    try:
        return is_local(pod.request(get_route(address), "the route to a pod's own address could not be read"))
    except NetlinkError:
        # Without a default route, say, there is no route at all until then.
        return False
