"""A tiny server and clients of it, run as programs of their own in the network of a pod or a node.

    serve PORT NAME       tells each client its name
    once ADDRESS PORT [SECONDS]   one connection, for which it waits so long
    follow ADDRESS PORT   connections that wait for the server's name, one after the other, until SIGINT

`once` prints how many seconds it took and the outcome: `connected`, `refused` or `silence`. `follow` prints
whenever the outcome becomes another: the monotonic time at which the first connection with it was begun, and
the outcome, which is the server's name where one is told.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import sys
import time

ONCE_SECONDS = 3.0
FOLLOW_SECONDS = (0.004, 0.1)
"""To connect, which takes the kernels less than one tenth of it, and to be told the name. The first
is how exactly it is known when packets are no longer dropped."""
PAUSE = 0.001
ABORTED = struct.pack("ii", 1, 0)  # SO_LINGER: close by a reset, which leaves nothing to wait for


def serve(port: int, name: str) -> None:
    """Tells whoever connects the name."""
    place = ("::", port)
    with socket.create_server(place, family=socket.AF_INET6, dualstack_ipv6=True, backlog=512) as server:
        print("serving", flush=True)
        while True:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(1)
                connection.sendall(name.encode())
                connection.recv(1)  # the client closes first


def once(address: str, port: int, patience: float = ONCE_SECONDS) -> None:
    """Prints the outcome of one connection."""
    began = time.monotonic()
    outcome = _attempt(address, port, (patience, patience), greeted=False)
    print(f"{time.monotonic() - began:.6f} {outcome}")


def follow(address: str, port: int) -> None:
    """Prints changes of the outcome until SIGINT."""
    last = ""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            began = time.monotonic()
            outcome = _attempt(address, port, FOLLOW_SECONDS, greeted=True)
            if outcome != last:
                print(f"{began:.6f} {outcome}", flush=True)
                last = outcome
            time.sleep(PAUSE)


def _attempt(address: str, port: int, seconds: tuple[float, float], *, greeted: bool) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds[0])
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORTED)
        try:
            connection.connect((address, port))
            connection.settimeout(seconds[1])
            return connection.recv(64).decode() if greeted else "connected"
        except TimeoutError:
            return "silence"
        except OSError:
            return "refused"


if __name__ == "__main__":
    # A shell starts background jobs with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]), sys.argv[3])
    else:
        {"once": once, "follow": follow}[sys.argv[1]](
            sys.argv[2], int(sys.argv[3]), *map(float, sys.argv[4:])
        )
