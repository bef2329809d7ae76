"""Asks a name server for an address: `lookup.py udp|tcp SERVER NAME A|AAAA` prints the answers, one a line.

Run as a program of its own, in a pod's network: what pods' images have cannot be told to ask over TCP.
Messages as in RFC 1035, section 4; the TCP length prefix is section 4.2.2.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import sys

TYPES = {"A": 1, "AAAA": 28}
SECONDS = 5
POINTER = 0xC0


def question(identity: int, name: str, kind: int) -> bytes:
    header = struct.pack(">6H", identity, 0x0100, 1, 0, 0, 0)
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split("."))
    return header + labels + b"\0" + struct.pack(">2H", kind, 1)


def ask(transport: str, server: str, message: bytes) -> bytes:
    """Sends a message and returns the one that answers it."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    kind = {"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}[transport]
    with socket.socket(family, kind) as connection:
        connection.settimeout(SECONDS)
        connection.connect((server, 53))
        if transport == "udp":
            connection.send(message)
            return connection.recv(4096)
        connection.sendall(struct.pack(">H", len(message)) + message)
        with connection.makefile("rb") as stream:
            (length,) = struct.unpack(">H", stream.read(2))
            return stream.read(length)


def addresses(answer: bytes, identity: int, asked: int) -> list[str]:
    """The addresses in a message; one that refuses to tell any raises ValueError."""
    number, flags, questions, records, _, _ = struct.unpack_from(">6H", answer)
    if number != identity or flags & 0xF or not flags & 0x8000:
        raise ValueError(f"this answers nothing: identity {number}, flags {flags:#x}")
    position = 12
    for _ in range(questions):
        position = _after_name(answer, position) + 4
    found = []
    for _ in range(records):
        position = _after_name(answer, position)
        kind, _, _, length = struct.unpack_from(">2HIH", answer, position)
        position += 10
        if kind == asked:
            found.append(str(ipaddress.ip_address(answer[position : position + length])))
        position += length
    return found


def _after_name(message: bytes, position: int) -> int:
    while length := message[position]:
        if length & POINTER == POINTER:
            return position + 2
        position += 1 + length
    return position + 1


def main(transport: str, server: str, name: str, kind: str) -> None:
    identity = int.from_bytes(os.urandom(2), "big")
    answer = ask(transport, server, question(identity, name, TYPES[kind]))
    print("\n".join(addresses(answer, identity, TYPES[kind])))


if __name__ == "__main__":
    main(*sys.argv[1:])
