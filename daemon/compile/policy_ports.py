"""What pods call their ports: shared sets of where a name leads, one number or another by pod. Pure.

A name is resolved at the destination, whoever may be the peer: for egress at any pod of the cluster, for
ingress at the pods of this node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.compile.policy_rules import PortScope
from daemon.compile.policy_sets import SharedSets
from datapath.policy import Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from daemon.cluster.model import Pod


class PortSets:
    """The named ports in use.

    Attributes:
        sets: the sets in use, and what of them has changed.
    """

    def __init__(self, node: str) -> None:
        """`node` is this node's name."""
        self.sets: SharedSets[PortScope, Target] = SharedSets()
        self._node = node
        self._names: dict[PortScope, str] = {}

    def acquire(self, name: str, scope: PortScope, pods: Iterable[Pod]) -> None:
        """Use a set; if it is new it is filled from all pods that have addresses."""
        new = self.sets.acquire(name, scope)
        if new is None:
            return
        self._names[scope] = name
        for pod in pods:
            if pod.ports and (not scope.here or pod.node == self._node):
                self.sets.add(new, _targets(pod, scope))

    def release(self, name: str) -> None:
        """Use a set no more; the last one takes it away."""
        gone = self.sets.release(name)
        if gone is not None:
            del self._names[gone.scope]

    def put_pod(self, before: Pod | None, after: Pod | None) -> None:
        """Take a pod, which was `before`; None where there was, or is, none with addresses."""
        if not self._names:
            return
        if before is not None and after is not None:
            same = before.ips == after.ips and before.ports == after.ports and before.node == after.node
            if same:
                return
        if after is not None:
            for scope in self._scopes(after):
                self.sets.add(self.sets.by_name[self._names[scope]], _targets(after, scope))
        if before is not None:
            for scope in self._scopes(before):
                self.sets.remove(self.sets.by_name[self._names[scope]], _targets(before, scope))

    def _scopes(self, pod: Pod) -> Iterator[PortScope]:
        """Yield the scopes in use that a pod has a port for; names and protocols are unique in a pod."""
        for port in pod.ports:
            for here in (False, True) if pod.node == self._node else (False,):
                scope = PortScope(port.name, port.protocol, here)
                if scope in self._names:
                    yield scope


def _targets(pod: Pod, scope: PortScope) -> list[Target]:
    return [
        Target(address, port.protocol, port.number)
        for port in pod.ports
        if port.name == scope.name and port.protocol == scope.protocol
        for address in pod.ips
    ]
