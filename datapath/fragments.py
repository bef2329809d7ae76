"""The desired state as the union of all fragments; one fragment's change costs what that change is.

Pure and single-threaded: the writer's thread owns the one instance. What is desired depends on the fragments
that are there, never on the order in which they came: of two that claim one key, the smaller fragment key
wins, and when it goes the other steps in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from datapath.desired import Fragment, object_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from datapath.desired import FragmentKey, KernelObject, ObjectKey, SetKey
    from datapath.nft.rules import Table

K = TypeVar("K")
V = TypeVar("V")

_NOTHING = Fragment()


class Claims(Generic[K, V]):
    """Values by key, each claimed by one or more owners; `values` holds the winner's."""

    def __init__(self) -> None:
        self.values: dict[K, V] = {}
        self._owners: dict[K, FragmentKey] = {}
        self._contested: dict[K, dict[FragmentKey, V]] = {}

    def put(self, owner: FragmentKey, key: K, value: V) -> None:
        """Claim `key` for `owner`, replacing its earlier claim."""
        holder = self._owners.setdefault(key, owner)
        if (holder is owner or holder == owner) and key not in self._contested:
            self.values[key] = value
            return
        claims = self._contested.setdefault(key, {})
        if not claims:
            claims[holder] = self.values[key]
        claims[owner] = value
        self._elect(key, claims)

    def put_all(self, owner: FragmentKey, values: Iterable[tuple[K, V]]) -> None:
        """Claim several keys, each as `put` does."""
        owners, held = self._owners, self.values
        for key, value in values:
            if key in owners:
                self.put(owner, key, value)
            else:
                owners[key] = owner
                held[key] = value

    def drop(self, owner: FragmentKey, key: K) -> None:
        """Give up the claim of `owner`; the next one in line gets the key."""
        claims = self._contested.get(key)
        if claims is not None:
            claims.pop(owner, None)
            self._elect(key, claims)
        elif self._owners.get(key) == owner:
            del self._owners[key], self.values[key]

    def contested(self) -> Iterator[tuple[K, tuple[FragmentKey, ...]]]:
        """Yield each key that several owners claim, with the owners, the winner first."""
        for key, claims in self._contested.items():
            yield key, tuple(sorted(claims))

    def _elect(self, key: K, claims: Mapping[FragmentKey, V]) -> None:
        winner = min(claims)
        self._owners[key] = winner
        self.values[key] = claims[winner]
        if len(claims) == 1:
            del self._contested[key]


@dataclass(slots=True)
class Touched:
    """What may differ from before: keys of objects, keys of elements by set, names of tables."""

    objects: set[ObjectKey] = field(default_factory=set)
    elements: dict[SetKey, set[bytes]] = field(default_factory=dict)
    tables: set[tuple[int, str]] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.objects or self.elements or self.tables)

    def add(self, other: Touched) -> None:
        """Include what another change touched."""
        self.objects |= other.objects
        self.tables |= other.tables
        for key, elements in other.elements.items():
            self.elements.setdefault(key, set()).update(elements)

    def clear(self) -> None:
        """Forget everything: it was dealt with."""
        self.objects.clear()
        self.elements.clear()
        self.tables.clear()


