"""A node and its pods for benches, and the ways to wire a pod that Weft is compared with.

The floor is `floor.c`: the same pod by 13 writes in C. `ip -batch` stands for a plugin that executes
programs: two processes a pod, one for each namespace.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from datapath.attachment import HOST_MAC, AttachRequest
from datapath.netns import THREAD_NAMESPACE, entered, open_namespace
from datapath.text import address, mac, parse_address

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PODS = 50
WORKERS = 4
NODE = (parse_address("192.0.2.1"), parse_address("fd00:ffff::1"))
_GATEWAY_COMMANDS = (
    "route add 169.254.1.1 dev eth0 scope link",
    "route add default via 169.254.1.1 dev eth0",
    "route add default via fe80::1 dev eth0",
    f"neigh replace 169.254.1.1 dev eth0 lladdr {mac(HOST_MAC)} nud permanent",
    f"neigh replace fe80::1 dev eth0 lladdr {mac(HOST_MAC)} nud permanent",
)


@contextmanager
def node_and_pods() -> Iterator[tuple[int, list[str]]]:
    """Enter a node's namespace; yields its descriptor and the paths of PODS namespaces."""
    with ExitStack() as stack:
        node = stack.enter_context(_namespace(f"weft-b-{os.getpid()}-node"))
        spaces = [stack.enter_context(_namespace(f"weft-b-{os.getpid()}-{number}")) for number in range(PODS)]
        descriptor = open_namespace(node)
        stack.callback(os.close, descriptor)
        stack.enter_context(entered(descriptor))
        for command in (
            "ip link set lo up",
            f"ip addr add {address(NODE[0])}/32 dev lo",
            f"ip addr add {address(NODE[1])}/128 dev lo nodad",
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        ):
            subprocess.run(command.split(), check=True)
        yield descriptor, spaces


def request(space: str, number: int) -> AttachRequest:
    """Return what pod `number` gets."""
    return AttachRequest(
        netns=space,
        ifname="eth0",
        host_link=f"weft{number:011x}",
        mac=bytes((2, 0, 0, 0, 0, number)),
        mtu=1450,
        addresses=(bytes((10, 0, 0, number)), parse_address(f"fd00::{number:x}")),
        sources=NODE,
        alias="alias".ljust(120, "."),
    )


class Floor:
    """floor.c, built and loaded."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            library = os.path.join(directory, "floor.so")
            source = os.path.join(os.path.dirname(__file__), "floor.c")
            subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
            self._library = ctypes.CDLL(library)
        self._host = self._library.floor_socket()
        self._home = open_namespace(THREAD_NAMESPACE)

    def attach(self, wanted: AttachRequest) -> None:
        """Wire one pod."""
        names = wanted.netns.encode(), wanted.host_link.encode()
        result = self._library.floor_attach(
            self._host, self._home, *names, *wanted.addresses, wanted.mac, wanted.mtu
        )
        if result < 0:
            raise OSError(-result, "the floor failed")


def batch_processes(wanted: AttachRequest) -> None:
    """Wire one pod by two processes."""
    link, own4, own6 = wanted.host_link, *map(address, wanted.addresses)
    name = os.path.basename(wanted.netns)
    node = (
        (
            f"link add {link} mtu {wanted.mtu} address {mac(HOST_MAC)} type veth "
            f"peer name eth0 mtu {wanted.mtu} address {mac(wanted.mac)} netns {name}"
        ),
        f"link set {link} up",
        f"route replace {own4}/32 dev {link} src {address(NODE[0])}",
        f"route replace {own6}/128 dev {link} src {address(NODE[1])}",
    )
    pod = (
        "link set lo up",
        f"addr add {own4}/32 dev eth0",
        f"addr add {own6}/128 dev eth0 nodad",
        "link set eth0 up",
        *_GATEWAY_COMMANDS,
    )
    for command, lines in ((["ip"], node), (["ip", "-n", name], pod)):
        subprocess.run([*command, "-batch", "-"], input="\n".join(lines).encode(), check=True)


def parallel_batches(requests: Sequence[AttachRequest]) -> None:
    """Wire pods by processes, WORKERS pods at a time."""
    home = open_namespace(THREAD_NAMESPACE)
    waiting = iter(requests)
    turn = threading.Lock()

    def worker() -> None:
        with entered(home):
            while True:
                with turn:
                    wanted = next(waiting, None)
                if wanted is None:
                    return
                batch_processes(wanted)

    threads = [threading.Thread(target=worker) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(home)


@contextmanager
def _namespace(name: str) -> Iterator[str]:
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield f"/run/netns/{name}"
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
