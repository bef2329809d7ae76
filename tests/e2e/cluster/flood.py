"""Sends UDP packets to addresses that need not exist: `flood.py ADDRESS...`, over and over until it is ended.

Run as a program of its own, in a pod's network. Nothing listens at the port, so what arrives is counted by
the receiver's kernel and answered by an ICMP error at most. A whole round takes PAUSE seconds at least.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time

PORT = 9
"""Discard, RFC 863."""
PAUSE = 0.02


def main(addresses: list[str]) -> None:
    """Floods for ever."""
    families = {wide: socket.AF_INET6 if wide else socket.AF_INET for wide in (False, True)}
    sockets = {wide: socket.socket(family, socket.SOCK_DGRAM) for wide, family in families.items()}
    places = [(sockets[":" in address], (address, PORT)) for address in addresses]
    print("flooding", flush=True)
    while True:
        for sender, place in places:
            # An error that an earlier packet met is told to a later one.
            with contextlib.suppress(OSError):
                sender.sendto(b"?", place)
        time.sleep(PAUSE)


if __name__ == "__main__":
    main(sys.argv[1:])
