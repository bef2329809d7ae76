"""The pods of this node: which attachment is whose, and which policies isolate it. Pure.

An attachment is known by its link and addresses at once; what pod it is of, and with what labels, the API
server tells a moment sooner or later. Until then it is closed in each direction in which a policy of its
namespace isolates anybody.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from daemon.cluster.selectors import Selectors
from datapath.policy import Direction, Subject

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from daemon.cluster.model import NetworkPolicy, Pod


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
class _Resident:
    """An attachment, its pod's object (None while it is not known), and the policies that select it."""

    attached: Attached
    pod: Pod | None = None
    policies: set[str] = field(default_factory=set)


class Subjects:
    """Attachments and the objects of their pods, brought together, and all policies by whom they select.

    Attributes:
        subjects: by host link, isolated or not, as `compile` left them.
        policies: all policies, of all namespaces.
        selected: host links by the policy that selects them, which puts it in force.
        turned: policies that came into force or went out of it, until somebody clears it.
        touched: host links whose subjects may be different from before, likewise.
    """

    def __init__(self) -> None:
        self.subjects: dict[str, Subject] = {}
        self.policies: dict[str, NetworkPolicy] = {}
        self.selected: dict[str, set[str]] = {}
        self.turned: set[str] = set()
        self.touched: set[str] = set()
        self._dirty: set[str] = set()
        self._by_address: dict[bytes, Subject] = {}
        self._pods: dict[str, Pod] = {}
        self._residents: dict[str, _Resident] = {}
        self._of_pod: dict[str, set[str]] = {}
        """Host links by the pod, NAMESPACE/NAME: a sandbox and the ones before it that are not gone yet."""
        self._of_namespace: dict[str, set[str]] = {}
        self._policies_of: dict[str, dict[str, NetworkPolicy]] = {}
        self._selectors: dict[str, Selectors[str]] = {}
        """Policies by namespace and podSelector."""

    @property
    def pending(self) -> bool:
        """Whether `compile` has something to do."""
        return bool(self._dirty)

    def at(self, address: bytes) -> Subject | None:
        """Return the subject that has an address."""
        return self._by_address.get(address)

    def birth(self, namespace: str, name: str, uid: str) -> tuple[Direction, ...]:
        """Return the directions in which policies may isolate a pod that is not attached yet.

        The object of a former pod of the name says nothing about this one: then each policy that may select
        it counts, as for one whose object is not known at all.
        """
        pod = self._of_uid(f"{namespace}/{name}", uid)
        if pod is None:
            possible: Iterable[NetworkPolicy] = self._possible(namespace).values()
        elif takes_part(pod) and namespace in self._selectors:
            possible = [self.policies[each] for each in self._selectors[namespace].matching(pod.labels)]
        else:
            possible = ()
        found = [Direction.INGRESS] if any(each.ingress is not None for each in possible) else []
        if any(each.egress is not None for each in possible):
            found.append(Direction.EGRESS)
        return tuple(found)

    def located(self, name: str) -> Pod | None:
        """Return a pod of this node with the addresses of its attachments; None where it is nobody's peer."""
        pod = self._pods.get(name)
        if pod is None or not takes_part(pod):
            return None
        addresses: dict[bytes, None] = {}
        for link in sorted(self._of_pod.get(name, ())):
            resident = self._residents[link]
            if resident.pod is not None:
                addresses |= dict.fromkeys(resident.attached.addresses)
        return replace(pod, ips=tuple(addresses)) if addresses else None

    def put_pod(self, name: str, pod: Pod | None) -> None:
        """Take the object of a pod of this node, NAMESPACE/NAME; None where it is gone."""
        if pod is None:
            self._pods.pop(name, None)
        else:
            self._pods[name] = pod
        for link in self._of_pod.get(name, ()):
            self._recognise(link)

    def put_attached(self, host_link: str, attached: Attached | None) -> tuple[str, ...]:
        """Take an attachment; None where it is gone. Returns the names of the pods that it was or is of."""
        before = self._residents.get(host_link)
        left: tuple[str, ...] = ()
        if before is not None:
            if before.attached == attached:
                return ()
            self._select(host_link, before, ())
            del self._residents[host_link]
            _discard(self._of_pod, before.attached.pod, host_link)
            _discard(self._of_namespace, before.attached.namespace, host_link)
            left = (before.attached.pod,)
        self._dirty.add(host_link)
        if attached is None:
            return left
        self._residents[host_link] = _Resident(attached)
        self._of_pod.setdefault(attached.pod, set()).add(host_link)
        self._of_namespace.setdefault(attached.namespace, set()).add(host_link)
        self._recognise(host_link)
        return (*left, attached.pod)

    def put_policy(self, name: str, policy: NetworkPolicy | None) -> None:
        """Take a policy, NAMESPACE/NAME; None where it is gone."""
        namespace = name.partition("/")[0]
        self._file(name, namespace, policy)
        for link in (*self._of_namespace.get(namespace, ()), *self._of_namespace.get("", ())):
            resident = self._residents[link]
            pod = resident.pod
            if pod is None:
                self._dirty.add(link)
                continue
            selects = policy is not None and takes_part(pod) and policy.pods.matches(pod.labels)
            if selects or name in resident.policies:
                others = resident.policies - {name}
                self._select(link, resident, others | {name} if selects else others)
                self._dirty.add(link)

    def compile(self) -> None:
        """Bring the subjects up to date."""
        for link in self._dirty:
            resident = self._residents.get(link)
            before = self.subjects.pop(link, None)
            after = self._subject(resident) if resident is not None else None
            if after is not None:
                self.subjects[link] = after
            if before != after:
                self.touched.add(link)
                for address in before.addresses if before is not None else ():
                    if self._by_address.get(address) is before:
                        del self._by_address[address]
            if after is not None:
                self._by_address |= dict.fromkeys(after.addresses, after)
        self._dirty.clear()

    def _file(self, name: str, namespace: str, policy: NetworkPolicy | None) -> None:
        before = self.policies.pop(name, None)
        if before is not None:
            self._selectors[namespace].discard(name, before.pods)
            del self._policies_of[namespace][name]
        if policy is not None:
            self.policies[name] = policy
            self._selectors.setdefault(namespace, Selectors()).add(name, policy.pods)
            self._policies_of.setdefault(namespace, {})[name] = policy
        elif before is not None and not self._policies_of[namespace]:
            del self._policies_of[namespace], self._selectors[namespace]

    def _recognise(self, link: str) -> None:
        """Find the object of an attachment's pod: of its name, and of its UID where both are known."""
        resident = self._residents[link]
        pod = self._of_uid(resident.attached.pod, resident.attached.uid)
        if pod is resident.pod:
            return
        resident.pod = pod
        self._dirty.add(link)
        policies: Iterable[str] = ()
        if pod is not None and takes_part(pod) and pod.namespace in self._selectors:
            policies = self._selectors[pod.namespace].matching(pod.labels)
        self._select(link, resident, policies)

    def _of_uid(self, name: str, uid: str) -> Pod | None:
        """Return the object of a pod, unless it is of another pod of the same name."""
        pod = self._pods.get(name)
        return None if pod is not None and uid and pod.uid and uid != pod.uid else pod

    def _possible(self, namespace: str) -> Mapping[str, NetworkPolicy]:
        """Return the policies that may select a pod of which no more is known; of any namespace for ""."""
        return self._policies_of.get(namespace, {}) if namespace else self.policies

    def _select(self, link: str, resident: _Resident, policies: Iterable[str]) -> None:
        """Note which policies select an attachment."""
        before, after = resident.policies, set(policies)
        resident.policies = after
        for name in after - before:
            if name not in self.selected:
                self.turned.add(name)
            self.selected.setdefault(name, set()).add(link)
        for name in before - after:
            _discard(self.selected, name, link)
            if name not in self.selected:
                self.turned.add(name)

    def _subject(self, resident: _Resident) -> Subject:
        attached = resident.attached
        ingress: tuple[str, ...] | None
        egress: tuple[str, ...] | None
        if resident.pod is None:
            possible = self._possible(attached.namespace).values()
            ingress = () if any(each.ingress is not None for each in possible) else None
            egress = () if any(each.egress is not None for each in possible) else None
        else:
            names, policies = sorted(resident.policies), self.policies
            ingress = tuple([each for each in names if policies[each].ingress is not None]) or None
            egress = tuple([each for each in names if policies[each].egress is not None]) or None
        return Subject(attached.host_link, attached.pod, attached.addresses, ingress, egress)


def takes_part(pod: Pod) -> bool:
    """Whether a pod is subject and peer: it has a network of its own, and its addresses are its own still."""
    return not pod.host_network and not pod.finished


def _discard(links: dict[str, set[str]], name: str, link: str) -> None:
    links[name].discard(link)
    if not links[name]:
        del links[name]
