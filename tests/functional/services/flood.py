"""Sends SYNs as fast as one thread can, from a process of its own: a link and a target, until its input ends.

Run by path in the sender's namespace: `flood.py LINK SOURCE-MAC TARGET-MAC TARGET PORT`. Source addresses and
ports are counted up, so each SYN is a new connection. It prints how many were sent.
"""

from __future__ import annotations

import ipaddress
import select
import socket
import struct
import sys

BURST = 256
SOURCES = {4: "203.0.113.{}", 6: "2001:db8:113::{}"}
"""The outsider's addresses, from 100 on: of others it would say that they are not there."""


def checksum(data: bytes) -> int:
    """The checksum of the Internet (RFC 1071), of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def syn(macs: bytes, source: bytes, target: bytes, source_port: int, port: int) -> bytes:
    """A whole frame."""
    tcp = struct.pack("!HHIIBBHHH", source_port, port, 1, 0, 5 << 4, 2, 1024, 0, 0)
    pseudo = source + target + struct.pack("!IHBB", len(tcp), 0, 0, 6)
    tcp = tcp[:16] + struct.pack("!H", checksum(pseudo + tcp)) + tcp[18:]
    if len(source) == 4:
        head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0, source, target)
        head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
        return macs + b"\x08\x00" + head + tcp
    head = struct.pack("!IHBB16s16s", 6 << 28, len(tcp), 6, 64, source, target)
    return macs + b"\x86\xdd" + head + tcp


def main() -> None:
    link, source_mac, target_mac, text, port = sys.argv[1:]
    target = ipaddress.ip_address(text)
    macs = bytes.fromhex(target_mac + source_mac)
    sources = [
        ipaddress.ip_address(SOURCES[target.version].format(100 + number)).packed for number in range(40)
    ]
    frames = [
        syn(macs, sources[number % 40], target.packed, 1024 + number, int(port)) for number in range(20_000)
    ]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((link, 0))
        print("ready", flush=True)
        sent = 0
        while not select.select([sys.stdin], [], [], 0)[0]:
            for _ in range(BURST):
                wire.send(frames[sent % len(frames)])
                sent += 1
    print(sent, flush=True)


if __name__ == "__main__":
    main()
