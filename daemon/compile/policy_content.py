"""What a table of policies consists of, each chain and set with the number of those that use it. Pure.

What is used no longer stays until it is swept: elements in the kernel may lead there for a moment more. A
change costs what it changes, whatever number of chains there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datapath.nft.policy import PolicyChains
    from datapath.nft.rules import Chain, Set


class Content:
    """One family's chains and sets.

    Attributes:
        chains: by name, as are all.
        sets: those that chains look up, but for the table's own.
        static: the elements of sets that are named for what they hold.
        grown: whether something came that was not there, until somebody clears it.
    """

    def __init__(self) -> None:
        self.chains: dict[str, Chain] = {}
        self.sets: dict[str, Set] = {}
        self.static: dict[str, Mapping[bytes, bytes]] = {}
        self.grown = False
        self._uses: dict[str, int] = {}
        """Of chains and sets, whose names differ by how they begin."""
        self._unused: set[str] = set()

    @property
    def superfluous(self) -> bool:
        """Whether something is used no longer."""
        return bool(self._unused)

    def use(self, chain: Chain) -> None:
        """Take a chain, or take it once more."""
        if self._use(chain.name):
            self.chains[chain.name] = chain

    def use_policy(self, part: PolicyChains) -> None:
        """Take a policy's chain with the sets that it looks up."""
        self.use(part.chain)
        static = dict(part.static)
        for each in part.sets:
            if self._use(each.name):
                self.sets[each.name] = each
                if each.name in static:
                    self.static[each.name] = static[each.name]

    def leave(self, chain: Chain) -> None:
        """Use a chain once less."""
        self._leave(chain.name)

    def leave_policy(self, part: PolicyChains) -> None:
        """Use a policy's chain and its sets once less."""
        self.leave(part.chain)
        for each in part.sets:
            self._leave(each.name)

    def sweep(self) -> None:
        """Forget what is used no longer."""
        for name in self._unused:
            for held in (self.chains, self.sets, self.static):
                held.pop(name, None)
        self._unused.clear()

    def _use(self, name: str) -> bool:
        """Count a use; returns whether there is nothing of that name yet."""
        uses = self._uses.get(name, 0)
        self._uses[name] = uses + 1
        if uses:
            return False
        if name in self._unused:
            self._unused.remove(name)
            return False
        self.grown = True
        return True

    def _leave(self, name: str) -> None:
        uses = self._uses.pop(name) - 1
        if uses:
            self._uses[name] = uses
        else:
            self._unused.add(name)
