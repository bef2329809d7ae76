"""What a node holds, as text that can be compared: in the kernel, on disk, in the mount table."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.e2e.cluster.node import Node

# What changes by itself: the state of entries the kernel learned, counters, ages, handles.
VOLATILE = re.compile(
    r"\s*(counter packets \d+ bytes \d+|# handle \d+|expires \S+|(valid|preferred)_lft \S+"
    r"|(REACHABLE|STALE|DELAY|PROBE) *$)"
)


@dataclass(frozen=True, slots=True)
class Holdings:
    """One look at a node. Lines as iproute2 and nft print them."""

    links: frozenset[str]
    addresses: frozenset[str]
    routes: frozenset[str]
    neighbours: frozenset[str]
    rules: frozenset[str]
    namespaces: frozenset[str]

    def added_since(self, earlier: Holdings) -> dict[str, list[str]]:
        """What is here now and was not then, by kind."""
        added = {name: getattr(self, name) - getattr(earlier, name) for name in self.__slots__}
        return {name: sorted(lines) for name, lines in added.items() if lines}


def holdings(node: Node) -> Holdings:
    """Reads what the node's kernel holds; entries that the kernel learns by itself are left out."""
    links = json.loads(node.ip("-json link show"))
    addresses = json.loads(node.ip("-json address show"))
    neighbours = (node.ip(f"{family} neighbour show nud permanent") for family in ("-4", "-6"))
    routes = (node.ip(f"{family} -N route show table all") for family in ("-4", "-6"))
    return Holdings(
        links=frozenset(link["ifname"] for link in links),
        addresses=frozenset(
            f"{link['ifname']} {entry['local']}/{entry['prefixlen']}"
            for link in addresses
            for entry in link["addr_info"]
        ),
        routes=frozenset(VOLATILE.sub("", line) for part in routes for line in part.splitlines()),
        neighbours=frozenset(VOLATILE.sub("", line) for part in neighbours for line in part.splitlines()),
        rules=frozenset(
            VOLATILE.sub("", line).strip() for line in node.run("nft", "list", "ruleset").splitlines()
        ),
        namespaces=frozenset(node.files("/run/netns")),
    )


@dataclass(frozen=True, slots=True)
class Belongings:
    """What a network may leave on a node: in the kernel, on disk, in the mount table."""

    kernel: Holdings
    files: frozenset[str]
    mounts: frozenset[str]

    def differences(self, earlier: Belongings) -> dict[str, list[str]]:
        """What came and what went since then, by kind."""
        found = {f"added {name}": lines for name, lines in self.kernel.added_since(earlier.kernel).items()}
        found |= {f"lost {name}": lines for name, lines in earlier.kernel.added_since(self.kernel).items()}
        for name in ("files", "mounts"):
            now, then = getattr(self, name), getattr(earlier, name)
            found |= {f"added {name}": sorted(now - then), f"lost {name}": sorted(then - now)}
        return {name: lines for name, lines in found.items() if lines}


PLACES = ("/etc/cni", "/opt/cni", "/run", "/etc/weft")
"""Where networks leave files."""


def belongings(node: Node) -> Belongings:
    """Looks at all of it; what containerd and kubelet keep for themselves is left out."""
    kernel = holdings(node)
    # The kernel's own, as long as the node forwards IPv6, which it is left doing.
    anycast = frozenset(line for line in kernel.routes if line.startswith("4 ") and " table 255 " in line)
    listed = node.run("find", *PLACES, "-path", "/run/containerd", "-prune", "-o", "-print", check=False)
    table = (line.split() for line in node.run("cat", "/proc/mounts").splitlines())
    # Namespaces are looked at by themselves; those of the machine, below the node's /run, come and go.
    theirs = ("/run/containerd/", "/var/lib/kubelet/pods/", "/run/netns/")
    return Belongings(
        replace(kernel, routes=kernel.routes - anycast),
        frozenset(path for path in listed.splitlines() if "/netns/" not in path),
        frozenset(f"{words[1]} {words[2]}" for words in table if not words[1].startswith(theirs)),
    )
