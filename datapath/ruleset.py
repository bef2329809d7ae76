"""Keeps nftables at the desired tables and elements: what is known of it, what is to be committed.

Used by the writer's thread. Element changes are committed as such; everything else (first sight, structure, a
foreign change, a refusal) is the same full path: read, plan, commit.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from datapath.errors import DatapathError
from datapath.nft.encode import add_elements
from datapath.nft.plan import SetChange, change_elements, plan, restructure
from datapath.nft.rules import Ruleset

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datapath.desired import SetElements, SetKey
    from datapath.fragments import Fragments, Touched
    from datapath.netlink.transport import Message
    from datapath.nft.connection import Nft
    from datapath.nft.plan import Change, Transaction
    from datapath.nft.rules import Set, Table

ACTION = "nftables could not be changed"


class RulesetSync:
    """nftables of one namespace on its way to what `desired` says."""

    def __init__(self, nft: Nft, desired: Fragments) -> None:
        self._nft = nft
        self._desired = desired
        self._elements: dict[SetKey, dict[bytes, bytes]] = {}
        self._tables: dict[tuple[int, str], Table] = {}
        self._declared: dict[SetKey, tuple[Table, Set]] = {}
        self._generation = -1
        self._unread = True
        self._foreign = False
        self._again = False
        self._planned_in_full = False
        self._pending: deque[Transaction] = deque()
        self._touched: dict[SetKey, set[bytes]] = {}
        self._planned: Mapping[SetKey, set[bytes]] = {}
        self._restructured: set[tuple[int, str]] = set()
        self.failure: DatapathError | None = None
        """Why the last attempt did not succeed; it is made again when somebody calls `invalidate`."""
        self.changes: list[Change] = []
        """What somebody else changed, taken by whoever reports it."""

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do, be it for a failure."""
        busy = self._unread or self._pending or self._restructured or self._touched
        return self.failure is not None or not busy

    def touch(self, touched: Touched) -> None:
        """Say what may differ from what is committed."""
        self._restructured |= touched.tables
        for key, elements in touched.elements.items():
            self._touched.setdefault(key, set()).update(elements)

    def invalidate(self, *, foreign: bool = False) -> None:
        """Have everything read and compared again; differences are somebody else's doing if `foreign`."""
        self._unread = True
        self._foreign |= foreign
        self.failure = None

    def disturbed(self) -> bool:
        """Whether somebody else changed nftables since our last commit. Raises NetlinkError."""
        return not self._unread and not self._pending and self._nft.generation() != self._generation

    def step(self) -> None:
        """Do one bounded piece of work; failures are kept in `failure`."""
        try:
            if self._pending:
                self._commit(self._pending.popleft().messages)
            elif self._unread:
                self._plan_all()
            elif self._restructured:
                self._plan_structure()
            elif self._touched:
                self._planned, self._touched = self._touched, {}
                self._plan_elements(self._planned)
                if len(self._pending) == 1:  # the rule: one change of one service
                    self._commit(self._pending.popleft().messages)
            if self._again and not self._pending:
                self._again, self._unread = False, True
        except DatapathError as error:
            self._pending.clear()
            # A change planned from what is known may fail because that is wrong: the next step reads. One
            # planned from a reading is refused for what it is.
            if self._unread or self._planned_in_full:
                self.failure = error
            self._unread = True

    def apply_now(self, touched: Touched) -> None:
        """Bring elements in line ahead of everything that waits.

        Before the first reading there is nothing to do: it includes whatever is desired by then.

        Raises:
            DatapathError: the kernel refused, twice, the second time after all was read again.
        """
        if not self._tables:
            return
        waiting, self._pending = self._pending, deque()
        in_full = self._planned_in_full
        try:
            if not self._unread:
                self._restructured |= touched.tables
                if self._restructured:
                    self._plan_structure()
                self._plan_elements(touched.elements)
                self._commit_pending()
        except DatapathError:
            self._unread = True
        if self._unread:
            self._commit_all()
        elif waiting:
            # A plan of everything was made without what was just done, so all is read again after it; also
            # after a plan of the same elements, which may undo it.
            self._pending, self._planned_in_full = waiting, in_full
            self._again |= in_full or self._overlap(touched.elements)

    def add_now(self, added: Sequence[SetElements]) -> bool:
        """Add elements that are not desired yet, ahead of everything that waits; to be desired right after.

        Returns:
            False where more has to be looked at than these, or the kernel refused them: nothing was changed,
            and `apply_now` is to be used.
        """
        if not self._tables or self._unread or self._pending or self._restructured:
            return False
        messages: list[Message] = []
        for each in added:
            place = self._declared.get(each.key) or self._find(each.key)
            if place is None or not self._elements.get(each.key, {}).keys().isdisjoint(each.elements):
                return False
            messages += add_elements(*place, each.elements)
        try:
            self._commit(messages)
        except DatapathError:
            self._unread = True
            return False
        for each in added:
            self._elements.setdefault(each.key, {}).update(each.elements)
        return True

    def attempt(self, trial: Transaction) -> DatapathError | None:
        """Return what the kernel has against a transaction that leaves nothing behind (`nft.trial`)."""
        try:
            self._commit(trial.messages)
        except DatapathError as error:
            return error
        return None

    def difference(self) -> tuple[Change, ...]:
        """Return what is different now, reading everything; changes nothing. Raises DatapathError."""
        found = plan(self._ruleset(), self._nft.read())
        return tuple(change for transaction in found for change in transaction.changes)

    def elements(self, key: SetKey) -> Mapping[bytes, bytes]:
        """Return the elements that the kernel holds in one set of ours. Raises DatapathError."""
        return self._nft.elements(key)

    def _plan_all(self) -> None:
        observed = self._nft.read()
        wanted = self._ruleset()
        self._generation = observed.generation
        self._pending.extend(plan(wanted, observed))
        if self._foreign:
            self.changes += [change for transaction in self._pending for change in transaction.changes]
        self._foreign = False
        self._tables = {table.key: table for table in wanted.tables}
        self._declared.clear()
        declared = {(*table.key, each.name) for table in wanted.tables for each in table.sets}
        self._elements = {key: dict(elements) for key, elements in wanted.elements.items() if key in declared}
        self._touched.clear()
        self._restructured.clear()
        self._unread = False
        self._planned_in_full = True

    def _plan_structure(self) -> None:
        """Plan changes of tables from what is known of them; what that can't do, a reading does."""
        self._planned_in_full, self._planned = False, {}
        names, self._restructured = self._restructured, set()
        self._declared.clear()
        for name in names:
            old, new = self._tables.pop(name, None), self._desired.tables.get(name)
            planned = restructure(old, new)
            if planned is None:
                self.invalidate()
                return
            self._pending.extend(planned)
            if new is not None:
                self._tables[name] = new
            self._follow_sets(old, new)

    def _follow_sets(self, old: Table | None, new: Table | None) -> None:
        """Forget the elements of sets that go with a change of structure; have those of new ones written."""
        before = {each.name for each in old.sets} if old is not None else set()
        after = {each.name for each in new.sets} if new is not None else set()
        table = old or new
        if table is not None:
            for name in before - after:
                self._elements.pop((*table.key, name), None)
        for name in after - before:
            assert new is not None
            key = (*new.key, name)
            self._touched.setdefault(key, set()).update(self._desired.elements(key))

    def _plan_elements(self, touched: Mapping[SetKey, set[bytes]]) -> None:
        self._planned_in_full = False
        changes: list[SetChange] = []
        for key, elements in touched.items():
            place = self._declared.get(key) or self._find(key)
            if place is None:
                continue  # its elements are written when it comes
            if key not in self._elements:
                self._elements[key] = {}
            known, wanted = self._elements[key], self._desired.elements(key)
            before: dict[bytes, bytes] = {}
            after: dict[bytes, bytes] = {}
            for each in elements:
                if each in known:
                    before[each] = known.pop(each)
                if each in wanted:
                    after[each] = wanted[each]
            changes += (SetChange(*place, before, after),)
            known |= after
        self._pending.extend(change_elements(changes))

    def _find(self, key: SetKey) -> tuple[Table, Set] | None:
        """Find the declaration of a set in the tables as they are now; it is remembered until they change."""
        table = self._tables.get(key[:2])
        for each in table.sets if table is not None else ():
            if each.name == key[2]:
                assert table is not None
                self._declared[key] = found = table, each
                return found
        return None

    def _overlap(self, touched: Mapping[SetKey, set[bytes]]) -> bool:
        """Whether any of these elements is in the latest plan of touched ones."""
        return any(not self._planned.get(key, set()).isdisjoint(found) for key, found in touched.items())

    def _commit_all(self) -> None:
        """Read, plan and commit everything at once."""
        self._pending.clear()
        try:
            self._plan_all()
            self._commit_pending()
        except DatapathError:
            self._pending.clear()
            self._unread = True
            raise

    def _commit_pending(self) -> None:
        while self._pending:
            self._commit(self._pending.popleft().messages)

    def _commit(self, messages: Sequence[Message]) -> None:
        self._nft.commit(messages, ACTION)
        # Counted, not asked for: a foreign change in between shows as another generation.
        self._generation = (self._generation + 1) & 0xFFFFFFFF

    def _ruleset(self) -> Ruleset:
        return Ruleset(tuple(self._desired.tables.values()), self._desired.sets())
