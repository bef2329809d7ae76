"""A TCP connection that must not break: `stream.py serve PORT` echoes, `stream.py talk ADDRESS PORT` checks.

Run as a program of its own, in a pod's network. The talker sends a numbered block of 8 KiB a hundred times a
second at most, wants it back unchanged, and at SIGINT prints how many, the longest wait in seconds, and how
many segments the kernel sent again.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import struct
import sys
import threading
import time

BLOCK = 8192
PAUSE = 0.01
TOTAL_RETRANS = 100  # offset of tcpi_total_retrans in struct tcp_info (linux/tcp.h)


def serve(port: int) -> None:
    """Echoes whatever any connection brings."""
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        print("serving", flush=True)
        while True:
            connection, _ = server.accept()
            threading.Thread(target=_echo, args=(connection,), daemon=True).start()


def _echo(connection: socket.socket) -> None:
    with connection:
        while received := connection.recv(65536):
            connection.sendall(received)


def talk(address: str, port: int) -> None:
    """Exchanges blocks until SIGINT; a connection that ends or alters a byte is an error."""
    exchanges, longest = 0, 0.0
    with socket.create_connection((address, port), 5) as connection:
        connection.settimeout(30)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        print("talking", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                sent = time.monotonic()
                block = struct.pack(">Q", exchanges) * (BLOCK // 8)
                connection.sendall(block)
                _expect(connection, block)
                longest = max(longest, time.monotonic() - sent)
                exchanges += 1
                time.sleep(PAUSE)
        state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        (again,) = struct.unpack_from("=I", state, TOTAL_RETRANS)
    print(json.dumps({"exchanges": exchanges, "longest": round(longest, 3), "retransmitted": again}))


def _expect(connection: socket.socket, block: bytes) -> None:
    received = b""
    while len(received) < len(block):
        piece = connection.recv(len(block) - len(received))
        if not piece:
            raise ConnectionError("the other end closed the connection")
        received += piece
    if received != block:
        raise ConnectionError("the other end sent something else")


if __name__ == "__main__":
    # A shell starts background jobs with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        talk(sys.argv[2], int(sys.argv[3]))
