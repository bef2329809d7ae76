"""The addresses of pods that policies name as peers: shared sets by namespaces and labels. Pure.

Which sets a pod belongs to depends on its namespace and its labels only, so it is worked out once for all
pods that share these. A changed pod costs the look-up of its labels and its own addresses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from daemon.cluster.selectors import Groups, Selectors
from daemon.compile.policy_rules import PodScope
from daemon.compile.policy_sets import SharedSet, SharedSets

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from daemon.cluster.model import Pod
    from daemon.cluster.selectors import Group, LabelSet, Selector

PeerSet: TypeAlias = SharedSet[PodScope, bytes]


class PeerSets:
    """All pods that have addresses, and the sets in use.

    Attributes:
        sets: the sets in use, and what of them has changed.
    """

    def __init__(self) -> None:
        self.sets: SharedSets[PodScope, bytes] = SharedSets()
        self._namespaces: dict[str, LabelSet] = {}
        self._groups: Groups[Pod] = Groups()
        self._belongs: dict[Group[Pod], tuple[PeerSet, ...]] = {}
        """The sets that each group belongs to; a group that belongs to none is not in it."""
        self._inside: dict[str, Selectors[PeerSet]] = {}
        """Sets whose scope is one namespace."""
        self._across: dict[Selector, Selectors[PeerSet]] = {}
        """Sets whose scope is a selector of namespaces."""
        self._reach: Selectors[Selector] = Selectors()
        """The keys of `_across`."""

    def acquire(self, name: str, scope: PodScope) -> None:
        """Use a set, which is filled if it is new."""
        new = self.sets.acquire(name, scope)
        if new is None:
            return
        if isinstance(scope.namespaces, str):
            self._inside.setdefault(scope.namespaces, Selectors()).add(new, scope.pods)
        else:
            if scope.namespaces not in self._across:
                self._across[scope.namespaces] = Selectors()
                self._reach.add(scope.namespaces, scope.namespaces)
            self._across[scope.namespaces].add(new, scope.pods)
        for group in self._within(scope):
            self._belongs[group] = (*self._belongs.get(group, ()), new)
            for pod in group.members.values():
                self.sets.add(new, pod.ips)

    def release(self, name: str) -> None:
        """Use a set no more; the last one takes it away."""
        gone = self.sets.release(name)
        if gone is None:
            return
        scope = gone.scope
        if isinstance(scope.namespaces, str):
            self._inside[scope.namespaces].discard(gone, scope.pods)
            if not self._inside[scope.namespaces]:
                del self._inside[scope.namespaces]
        else:
            self._across[scope.namespaces].discard(gone, scope.pods)
            if not self._across[scope.namespaces]:
                del self._across[scope.namespaces]
                self._reach.discard(scope.namespaces, scope.namespaces)
        for group in self._within(scope):
            self._note(group, tuple([each for each in self._belongs[group] if each is not gone]))

    def put_namespace(self, name: str, labels: LabelSet | None) -> None:
        """Take the labels of a namespace; None where there is no such namespace, which nothing selects."""
        if labels is self._namespaces.get(name):
            return
        if labels is None:
            del self._namespaces[name]
        else:
            self._namespaces[name] = labels
        for group in self._groups.of(name):
            before, after = self._belongs.get(group, ()), self._matching(group)
            self._note(group, after)
            for pod in group.members.values():
                self._move(pod.ips, before, pod.ips, after)

    def put_pod(self, key: Hashable, before: Pod | None, after: Pod | None) -> None:
        """Take a pod, which was `before`; None where there was, or is, none with addresses."""
        left: tuple[PeerSet, ...] = ()
        joined: tuple[PeerSet, ...] = ()
        if before is not None:
            group = self._groups.get(before.namespace, before.labels)
            assert group is not None
            left = self._belongs.get(group, ())
            if after is None or after.labels is not before.labels or after.namespace != before.namespace:
                self._groups.remove(before.namespace, before.labels, key)
                if not group.members:
                    self._belongs.pop(group, None)
        if after is not None:
            known = self._groups.get(after.namespace, after.labels) is not None
            group = self._groups.add(after.namespace, after.labels, key, after)
            if not known:
                self._note(group, self._matching(group))
            joined = self._belongs.get(group, ())
        self._move(
            before.ips if before is not None else (), left, after.ips if after is not None else (), joined
        )

    def __len__(self) -> int:
        """How many groups of pods there are."""
        return len(self._groups)

    def _move(
        self,
        old: tuple[bytes, ...],
        left: tuple[PeerSet, ...],
        new: tuple[bytes, ...],
        joined: tuple[PeerSet, ...],
    ) -> None:
        """Take addresses out of the sets that a pod was in, and put those that it has now into its sets."""
        if old == new:
            if left is joined:
                return
            stayed = set(left).intersection(joined)
            left = tuple([each for each in left if each not in stayed])
            joined = tuple([each for each in joined if each not in stayed])
        for each in joined:
            self.sets.add(each, new)
        for each in left:
            self.sets.remove(each, old)

    def _within(self, scope: PodScope) -> Iterator[Group[Pod]]:
        """Yield the groups that a scope selects."""
        where = scope.namespaces
        if isinstance(where, str):
            names = [where]
        else:
            labels = self._namespaces
            names = [
                name for name in self._groups.namespaces() if name in labels and where.matches(labels[name])
            ]
        for name in names:
            for group in self._groups.of(name):
                if scope.pods.matches(group.labels):
                    yield group

    def _matching(self, group: Group[Pod]) -> tuple[PeerSet, ...]:
        """Return the sets that a group belongs to."""
        found: list[PeerSet] = []
        inside = self._inside.get(group.namespace)
        if inside is not None:
            found += inside.matching(group.labels)
        labels = self._namespaces.get(group.namespace)
        if labels is not None:
            for where in self._reach.matching(labels):
                found += self._across[where].matching(group.labels)
        return tuple(found)

    def _note(self, group: Group[Pod], sets: tuple[PeerSet, ...]) -> None:
        if sets:
            self._belongs[group] = sets
        else:
            self._belongs.pop(group, None)
