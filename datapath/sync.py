"""Brings the kernel in line with the desired state, in bounded pieces, and remembers what the kernel holds.

Owns the sync state: desired, known, what is dirty, what failed. All of it lives on the writer's thread. There
is one way for everything: what may differ is dirty, dirty keys are compared and the steps executed. A change
makes its keys dirty, a reading makes everything dirty that is not as desired.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from datapath.describe import Difference, describe, differences, kind
from datapath.desired import LINK, PodLink, Sysctl, VxlanLink, object_key
from datapath.diff import Action, Step, diff, link_of, ordered
from datapath.execute import execute
from datapath.fragments import Fragments, Touched
from datapath.observe import Observed, Observer
from datapath.ruleset import RulesetSync

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from datapath.desired import Fragment, FragmentKey, KernelObject, ObjectKey
    from datapath.errors import DatapathError
    from datapath.netlink.transport import Socket
    from datapath.nft.connection import Nft

CHUNK = 128
"""Steps that are executed in one piece: 2 to 3 ms."""
KEYS = 2000
"""Keys that are compared in one piece: 2 to 3 ms."""
FRAGMENTS = 500
"""Fragments that are taken into the desired state in one piece: 2 ms."""
NFTABLES = "nftables"
"""Among what the kernel refuses: some transaction of tables and elements."""
_REREADS = 2
_NFT_WRONG = {"add": "missing", "replace": "changed", "delete": "stale"}


@dataclass(slots=True)
class Round:
    """What was done since the last `take_round`."""

    steps: int = 0
    drift: list[Difference] = field(default_factory=list)
    readings: int = 0


class Sync:
    """The sync state of one network namespace. Used by one thread, which is in that namespace.

    Args:
        route: a socket of the namespace.
        nft: its nftables.
        doomed: called when there are links for the reaper.
    """

    def __init__(self, route: Socket, nft: Nft, doomed: Callable[[], None] = lambda: None) -> None:
        self._doomed = doomed
        self.route = route
        self.desired = Fragments()
        self.known: dict[ObjectKey, KernelObject] = {}
        self.indexes: dict[str, int] = {}
        self.failed: dict[ObjectKey, DatapathError] = {}
        self.blocked: set[ObjectKey] = set()
        self.complete = False
        """Whether all that is wanted is in `desired`; before that nftables is left as it is."""
        self.ruleset = RulesetSync(nft, self.desired)
        self._observer = Observer(route)
        self._incoming: dict[FragmentKey, Fragment | None] = {}
        self._dirty: set[ObjectKey] = set()
        self._slices: deque[list[ObjectKey]] = deque()
        self._steps: deque[Step] = deque()
        self._overtaken = False
        self._reading: Iterator[None] | None = None
        self._observed = Observed()
        self._journal: set[ObjectKey] = set()
        self._prune = False
        self._read_once = False
        self._rereads = 0
        self._stale = False
        self._round = Round()

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do but what failed."""
        busy = self._reading or self._incoming or self._dirty or self._slices or self._steps
        return not busy and self._ruleset_idle

    @property
    def _ruleset_idle(self) -> bool:
        return not self.complete or self.ruleset.idle

    @property
    def waiting(self) -> int:
        """Objects that wait for being written."""
        return len(self._incoming) + len(self._dirty) + sum(map(len, self._slices)) + len(self._steps)

    @property
    def failures(self) -> dict[str, str]:
        """What the kernel refused, by the object in words."""
        found = {}
        for key, error in self.failed.items():
            value = self.desired.objects.get(key) or self.known.get(key)
            if value is not None:
                found[f"{kind(value)} {describe(value)}"] = str(error)
        if self.ruleset.failure is not None:
            found[NFTABLES] = str(self.ruleset.failure)
        return found

    def take_round(self) -> Round:
        """Return what was done since this was last called."""
        done, self._round = self._round, Round()
        return done

    def change(self, changes: Mapping[FragmentKey, Fragment | None]) -> None:
        """Take fragments into the desired state, by and by; what they touch becomes dirty."""
        if changes:
            self._rereads = _REREADS
            self._incoming.update(changes)

    def fragments(self) -> dict[FragmentKey, Fragment]:
        """Return all fragments, those that are still to be taken in included."""
        latest: dict[FragmentKey, Fragment | None] = {**dict(self.desired.items()), **self._incoming}
        return {key: fragment for key, fragment in latest.items() if fragment is not None}

    def wants(self, keys: Iterable[ObjectKey]) -> bool:
        """Whether any of these is desired: a notification about others is none of ours."""
        return any(key in self.desired.objects for key in keys)

    def record(self, changes: Mapping[FragmentKey, Fragment | None]) -> Touched:
        """Take fragments whose objects the caller writes itself; returns what that touched.

        Elements are left to the caller.
        """
        touched = Touched()
        for key, fragment in changes.items():
            if self._incoming:
                self._incoming.pop(key, None)
            self.desired.replace(key, fragment, touched)
        desired, known = self.desired.objects, self.known
        for name in touched.objects:
            if name in desired:
                known[name] = desired[name]
            else:
                known.pop(name, None)
        self._dirty -= touched.objects
        self._overtaken = True
        self._journal |= touched.objects
        return touched

    def read_again(self, *, prune: bool) -> None:
        """Start a reading of the kernel; what differs from the desired state becomes dirty.

        With `prune`, objects of ours that nobody desires are deleted.
        """
        if self.ruleset.failure is not None or self.ruleset.disturbed():
            self.ruleset.invalidate(foreign=True)
        self._observed = Observed()
        self._journal = set()
        self._prune = prune
        self._reading = self._observer.pieces(self._observed, self._settings())

    def step(self) -> None:
        """Do one bounded piece of work.

        Raises:
            DatapathError: a reading failed; it has to be begun again.
        """
        if self._incoming:
            self._take_incoming()
        elif self._reading is not None:
            self._read_piece()
        elif not self._read_once:
            self.read_again(prune=False)
        elif not self._ruleset_idle:
            self.ruleset.step()
            if self.ruleset.changes:
                self._note_ruleset()
        elif self._steps:
            self._execute()
        elif self._slices:
            self._steps.extend(diff(self.desired.objects, self.known, self._slices.popleft()))
            self._overtaken = False
        elif self._dirty:
            self._order_dirty()
        if self.idle and self._stale:
            self._stale = False
            if self._rereads > 0:
                self._rereads -= 1
                self.read_again(prune=self._prune)

    def difference(self) -> tuple[Difference, ...]:
        """Read everything and return what is different from what is desired; changes nothing."""
        observed = self._observer.read(self._settings())
        steps = diff(self.desired.objects, observed.objects)
        steps += [Step(Action.DELETE, object_key(value), value, None) for value in observed.extras]
        found = [
            Difference("nft", _NFT_WRONG[action], subject) for action, subject in self.ruleset.difference()
        ]
        return (*differences(steps), *found)

    def _settings(self) -> list[Sysctl]:
        return [value for value in self.desired.objects.values() if isinstance(value, Sysctl)]

    def _take_incoming(self) -> None:
        touched = Touched()
        for key in list(islice(self._incoming, FRAGMENTS)):
            self.desired.replace(key, self._incoming.pop(key), touched)
        self._dirty |= touched.objects
        self._overtaken = True
        self.ruleset.touch(touched)

    def _order_dirty(self) -> None:
        """Cut what is dirty into slices, in the order of `diff`, so that no diff takes long.

        All links are in one slice: what goes with a link that is made anew has to be known to the same diff.
        """
        dirty, self._dirty = self._dirty, set()
        keys = ordered(dirty, self.desired.objects)
        if any(key[0] == LINK for key in keys):
            self._slices.append([key for key in keys if key[0] <= LINK and key in self.desired.objects])
            keys = [key for key in keys if key[0] > LINK or key not in self.desired.objects]
        self._slices.extend(keys[start : start + KEYS] for start in range(0, len(keys), KEYS))

    def _read_piece(self) -> None:
        assert self._reading is not None
        try:
            next(self._reading)
        except StopIteration:
            self._reading = None
            self._take_reading()
        except BaseException:
            self._reading = None
            raise

    def _take_reading(self) -> None:
        observed, before = self._observed, self.known
        # What was written between two pieces of the reading may be missing in it, or be in it though it is
        # gone.
        for key in self._journal:
            if key in before:
                observed.objects[key] = before[key]
                if key[0] == LINK and str(key[1]) in self.indexes:
                    observed.indexes.setdefault(str(key[1]), self.indexes[str(key[1])])
            else:
                observed.objects.pop(key, None)
        self._journal = set()
        self.known, self.indexes = observed.objects, observed.indexes
        self._delete_extras(observed.extras)
        first, self._read_once = not self._read_once, True
        pending = self._dirty | self.failed.keys() | self.blocked
        pending.update(step.key for step in self._steps)
        pending.update(*self._slices)
        self.failed.clear()
        self.blocked.clear()
        self._steps.clear()
        self._slices.clear()
        desired, known = self.desired.objects, self.known
        differing = {key for key, value in desired.items() if known.get(key) != value}
        if self._prune:
            differing |= known.keys() - desired.keys()
        else:
            differing |= pending & known.keys()
        if not first:
            steps = [step for step in diff(desired, known, differing) if step.key not in pending]
            self._round.drift += differences(steps)
        self._round.readings += 1
        self._dirty = differing | pending

    def _delete_extras(self, extras: list[KernelObject]) -> None:
        """Delete all objects that share a key, so that the desired one, if any, is written afresh."""
        doomed = []
        for value in extras:
            key = object_key(value)
            if not self._prune and key not in self.desired.objects:
                continue
            shared = self.known.pop(key, None)
            doomed += [Step(Action.DELETE, key, each, None) for each in (shared, value) if each is not None]
        if doomed:
            execute(self.route, doomed, self.indexes)

    def _execute(self) -> None:
        """Execute the next steps, but for those that the desired state has overtaken."""
        known = self.known
        steps = [self._steps.popleft() for _ in range(min(CHUNK, len(self._steps)))]
        if self._overtaken:
            steps = self._still_wanted(steps)
        outcome = execute(self.route, steps, self.indexes)
        for _, key, old, new in outcome.done:
            if new is not None:
                known[key] = new
                continue
            known.pop(key, None)
            if isinstance(old, VxlanLink):
                self._forget_link(old.name)
            elif isinstance(old, PodLink):
                self._doomed()
        if self.failed:
            for step in outcome.done:
                self.failed.pop(step.key, None)
        self.failed.update(outcome.failed)
        self.blocked |= outcome.blocked
        self._stale |= outcome.stale
        self._round.steps += len(outcome.done)

    def _still_wanted(self, steps: list[Step]) -> list[Step]:
        """Return the steps that still lead to what is desired; the others' keys are dirty again."""
        desired = self.desired.objects
        kept = []
        for step in steps:
            wanted = desired.get(step.key)
            if wanted is step.new or wanted == step.new or _is_recreation(step, wanted):
                kept.append(step)
            else:
                self._dirty.add(step.key)
        return kept

    def _forget_link(self, name: str) -> None:
        """Forget what the kernel dropped together with a link."""
        known = self.known
        for key in [key for key, value in known.items() if link_of(value) == name]:
            del known[key]

    def _note_ruleset(self) -> None:
        changes, self.ruleset.changes = self.ruleset.changes, []
        self._round.drift += [Difference("nft", _NFT_WRONG[action], subject) for action, subject in changes]


def _is_recreation(step: Step, wanted: KernelObject | None) -> bool:
    """Whether a step deletes a link that is to be made anew."""
    return step.action is Action.DELETE and step.key[0] == LINK and wanted is not None
