"""What an ADD tells the runtime about an attachment, and in what a prevResult contradicts it. Pure."""

from __future__ import annotations

from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING

from daemon.cni.result import Interface, Ip, Result, Route
from datapath import text
from datapath.attachment import GATEWAYS, HOST_MAC

if TYPE_CHECKING:
    from daemon.cni.result import Dns
    from ipam.record import Record

_GATEWAYS = {size: text.address(address) for size, address in GATEWAYS.items()}
_DEFAULT_ROUTES = {4: "0.0.0.0/0", 16: "::/0"}


def result(record: Record, dns: Dns) -> Result:
    """Return what an ADD tells the runtime about an attachment."""
    mtu = record.mtu
    return Result(
        (
            Interface(record.host_link, text.mac(HOST_MAC), mtu),
            Interface(record.key.ifname, text.mac(record.mac), mtu, record.netns),
        ),
        tuple(
            Ip(text.prefix(address, 8 * len(address)), _GATEWAYS[len(address)], 1)
            for address in record.addresses
        ),
        tuple(Route(_DEFAULT_ROUTES[len(address)], _GATEWAYS[len(address)]) for address in record.addresses),
        dns,
    )


def encode(record: Record, dns: Dns, version: str) -> bytes:
    """Return `result` in a version, as JSON; what is alike for all pods is encoded once."""
    frame = _frame(version, tuple(map(len, record.addresses)), record.mtu, dns)
    addresses = [f"{text.address(address)}/{8 * len(address)}" for address in record.addresses]
    marks = (record.host_link, record.key.ifname, text.mac(record.mac), record.netns, *addresses)
    return (frame % tuple(map(encode_basestring_ascii, marks))).encode()


@lru_cache(maxsize=64)
def _frame(version: str, sizes: tuple[int, ...], mtu: int, dns: Dns) -> str:
    """Return the JSON of a result, with a mark in each place of what differs from pod to pod."""
    # Of an address the version 0.4.0 tells the family, by its colon.
    marks = [f"\0{number}" for number in range(4)]
    marks += [f"\0{number}{':' if size == 16 else ''}" for number, size in enumerate(sizes, 4)]
    host_link, ifname, mac, netns, *addresses = marks
    made = Result(
        (Interface(host_link, text.mac(HOST_MAC), mtu), Interface(ifname, mac, mtu, netns)),
        tuple(Ip(address, _GATEWAYS[size], 1) for address, size in zip(addresses, sizes, strict=True)),
        tuple(Route(_DEFAULT_ROUTES[size], _GATEWAYS[size]) for size in sizes),
        dns,
    )
    frame = made.to_json(version).decode().replace("%", "%%")
    for mark in marks:
        frame = frame.replace(encode_basestring_ascii(mark), "%s")
    return frame


def differences(record: Record, previous: Result) -> list[str]:
    """Say in what a prevResult contradicts the record; what other plugins added to it does not matter."""
    faults = []
    if not any(interface.name == record.key.ifname for interface in previous.interfaces):
        faults.append(f"prevResult has no interface {record.key.ifname}")
    told = {text.parse_address(ip.address.partition("/")[0]) for ip in previous.ips}
    faults += [
        f"prevResult lacks address {text.address(address)}"
        for address in record.addresses
        if address not in told
    ]
    return faults
