"""The compiled state of the whole network: what each fragment is by now, and which of them a change concerns.

No I/O and no time: given all nodes, the names of those that changed and the machine's links, it returns the
fragments that are different from before, in slices if asked, so that thousands of nodes hold nobody up.
Compiling everything anew gives the same result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.compile.local import IPV6, Problem, compile_local, tunnel_family, underlay_addresses
from daemon.compile.masquerade import node_port_addresses, sets_fragment
from daemon.compile.overlay import local_fragment, remote
from datapath import text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from daemon.cluster.model import Node, Prefix
    from daemon.compile.local import LocalNetwork
    from daemon.compile.overlay import Remote
    from daemon.config import Config
    from datapath.desired import Fragment, FragmentKey
    from datapath.underlay import HostLink

LOCAL: FragmentKey = ("local",)
SETS: FragmentKey = ("sets",)


def node_key(name: str) -> FragmentKey:
    """Return the key of a remote node's fragment."""
    return ("node", name)


class Network:
    """The network as it was compiled last.

    Attributes:
        local: this node's part; None while it can't be known.
        remotes: what each other node needs here.
        links: the links of the machine as given last.
    """

    def __init__(self, node_name: str, config: Config) -> None:
        self.local: LocalNetwork | None = None
        self.remotes: dict[str, Remote] = {}
        self._node_name = node_name
        self._config = config
        self._nodes: dict[str, Node] = {}
        self.links: Sequence[HostLink] = ()
        self._only_ipv6: set[str] = set()
        self._claims: dict[Prefix, str] = {}
        self._rivals: dict[Prefix, set[str]] = {}
        self._local_problems: tuple[Problem, ...] = ()
        self._todo: set[str] = set()
        self._local_stale = self._sets_stale = False

    @property
    def pending(self) -> bool:
        """Whether there is something left to compile."""
        return self.local is not None and bool(self._todo or self._local_stale or self._sets_stale)

    def update(
        self, nodes: Mapping[str, Node], changed: Iterable[str], links: Sequence[HostLink]
    ) -> dict[FragmentKey, Fragment | None]:
        """Do `take` and all of `compile` at once."""
        self.take(nodes, changed, links)
        changes: dict[FragmentKey, Fragment | None] = {}
        while self.pending:
            changes |= self.compile()
        return changes

    def take(self, nodes: Mapping[str, Node], changed: Iterable[str], links: Sequence[HostLink]) -> None:
        """Take in changes.

        Args:
            nodes: all nodes.
            changed: names of nodes that may have changed, come or gone since the last call.
            links: the links of this machine that are not ours.
        """
        dirty = {name for name in changed if self._nodes.get(name) != nodes.get(name)}
        self._sets_stale |= self._take_nodes(nodes, dirty)
        self._count_ipv6_only(dirty)
        # Addresses for node ports come and go with the links'.
        self._sets_stale |= links != self.links
        self.links = links
        before = self.local
        self._compile_local()
        self._todo |= dirty
        if self.local != before:
            self._local_stale = self._sets_stale = True
            self._todo |= self._nodes.keys() | self.remotes.keys()

    def compile(self, limit: int | None = None) -> dict[FragmentKey, Fragment | None]:
        """Compile up to `limit` nodes; returns fragments that are different, None for one that is to go."""
        changes: dict[FragmentKey, Fragment | None] = {}
        if self.local is None:
            return changes
        if self._local_stale:
            changes[LOCAL] = local_fragment(self.local)
            self._local_stale = False
        names = [self._todo.pop() for _ in range(min(limit or len(self._todo), len(self._todo)))]
        for name in names:
            if name != self._node_name:
                self._compile_remote(self.local, name, changes)
        if self._sets_stale and not self._todo:
            node_ports = node_port_addresses(self.local, self.links, self._config)
            changes[SETS] = sets_fragment(self.local, self._nodes, self._config, node_ports)
            self._sets_stale = False
        return changes

    def problems(self) -> Iterator[Problem]:
        """Yield what hinders the network now."""
        yield from self._local_problems
        for each in self.remotes.values():
            yield from each.problems
        for cidr, names in self._rivals.items():
            yield _shared(cidr, sorted(names))

    def _count_ipv6_only(self, dirty: set[str]) -> None:
        """Keep the set of peers that can be reached by VXLAN over IPv6 only."""
        own = self._nodes.get(self._node_name)
        families = {len(address) for address in underlay_addresses(own)} if own is not None else set()
        if self._node_name in dirty:
            self._only_ipv6.clear()
            dirty = set(self._nodes)
        for name in dirty:
            other = self._nodes.get(name)
            if other is not None and tunnel_family(families, underlay_addresses(other)) == IPV6:
                self._only_ipv6.add(name)
            else:
                self._only_ipv6.discard(name)
        self._only_ipv6.discard(self._node_name)

    def _take_nodes(self, nodes: Mapping[str, Node], dirty: Iterable[str]) -> bool:
        """Remember nodes; returns whether podCIDRs changed and are what the sets depend on."""
        changed = False
        for name in dirty:
            old, new = self._nodes.get(name), nodes.get(name)
            self._claim(name, old, new)
            if new is None:
                self._nodes.pop(name, None)
            else:
                self._nodes[name] = new
            changed |= (old.pod_cidrs if old else ()) != (new.pod_cidrs if new else ())
        return changed and not self._config.cluster_cidrs

    def _claim(self, name: str, old: Node | None, new: Node | None) -> None:
        """Keep who claims which podCIDR; ours is no matter here, see `overlay.remote`."""
        if name == self._node_name:
            return
        if old is not None:
            for cidr in old.pod_cidrs:
                rivals = self._rivals.get(cidr, set())
                rivals.discard(name)
                if len(rivals) < 2:
                    self._rivals.pop(cidr, None)
                if self._claims.get(cidr) == name:
                    del self._claims[cidr]
                    if rivals:
                        self._claims[cidr] = min(rivals)
        if new is not None:
            for cidr in new.pod_cidrs:
                first = self._claims.setdefault(cidr, name)
                if first != name:
                    self._rivals.setdefault(cidr, {first}).add(name)

    def _compile_local(self) -> None:
        local, self._local_problems = compile_local(
            self._node_name,
            self._nodes.get(self._node_name),
            self.links,
            self._config,
            vxlan6=bool(self._only_ipv6),
            previous=self.local,
        )
        # Without a Node (deleted by mistake, say) the network stays as it was: running pods need it.
        self.local = local or self.local

    def _compile_remote(
        self, local: LocalNetwork, name: str, changes: dict[FragmentKey, Fragment | None]
    ) -> None:
        """Compile a node into `changes`."""
        old, node = self.remotes.get(name), self._nodes.get(name)
        if node is None:
            if old is not None:
                del self.remotes[name]
                changes[node_key(name)] = None
            return
        new = self.remotes[name] = remote(local, node)
        if old is None or new.fragment != old.fragment:
            changes[node_key(name)] = new.fragment


def _shared(cidr: Prefix, names: Sequence[str]) -> Problem:
    return Problem(
        "PodCidrConflict",
        "error",
        f"Nodes {', '.join(names)} have the same podCIDR {text.prefix(*cidr)}: its packets go to {names[0]}; "
        "delete the others and let them register again",
        text.prefix(*cidr),
    )
