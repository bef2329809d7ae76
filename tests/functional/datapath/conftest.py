"""A node of one's own: a network namespace that the test's thread is in, and pods' namespaces beside it."""

from __future__ import annotations

import errno
import itertools
import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from datapath.attachment import DOOMED_GROUP, Attachment, AttachRequest
from datapath.errors import NetlinkError
from datapath.netlink.links import del_group
from datapath.netlink.transport import Socket
from datapath.netns import entered, open_namespace
from datapath.text import parse_address

if TYPE_CHECKING:
    from collections.abc import Iterator

NODE4, NODE6 = "192.0.2.1", "fd00:ffff::1"
_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
    for item in items:
        if "functional/datapath" in str(item.path):
            item.add_marker(pytest.mark.root)
            item.add_marker(reason)


def run(command: str) -> str:
    """Run a command in the calling thread's namespace; returns what it printed."""
    done = subprocess.run(command.split(), capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


class Node:
    """The namespace that the test runs in, with a pair of addresses and a socket."""

    def __init__(self) -> None:
        self.host = Socket()
        self.namespaces: list[str] = []

    def pod(self, *settings: str) -> str:
        """Make a pod's namespace with sysctl settings; returns its path."""
        name = f"weft-t-{os.getpid()}-{next(_numbers)}"
        run(f"ip netns add {name}")
        self.namespaces.append(name)
        for setting in settings:
            run(f"ip netns exec {name} sysctl -qw {setting}")
        return f"/run/netns/{name}"

    def state(self, *paths: str) -> str:
        """Everything that attachments could leave, of the node and the pods, as text."""
        prefixes = ["ip"] + [f"ip -n {os.path.basename(path)}" for path in paths]
        what = ("-o link", "-o addr", "route show table all", "-6 route show table all", "neigh")
        text = "".join(run(f"{prefix} {part}") for prefix in prefixes for part in what)
        # What the loopback's being up brings is no remainder: the runtime brings it up as well.
        # The kernel changes these by itself, a little later.
        text = re.sub(" (state [A-Z]+|tentative|STALE|DELAY|PROBE|REACHABLE)(?= )", "", text)
        text = re.sub("^.*(fe80::(?!1/128)|ff00::/8).*$", "", text, flags=re.MULTILINE)
        return "\n".join(
            line for line in text.splitlines() if line and " lo " not in line and " lo:" not in line
        )

    def reap(self) -> None:
        """Destroy detached links now."""
        try:
            self.host.batch((del_group(DOOMED_GROUP),), "reap")
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise


def request(
    netns: str, number: int = 5, *, families: str = "46", mtu: int = 1450, sources: bool = True
) -> AttachRequest:
    """What pod `number` gets: 10.0.0.n, fd00::n, or one of them."""
    own = {"4": f"10.0.0.{number}", "6": f"fd00::{number:x}"}
    nodes = {"4": NODE4, "6": NODE6}
    return AttachRequest(
        netns=netns,
        ifname="eth0",
        host_link=f"weft{number:011x}",
        mac=bytes((2, 0, 0, 0, 0, number)),
        mtu=mtu,
        addresses=tuple(parse_address(own[family]) for family in families),
        sources=tuple(parse_address(nodes[family]) for family in families) if sources else (),
        alias=f"alias of {number}",
    )


def remembered(made: AttachRequest) -> Attachment:
    """The attachment that a request makes."""
    return Attachment(made.host_link, made.netns, made.ifname, made.mac, made.mtu, made.addresses)


@pytest.fixture
def node() -> Iterator[Node]:
    name = f"weft-t-{os.getpid()}-{next(_numbers)}"
    run(f"ip netns add {name}")
    descriptor = open_namespace(f"/run/netns/{name}")
    made: list[str] = [name]
    try:
        with entered(descriptor):
            run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
            run("ip link set lo up")
            run(f"ip addr add {NODE4}/32 dev lo")
            run(f"ip addr add {NODE6}/128 dev lo nodad")
            inside = Node()
            made = inside.namespaces
            made.append(name)
            with inside.host:
                yield inside
    finally:
        os.close(descriptor)
        for each in made:
            subprocess.run(["ip", "netns", "delete", each], check=False, capture_output=True)
