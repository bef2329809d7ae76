"""Which pod has an address, for people: of this node, and of others as far as they are followed.

Never for decisions: the names of other nodes' pods may be some seconds old.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from daemon.cluster.model import Pod
    from daemon.compile.policy import Policies

FRESH_SECONDS = 5.0
"""How long the index of other nodes' pods is used: making it costs milliseconds with ten thousand of them."""


class PodNames:
    """Names by address."""

    def __init__(
        self,
        model: Policies,
        remote_pods: Mapping[str, Pod],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._remote_pods = remote_pods
        self._clock = clock
        self._index: dict[bytes, str] = {}
        self._made = float("-inf")

    def name(self, address: bytes) -> str:
        """Return NAMESPACE/NAME of the pod with this address; "" where none is known."""
        subject = self._model.subject(address)
        if subject is not None:
            return subject.pod
        if self._clock() - self._made > FRESH_SECONDS:
            self._index = {
                each: name
                for name, pod in self._remote_pods.items()
                if not pod.finished and not pod.host_network
                for each in pod.ips
            }
            self._made = self._clock()
        return self._index.get(address, "")
