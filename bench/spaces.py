"""Network namespaces for measurements: made with a link to the world, gone in the end."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from datapath.netns import open_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator


def run(*command: str) -> None:
    """Run a command to its end. Raises CalledProcessError."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def bare_space(name: str) -> Iterator[int]:
    """Make a namespace without links but its loopback; yields its descriptor."""
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        descriptor = open_namespace(f"/run/netns/{name}")
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    finally:
        run("ip", "netns", "delete", name)


@contextmanager
def node_space(name: str, address: str) -> Iterator[int]:
    """Make a namespace with a link "eth0" that has an address (ADDRESS/LENGTH); yields its descriptor.

    The other end, "far", is in the namespace too: what is sent is lost.
    """
    with bare_space(name) as descriptor:
        run("ip", "-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "far")
        run("ip", "-n", name, "link", "set", "far", "up")
        run("ip", "-n", name, "addr", "add", address, "dev", "eth0")
        run("ip", "-n", name, "link", "set", "eth0", "up")
        yield descriptor


def resident_mebibytes() -> float:
    """Return the memory of this process now."""
    with open("/proc/self/statm") as figures:
        return int(figures.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def joined_spaces(name: str, network: str) -> Iterator[tuple[int, int]]:
    """Make a node and, behind it, a namespace that answers for a whole network; yields both descriptors."""
    behind = f"{name}-far"
    with ExitStack() as stack:
        for each in (name, behind):
            run("ip", "netns", "add", each)
            stack.callback(run, "ip", "netns", "delete", each)
            run("ip", "-n", each, "link", "set", "lo", "up")
        run("ip", "-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", behind)
        for each, address in ((name, "172.16.0.1/30"), (behind, "172.16.0.2/30")):
            run("ip", "-n", each, "addr", "add", address, "dev", "eth0")
            run("ip", "-n", each, "link", "set", "eth0", "up")
        run("ip", "-n", name, "route", "add", "default", "via", "172.16.0.2")
        run("ip", "-n", behind, "route", "add", "local", network, "dev", "lo")
        descriptors = tuple(open_namespace(f"/run/netns/{each}") for each in (name, behind))
        for descriptor in descriptors:
            stack.callback(os.close, descriptor)
        yield descriptors[0], descriptors[1]
