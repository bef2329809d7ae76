"""All NetworkPolicies as they concern this node: whom they isolate, what they allow, who the peers are.

No I/O and no time. Given pods, namespaces, nodes, policies and what is attached to this node, one changed
object at a time, it holds what the datapath needs as values of `datapath.policy`, and tells what has become
different. Compiling everything anew gives the same result, and a change costs what it concerns: a pod costs
the look-up of its labels, whatever number of pods and policies there are.

Only policies that select a pod of this node are compiled. The others are kept as they are; where there are
none, nothing is done at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from daemon.compile.local import Problem
from daemon.compile.policy_peers import PeerSets
from daemon.compile.policy_ports import PortSets
from daemon.compile.policy_rules import BlockScope, CompiledPolicy, PodScope, compile_policy
from daemon.compile.policy_subjects import Subjects, takes_part
from daemon.compile.policy_tunnels import TunnelSets
from datapath.policy import Direction, Rules

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping

    from daemon.cluster.model import Namespace, NetworkPolicy, Node, Pod
    from daemon.compile.policy_rules import Scope
    from daemon.compile.policy_subjects import Attached
    from datapath.policy import PolicyPart, Subject, Target


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


class Policies:
    """The compiled state. Objects are put in, one by one; `compile` brings the result up to date.

    Attributes:
        node: name of this node.
        subjects: pods of this node by host link, isolated or not.
        rules: what the policies in force allow, by policy and direction.
        peers, nodes, ports: the shared sets in use, by name: addresses of pods, tunnel addresses of nodes
            within blocks, where named ports lead; each element with the number of times that it is in.
        tunnels: the own address of each node by its tunnel address.
        refused: what the kernel does not take, and why: these allow nothing until it does.
        own_addresses: of this node: what comes from these reaches every pod of it.
    """

    def __init__(self, node: str) -> None:
        self.node = node
        self._subjects = Subjects()
        self._peers = PeerSets()
        self._ports = PortSets(node)
        self._tunnels = TunnelSets()
        self.subjects: Mapping[str, Subject] = self._subjects.subjects
        self.rules: dict[PolicyPart, Rules] = {}
        self.peers: Mapping[str, Mapping[bytes, int]] = self._peers.sets
        self.nodes: Mapping[str, Mapping[bytes, int]] = self._tunnels.sets
        self.ports: Mapping[str, Mapping[Target, int]] = self._ports.sets
        self.tunnels: Mapping[bytes, bytes] = self._tunnels.nodes
        self.own_addresses: frozenset[bytes] = frozenset()
        self._of_node: frozenset[bytes] = frozenset()
        self._of_host: frozenset[bytes] = frozenset()
        self._pods: dict[Hashable, Pod] = {}
        """All pods with addresses. Those of this node have keys of their own: a pod that moves may be known
        here and there for a moment."""
        self.refused: dict[PolicyPart, str] = {}
        self._compiled: dict[str, CompiledPolicy] = {}
        self._dirty: dict[str, None] = {}
        """Policies that have to be compiled, in the order in which they became so."""
        self._changed_rules: set[PolicyPart] = set()

    # What the model says.

    @property
    def in_force(self) -> bool:
        """Whether some policy selects a pod of this node."""
        return bool(self._subjects.selected)

    @property
    def needs_all_pods(self) -> bool:
        """Whether pods of other nodes make a difference: some rule looks up peers, or ports at any pod."""
        return bool(self._peers.sets.by_name) or any(
            not each.scope.here for each in self._ports.sets.by_name.values()
        )

    def subject(self, address: bytes) -> Subject | None:
        """Return the pod of this node that has an address."""
        return self._subjects.at(address)

    @property
    def groups(self) -> int:
        """How many namespaces and label sets pods with addresses differ by."""
        return len(self._peers)

    def birth(self, namespace: str, name: str, uid: str) -> tuple[Direction, ...]:
        """Return the directions in which a pod that is about to be attached must be closed at first.

        What is not known of the pod is "".
        """
        return self._subjects.birth(namespace, name, uid)

    def scope(self, name: str) -> Scope | None:
        """Return what belongs into a shared set in use, for people; None where there is none of that name."""
        for sets in (self._peers.sets, self._tunnels.sets, self._ports.sets):
            found = sets.by_name.get(name)
            if found is not None:
                return found.scope
        return None

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong with policies in force."""
        policies = self._subjects.policies
        for key in sorted([each for each in self._subjects.selected if policies[each].faults]):
            message = (
                f"parts of NetworkPolicy {key} can't be understood and allow nothing: "
                f"{'; '.join(policies[key].faults)}"
            )
            yield Problem("PolicyIncomplete", "warning", message, key)

        for (key, direction), error in sorted(self.refused.items(), key=lambda each: each[0][0]):
            message = (
                f"the kernel refuses the {direction.value} rules of NetworkPolicy {key}, which allow nothing "
                f"on this node therefore: {error}; write the policy in another way, and report this"
            )
            yield Problem("PolicyRefused", "error", message, key)

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
        self._locate(name, pod if pod is not None and pod.ips and takes_part(pod) else None)

    def put_pod(self, name: str, pod: Pod | None) -> None:
        """Take a pod of this node by NAMESPACE/NAME; None where it is gone.

        Its addresses are those of its attachments: the object tells them late, and keeps them when they are
        another's already.
        """
        self._subjects.put_pod(name, pod)
        self._settle(name)

    def put_attached(self, host_link: str, attached: Attached | None) -> None:
        """Take an attachment of this node by its host link; None where it is gone."""
        self._settle(*self._subjects.put_attached(host_link, attached))

    def put_policy(self, name: str, policy: NetworkPolicy | None) -> None:
        """Take a policy by NAMESPACE/NAME; None where it is gone."""
        self._subjects.put_policy(name, policy)
        self._subjects.turned.add(name)
        self._settle()

    # What follows from it.

    @property
    def pending(self) -> bool:
        """Whether something that was put in has not been compiled yet."""
        return bool(self._dirty) or self._subjects.pending

    def compile(self, limit: int = 1 << 30) -> None:
        """Compile what is pending: at most so many policies, and whom they isolate once all are compiled.

        While something is pending, a policy that is not compiled allows nothing.
        """
        for name in list(self._dirty)[:limit]:
            del self._dirty[name]
            self._compile_policy(name)
        if not self._dirty:
            self._subjects.compile()

    def changes(self) -> Changes:
        """Return what may have changed since the last call."""
        changes = Changes(
            subjects=self._subjects.touched,
            rules=self._changed_rules,
            peers=self._peers.sets.take(),
            nodes=self._tunnels.sets.take(),
            ports=self._ports.sets.take(),
            tunnels=self._tunnels.touched,
        )
        self._subjects.touched, self._changed_rules, self._tunnels.touched = set(), set(), set()
        return changes

    def refuse(self, refused: Mapping[PolicyPart, str]) -> None:
        """Take what the kernel does not take, and why: it fails closed, and the others go on.

        It comes back when its policy has become another, or by `admit`.
        """
        for part, error in refused.items():
            if part in self.rules:
                self.refused[part] = error
                self.rules[part] = Rules()
                self._changed_rules.add(part)

    @property
    def withheld(self) -> dict[PolicyPart, Rules]:
        """The rules of what is refused, as they should be."""
        return {part: self._compiled[part[0]].rules[part[1]] for part in self.refused}

    def admit(self, parts: Iterable[PolicyPart]) -> None:
        """Take that the kernel would accept some of what it refused before."""
        withheld = self.withheld
        for part in parts:
            del self.refused[part]
            self.rules[part] = withheld[part]
            self._changed_rules.add(part)

    def _settle(self, *names: str) -> None:
        """Take over where pods of this node are now, and which policies came into force or went out of it."""
        for name in names:
            self._locate((name,), self._subjects.located(name))
        self._dirty |= dict.fromkeys(self._subjects.turned)
        self._subjects.turned.clear()

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

    def _compile_policy(self, name: str) -> None:
        before = self._compiled.pop(name, _NOTHING)
        after = _NOTHING
        if name in self._subjects.selected:
            after = self._compiled[name] = compile_policy(self._subjects.policies[name])
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
                self.refused.pop((name, direction), None)
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


_NOTHING = CompiledPolicy()