class Fragments:
    """All fragments by key, and their union by kind."""

    def __init__(self) -> None:
        self._fragments: dict[FragmentKey, Fragment] = {}
        self._objects: Claims[ObjectKey, KernelObject] = Claims()
        self._tables: Claims[tuple[int, str], Table] = Claims()
        self._sets: dict[SetKey, Claims[bytes, bytes]] = {}

    def __len__(self) -> int:
        return len(self._fragments)

    def __contains__(self, key: FragmentKey) -> bool:
        return key in self._fragments

    def get(self, key: FragmentKey) -> Fragment | None:
        """Return a fragment as it was given."""
        return self._fragments.get(key)

    def items(self) -> Iterator[tuple[FragmentKey, Fragment]]:
        """Yield every fragment with its key."""
        yield from self._fragments.items()

    @property
    def objects(self) -> Mapping[ObjectKey, KernelObject]:
        """All desired objects."""
        return self._objects.values

    @property
    def tables(self) -> Mapping[tuple[int, str], Table]:
        """All desired tables by family and name."""
        return self._tables.values

    def elements(self, key: SetKey) -> Mapping[bytes, bytes]:
        """Return the desired elements of one set."""
        claims = self._sets.get(key)
        return claims.values if claims is not None else {}

    def sets(self) -> dict[SetKey, Mapping[bytes, bytes]]:
        """Return the desired elements of every set that any fragment ever named."""
        return {key: claims.values for key, claims in self._sets.items()}

    def contested(self) -> tuple[tuple[ObjectKey, tuple[FragmentKey, ...]], ...]:
        """Return objects that several fragments claim, with those who do, the winner first."""
        return tuple(self._objects.contested())

    def replace(self, key: FragmentKey, fragment: Fragment | None, touched: Touched | None = None) -> Touched:
        """Put, change or (None) remove one fragment; returns what that touched, added to `touched`."""
        if touched is None:
            touched = Touched()
        old = self._fragments.get(key, _NOTHING)
        new = fragment if fragment is not None else _NOTHING
        if fragment is None:
            self._fragments.pop(key, None)
        else:
            self._fragments[key] = fragment
        if old is _NOTHING:
            self._put_new(key, new, touched)
        elif old is not new and old != new:
            if old.objects != new.objects:
                self._replace_objects(key, old, new, touched)
            if old.elements != new.elements:
                self._replace_elements(key, old, new, touched)
            if old.tables != new.tables:
                self._replace_tables(key, old, new, touched)
        return touched

    def _put_new(self, key: FragmentKey, new: Fragment, touched: Touched) -> None:
        """Put what nobody had under this key before: as `_replace_*`, with nothing to compare."""
        names: list[ObjectKey] = [(each.rank, each.key) for each in new.objects]
        self._objects.put_all(key, zip(names, new.objects, strict=True))
        touched.objects.update(names)
        after = {(*each.table, each.name): each.elements for each in new.elements}
        for name, elements in after.items():
            if name not in self._sets:
                self._sets[name] = Claims()
            self._sets[name].put_all(key, elements.items())
            if name in touched.elements:
                touched.elements[name].update(elements)
            elif elements:
                touched.elements[name] = set(elements)
        if new.tables:
            self._replace_tables(key, _NOTHING, new, touched)

    def _replace_objects(self, key: FragmentKey, old: Fragment, new: Fragment, touched: Touched) -> None:
        before = {object_key(value): value for value in old.objects}
        put, touch = self._objects.put, touched.objects.add
        for value in new.objects:
            name: ObjectKey = (value.rank, value.key)
            if not before or before.pop(name, None) != value:
                put(key, name, value)
                touch(name)
        for name in before:
            self._objects.drop(key, name)
            touch(name)

    def _replace_elements(self, key: FragmentKey, old: Fragment, new: Fragment, touched: Touched) -> None:
        before = {value.key: value.elements for value in old.elements}
        after = {value.key: value.elements for value in new.elements}
        for name in before.keys() | after.keys():
            was, wanted = before.get(name, {}), after.get(name, {})
            claims = self._sets.setdefault(name, Claims())
            # Differences of keys, not a walk: sets have thousands of elements and few of them change.
            gone = was.keys() - wanted.keys()
            put = wanted.keys() - was.keys()
            if any(wanted.values()) or any(was.values()):
                put.update([each for each in wanted.keys() & was.keys() if wanted[each] != was[each]])
            for element in put:
                claims.put(key, element, wanted[element])
            for element in gone:
                claims.drop(key, element)
            if put or gone:
                touched.elements.setdefault(name, set()).update(gone, put)

    def _replace_tables(self, key: FragmentKey, old: Fragment, new: Fragment, touched: Touched) -> None:
        before = {(table.family, table.name): table for table in old.tables}
        for table in new.tables:
            name = (table.family, table.name)
            if before.pop(name, None) != table:
                self._tables.put(key, name, table)
                touched.tables.add(name)
        for name in before:
            self._tables.drop(key, name)
            touched.tables.add(name)
