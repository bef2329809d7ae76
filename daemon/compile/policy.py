"""All NetworkPolicies as they concern this node: whom they isolate, what they allow, who the peers are.

No I/O and no time. Given pods, namespaces, nodes, policies and what is attached to this node, one changed
object at a time, it holds what the datapath needs as values of `datapath.policy`, and tells what has become
different. Compiling everything anew gives the same result, and a change costs what it concerns: a pod costs
the look-up of its labels, whatever number of pods and policies there are.

Only policies that select a pod of this node are compiled. The others are kept as they are; where there are
none, nothing is done at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from daemon.cluster.selectors import Selectors
from daemon.compile.local import Problem
from daemon.compile.policy_peers import PeerSets
from daemon.compile.policy_ports import PortSets
from daemon.compile.policy_rules import BlockScope, CompiledPolicy, PodScope, compile_policy
from daemon.compile.policy_tunnels import TunnelSets
from datapath.policy import Direction, Subject

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping

    from daemon.cluster.model import Namespace, NetworkPolicy, Node, Pod
    from daemon.compile.policy_rules import Scope
    from datapath.policy import PolicyPart, Rules, Target


class Attached(NamedTuple):
    """An attachment of this node: its host link, the pod's names and UID as far as known, its addresses."""

    host_link: str
    namespace: str
    name: str
    uid: str
    addresses: tuple[bytes, ...]

    @property
    def pod(self) -> str:
        """NAMESPACE/NAME of the pod."""
        return f"{self.namespace}/{self.name}"


@dataclass(slots=True)
class Changes:
    """What may be different from before; what is there now says the model.

    Attributes:
        subjects: host links.
        rules: policies and directions.
        peers: addresses by name of a set of peers, which may itself have come or gone.
        nodes: tunnel addresses by name of a set of nodes, likewise.
        ports: targets by name of a set of named ports, likewise.
        tunnels: tunnel addresses of nodes.
    """

    subjects: set[str] = field(default_factory=set)
    rules: set[PolicyPart] = field(default_factory=set)
    peers: Mapping[str, set[bytes]] = field(default_factory=dict)
    nodes: Mapping[str, set[bytes]] = field(default_factory=dict)
    ports: Mapping[str, set[Target]] = field(default_factory=dict)
    tunnels: set[bytes] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.subjects or self.rules or self.peers or self.nodes or self.ports or self.tunnels)


@dataclass(slots=True)
class _Local:
    """An attachment, its pod's object (None while it is not known), and the policies that select it."""

    attached: Attached
    pod: Pod | None = None
    policies: set[str] = field(default_factory=set)


