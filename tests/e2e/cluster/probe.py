"""Tiny servers and clients, run as programs of their own in the network of a pod or a node.

    serve PORT NAME       tells each TCP client its name
    answer PORT NAME      tells each UDP client its name
    once ADDRESS PORT     one TCP connection
    greet ADDRESS PORT    one TCP connection that waits for the server's name
    ask ADDRESS PORT      one UDP datagram and its answer
    follow ADDRESS PORT   TCP connections that wait for the server's name, one after the other, until SIGINT

Clients print how many seconds it took and the outcome: the server's name (`connected` where none is waited
for), `refused` or `silence`. `follow` prints only when the outcome becomes another, and instead of how long
it took the monotonic time at which the first connection with that outcome was begun.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import sys
import time

ONCE_SECONDS = 3.0
ASK_SECONDS = 1.0
FOLLOW_SECONDS = 0.02
"""Much longer than an answer takes, and short enough to try again where packets are dropped."""
PAUSE = 0.001
ABORTED = struct.pack("ii", 1, 0)  # SO_LINGER: close by a reset, which leaves nothing to wait for


def serve(port: int, name: str) -> None:
    """Greets whoever connects."""
    place = ("::", port)
    with socket.create_server(place, family=socket.AF_INET6, dualstack_ipv6=True, backlog=512) as server:
        print("serving", flush=True)
        while True:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(1)
                connection.sendall(name.encode())
                connection.recv(1)  # the client closes first


def answer(port: int, name: str) -> None:
    """Answers every datagram, from the address that it was sent to."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("::", port))
        print("serving", flush=True)
        while True:
            _, client = server.recvfrom(64)
            with contextlib.suppress(OSError):
                server.sendto(name.encode(), client)


def ask(address: str, port: int) -> None:
    """Prints the outcome of one datagram."""
    began = time.monotonic()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        asking.settimeout(ASK_SECONDS)
        try:
            asking.connect((address, port))
            asking.send(b"?")
            outcome = asking.recv(64).decode()
        except TimeoutError:
            outcome = "silence"
        except OSError:
            outcome = "refused"
    print(f"{time.monotonic() - began:.6f} {outcome}")


def once(address: str, port: int) -> None:
    """Prints the outcome of one connection."""
    _one(address, port, greeted=False)


def greet(address: str, port: int) -> None:
    """Prints the outcome of one connection that waits for the server's name."""
    _one(address, port, greeted=True)


def _one(address: str, port: int, *, greeted: bool) -> None:
    began = time.monotonic()
    outcome = _attempt(address, port, ONCE_SECONDS, greeted=greeted)
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


def _attempt(address: str, port: int, seconds: float, *, greeted: bool) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORTED)
        try:
            connection.connect((address, port))
            return connection.recv(64).decode() if greeted else "connected"
        except TimeoutError:
            return "silence"
        except OSError:
            return "refused"


if __name__ == "__main__":
    # A shell starts background jobs with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    servers = {"serve": serve, "answer": answer}
    clients = {"once": once, "greet": greet, "ask": ask, "follow": follow}
    if server := servers.get(sys.argv[1]):
        server(int(sys.argv[2]), sys.argv[3])
    else:
        clients[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
