"""Both ends of the connections that tell what a kernel does with Services: a program that `services` runs.

`serve PORT` answers each connection with the address at which it was reached. `watch` reads lines of
ADDRESS PORT ANSWER and, for each, makes connections until one is answered so; then it prints time.monotonic()
of that connection's start, or "never" after PATIENCE seconds. Standard library only: it runs in other
namespaces.
"""

from __future__ import annotations

import selectors
import socket
import socketserver
import struct
import sys
import time
from collections import deque

PERIOD, LIFE, PATIENCE = 0.0005, 0.05, 300.0
"""Seconds between two connections, of one that nobody answers, and until all is given up."""
_AT_ONCE = struct.pack("ii", 1, 0)


class _Answer(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(self.request.getsockname()[0].encode())


class _Server(socketserver.TCPServer):
    allow_reuse_address = True
    request_queue_size = 1024

    def handle_error(self, *_: object) -> None:
        """A client that has seen enough is no error."""


def serve(port: int) -> None:
    """Answer for ever."""
    with _Server(("", port), _Answer) as server:
        server.serve_forever()


def first_answered(target: tuple[str, int], answer: str) -> float | None:
    """Return when the first connection had begun that was answered so; they begin every PERIOD.

    Those before may wait for an answer still: what is not there yet is not always refused.
    """
    deadline = time.monotonic() + PATIENCE
    with selectors.DefaultSelector() as selector:
        open_ones: deque[tuple[float, socket.socket]] = deque()
        try:
            while (now := time.monotonic()) < deadline:
                client = socket.socket()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
                client.setblocking(False)
                client.connect_ex(target)
                # Not before: who loses the processor in between would seem to be answered early.
                begun = time.monotonic()
                selector.register(client, selectors.EVENT_READ, begun)
                open_ones.append((begun, client))
                while open_ones[0][0] < now - LIFE:
                    _forget(selector, open_ones.popleft()[1])
                while time.monotonic() < now + PERIOD:
                    for key, _ in selector.select(max(0.0, now + PERIOD - time.monotonic())):
                        found, began = _read(key.fileobj), float(key.data)
                        selector.unregister(key.fileobj)
                        if found == answer:
                            return began
        finally:
            for _, client in open_ones:
                client.close()
    return None


def _read(client: object) -> str:
    assert isinstance(client, socket.socket)
    try:
        return client.recv(64).decode()
    except OSError:
        return ""


def _forget(selector: selectors.BaseSelector, client: socket.socket) -> None:
    if client in selector.get_map():
        selector.unregister(client)
    client.close()


def watch() -> None:
    """Serve lines of standard input."""
    for line in sys.stdin:
        address, port, answer = line.split()
        began = first_answered((address, int(port)), answer)
        print("never" if began is None else began, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        watch()