class Policies:
    """The compiled state. Objects are put in, one by one; `compile` brings the result up to date.

    Attributes:
        node: name of this node.
        subjects: pods of this node by host link, isolated or not.
        rules: what the policies in force allow, by policy and direction.
        peers, nodes, ports: the shared sets in use, by name: addresses of pods, tunnel addresses of nodes
            within blocks, where named ports lead; each element with the number of times that it is in.
        tunnels: the own address of each node by its tunnel address.
        own_addresses: of this node: what comes from these reaches every pod of it.
    """

    def __init__(self, node: str) -> None:
        self.node = node
        self.subjects: dict[str, Subject] = {}
        self.rules: dict[PolicyPart, Rules] = {}
        self.own_addresses: frozenset[bytes] = frozenset()
        self._of_node: frozenset[bytes] = frozenset()
        self._of_host: frozenset[bytes] = frozenset()
        self._by_address: dict[bytes, Subject] = {}
        self._peers = PeerSets()
        self._ports = PortSets(node)
        self._tunnels = TunnelSets()
        self.peers: Mapping[str, Mapping[bytes, int]] = self._peers.sets
        self.nodes: Mapping[str, Mapping[bytes, int]] = self._tunnels.sets
        self.ports: Mapping[str, Mapping[Target, int]] = self._ports.sets
        self.tunnels: Mapping[bytes, bytes] = self._tunnels.nodes
        self._pods: dict[Hashable, Pod] = {}
        """All pods with addresses. Those of this node have keys of their own, since a pod that moves may be
        known here and there for a moment, and the addresses of their attachments."""
        self._here: dict[str, Pod] = {}
        """The objects of this node's pods by NAMESPACE/NAME."""
        self._locals: dict[str, _Local] = {}
        self._links: dict[str, set[str]] = {}
        """Host links by NAMESPACE/NAME of the pod."""
        self._residents: dict[str, set[str]] = {}
        """Host links by namespace."""
        self._policies: dict[str, NetworkPolicy] = {}
        self._by_namespace: dict[str, dict[str, NetworkPolicy]] = {}
        self._selectors: dict[str, Selectors[str]] = {}
        """Policies by namespace and podSelector."""
        self._selected: dict[str, set[str]] = {}
        """Host links by the policy that selects them: the policies in force."""
        self._compiled: dict[str, CompiledPolicy] = {}
        self._dirty_policies: dict[str, None] = {}
        self._dirty_links: set[str] = set()
        self._changed_subjects: set[str] = set()
        self._changed_rules: set[PolicyPart] = set()

    # What the model says.

    @property
    def in_force(self) -> bool:
        """Whether some policy selects a pod of this node."""
        return bool(self._selected)

    @property
    def needs_all_pods(self) -> bool:
        """Whether pods of other nodes make a difference: some rule looks up peers, or ports at any pod."""
        return bool(self._peers.sets.by_name) or any(
            not each.scope.here for each in self._ports.sets.by_name.values()
        )

    def subject(self, address: bytes) -> Subject | None:
        """Return the pod of this node that has an address."""
        return self._by_address.get(address)

    @property
    def groups(self) -> int:
        """How many namespaces and label sets pods with addresses differ by."""
        return len(self._peers)

    def scope(self, name: str) -> Scope | None:
        """Return what belongs into a shared set in use, for people; None where there is none of that name."""
        for sets in (self._peers.sets, self._tunnels.sets, self._ports.sets):
            found = sets.by_name.get(name)
            if found is not None:
                return found.scope
        return None

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong with policies in force."""
        for key in sorted(self._selected):
            policy = self._policies[key]
            if policy.faults:
                message = (
                    f"parts of NetworkPolicy {key} can't be understood and allow nothing: "
                    f"{'; '.join(policy.faults)}"
                )
                yield Problem("PolicyIncomplete", "warning", message, key)

    # What it is told.

    def put_node(self, name: str, node: Node | None) -> None:
        """Take a node; None where there is no such node."""
        self._tunnels.put_node(name, node)
        if name == self.node:
            self._of_node = frozenset(
                (*node.internal_ips, *node.underlay, *[cidr.address for cidr in node.pod_cidrs])
                if node is not None
                else ()
            )
            self.own_addresses = self._of_node | self._of_host

    def put_host_addresses(self, addresses: Iterable[bytes]) -> None:
        """Take all addresses of this machine, which may speak from ones that its Node does not tell."""
        self._of_host = frozenset(addresses)
        self.own_addresses = self._of_node | self._of_host

    def put_namespace(self, name: str, namespace: Namespace | None) -> None:
        """Take a namespace; None where there is no such namespace."""
        self._peers.put_namespace(name, namespace.labels if namespace is not None else None)

    def put_remote_pod(self, name: str, pod: Pod | None) -> None:
        """Take a pod of another node by NAMESPACE/NAME; None where it is gone, or not followed."""
        self._locate(name, pod if pod is not None and pod.ips and _takes_part(pod) else None)

    def put_pod(self, name: str, pod: Pod | None) -> None:
        """Take a pod of this node by NAMESPACE/NAME; None where it is gone.

        Its addresses are those of its attachments: the object tells them late, and keeps them when they are
        another's already.
        """
        if pod is None:
            self._here.pop(name, None)
        else:
            self._here[name] = pod
        self._join(name)

    def put_attached(self, host_link: str, attached: Attached | None) -> None:
        """Take an attachment of this node by its host link; None where it is gone."""
        before = self._locals.get(host_link)
        if before is not None:
            if before.attached == attached:
                return
            self._select(host_link, before, frozenset())
            del self._locals[host_link]
            _discard(self._links, before.attached.pod, host_link)
            _discard(self._residents, before.attached.namespace, host_link)
            self._join(before.attached.pod)
        self._dirty_links.add(host_link)
        if attached is not None:
            self._locals[host_link] = _Local(attached)
            self._links.setdefault(attached.pod, set()).add(host_link)
            self._residents.setdefault(attached.namespace, set()).add(host_link)
            self._join(attached.pod)

    def put_policy(self, name: str, policy: NetworkPolicy | None) -> None:
        """Take a policy by NAMESPACE/NAME; None where it is gone."""
        before = self._policies.pop(name, None)
        if before is not None:
            self._selectors[before.namespace].discard(name, before.pods)
            _forget(self._selectors, before.namespace)
            del self._by_namespace[before.namespace][name]
            _forget(self._by_namespace, before.namespace)
        if policy is not None:
            self._policies[name] = policy
            self._selectors.setdefault(policy.namespace, Selectors()).add(name, policy.pods)
            self._by_namespace.setdefault(policy.namespace, {})[name] = policy
        self._dirty_policies[name] = None
        namespace = name.partition("/")[0]
        for link in (*self._residents.get(namespace, ()), *self._residents.get("", ())):
            local = self._locals[link]
            if local.pod is None:
                self._dirty_links.add(link)
                continue
            selects = policy is not None and _takes_part(local.pod) and policy.pods.matches(local.pod.labels)
            if selects or name in local.policies:
                self._select(link, local, local.policies | {name} if selects else local.policies - {name})
                self._dirty_links.add(link)

    # What follows from it.

    @property
    def pending(self) -> bool:
        """Whether something that was put in has not been compiled yet."""
        return bool(self._dirty_policies or self._dirty_links)

    def compile(self, limit: int = 1 << 30) -> None:
        """Compile what is pending: at most so many policies, and whom they isolate once all are compiled.

        While something is pending, a policy that is not compiled allows nothing.
        """
        for name in list(self._dirty_policies)[:limit]:
            del self._dirty_policies[name]
            self._compile_policy(name)
        if not self._dirty_policies:
            for link in self._dirty_links:
                self._compile_subject(link)
            self._dirty_links.clear()

    def changes(self) -> Changes:
        """Return what may have changed since the last call."""
        changes = Changes(
            subjects=self._changed_subjects,
            rules=self._changed_rules,
            peers=self._peers.sets.take(),
            nodes=self._tunnels.sets.take(),
            ports=self._ports.sets.take(),
            tunnels=self._tunnels.touched,
        )
        self._changed_subjects, self._changed_rules, self._tunnels.touched = set(), set(), set()
        return changes

    def _join(self, name: str) -> None:
        """Bring a pod of this node together with its attachments, of which an old sandbox may be one."""
        pod = self._here.get(name)
        addresses: dict[bytes, None] = {}
        for link in sorted(self._links.get(name, ())):
            local = self._locals[link]
            uid = local.attached.uid
            known = pod if pod is not None and (not uid or not pod.uid or uid == pod.uid) else None
            if known is not None:
                addresses |= dict.fromkeys(local.attached.addresses)
            if known is not local.pod:
                local.pod = known
                self._dirty_links.add(link)
                policies: Iterable[str] = ()
                if known is not None and _takes_part(known) and known.namespace in self._selectors:
                    policies = self._selectors[known.namespace].matching(known.labels)
                self._select(link, local, policies)
        located = None
        if pod is not None and addresses and _takes_part(pod):
            located = replace(pod, ips=tuple(addresses))
        self._locate((name,), located)

    def _locate(self, key: Hashable, pod: Pod | None) -> None:
        """Take a pod with the addresses that it has; None for one without, or that is nobody's peer."""
        before = self._pods.get(key)
        if before == pod:
            return
        if pod is None:
            del self._pods[key]
        else:
            self._pods[key] = pod
        self._peers.put_pod(key, before, pod)
        self._ports.put_pod(before, pod)

    def _select(self, link: str, local: _Local, policies: Iterable[str]) -> None:
        """Note which policies select an attachment; the first one that is selected puts a policy in force."""
        before, after = local.policies, set(policies)
        local.policies = after
        for name in after - before:
            links = self._selected.setdefault(name, set())
            if not links:
                self._dirty_policies[name] = None
            links.add(link)
        for name in before - after:
            self._selected[name].discard(link)
            if not self._selected[name]:
                del self._selected[name]
                self._dirty_policies[name] = None

    def _compile_policy(self, name: str) -> None:
        before = self._compiled.pop(name, _NOTHING)
        after = _NOTHING
        if name in self._selected:
            after = self._compiled[name] = compile_policy(self._policies[name])
        # What both use is not emptied and filled again.
        for each, scope in after.sets.items():
            if each not in before.sets:
                self._acquire(each, scope)
        for each, scope in before.sets.items():
            if each not in after.sets:
                self._release(each, scope)
        for direction in Direction:
            rules = after.rules.get(direction)
            if before.rules.get(direction) != rules:
                self._changed_rules.add((name, direction))
                if rules is None:
                    del self.rules[name, direction]
                else:
                    self.rules[name, direction] = rules

    def _acquire(self, name: str, scope: Scope) -> None:
        if isinstance(scope, PodScope):
            self._peers.acquire(name, scope)
        elif isinstance(scope, BlockScope):
            self._tunnels.acquire(name, scope)
        else:
            self._ports.acquire(name, scope, self._pods.values())

    def _release(self, name: str, scope: Scope) -> None:
        if isinstance(scope, PodScope):
            self._peers.release(name)
        elif isinstance(scope, BlockScope):
            self._tunnels.release(name)
        else:
            self._ports.release(name)

    def _compile_subject(self, link: str) -> None:
        local = self._locals.get(link)
        before, after = self.subjects.get(link), self._subject(local) if local is not None else None
        if before == after:
            return
        self._changed_subjects.add(link)
        if before is not None:
            del self.subjects[link]
            for address in before.addresses:
                if self._by_address.get(address) is before:
                    del self._by_address[address]
        if after is not None:
            self.subjects[link] = after
            self._by_address |= dict.fromkeys(after.addresses, after)

    def _subject(self, local: _Local) -> Subject:
        attached, pod = local.attached, local.pod
        ingress: tuple[str, ...] | None
        egress: tuple[str, ...] | None
        if pod is None:
            # Nobody knows its labels, so whichever policy there is may select it.
            possible = (
                self._by_namespace.get(attached.namespace, {}) if attached.namespace else self._policies
            ).values()
            ingress = () if any(each.ingress is not None for each in possible) else None
            egress = () if any(each.egress is not None for each in possible) else None
        else:
            names = sorted(local.policies)
            ingress = tuple([each for each in names if self._policies[each].ingress is not None]) or None
            egress = tuple([each for each in names if self._policies[each].egress is not None]) or None
        return Subject(attached.host_link, attached.pod, attached.addresses, ingress, egress)


_NOTHING = CompiledPolicy()


def _takes_part(pod: Pod) -> bool:
    """Whether a pod is subject and peer: it has a network of its own, and its addresses are its own still."""
    return not pod.host_network and not pod.finished


def _discard(links: dict[str, set[str]], name: str, link: str) -> None:
    links[name].discard(link)
    if not links[name]:
        del links[name]


def _forget(table: dict[str, Selectors[str]] | dict[str, dict[str, NetworkPolicy]], namespace: str) -> None:
    """Drop the entry of a namespace that has become empty."""
    if not table[namespace]:
        del table[namespace]
