"""Labels and selectors as values, and pods grouped so that a selector is evaluated once per group.

Pure. Label sets are interned: the pods of one workload share one object, equal sets are the same object, and
a set goes when its last pod goes. Whatever depends on labels is therefore worked out per namespace and label
set (a `Group`), of which a cluster has some hundreds where it has thousands of pods.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from collections.abc import Hashable, ItemsView, Iterator, Mapping

Item = TypeVar("Item")
Member = TypeVar("Member")


class LabelSet:
    """The labels of a pod or namespace; made by `labels` only, so that equal ones are identical."""

    __slots__ = ("__weakref__", "_pairs")

    def __init__(self, pairs: Mapping[str, str]) -> None:
        self._pairs = dict(pairs)

    def get(self, key: str) -> str | None:
        """Return the value of a label; None where it is absent."""
        return self._pairs.get(key)

    def items(self) -> ItemsView[str, str]:
        """Return all labels."""
        return self._pairs.items()

    def __len__(self) -> int:
        return len(self._pairs)

    def __repr__(self) -> str:
        return f"LabelSet({self._pairs!r})"


_interned: WeakValueDictionary[tuple[str, ...], LabelSet] = WeakValueDictionary()


def labels(pairs: Mapping[str, str]) -> LabelSet:
    """Return the one LabelSet with these labels."""
    flat = tuple([sys.intern(text) for key in sorted(pairs) for text in (key, pairs[key])])
    found = _interned.get(flat)
    if found is None:
        found = _interned[flat] = LabelSet(dict(zip(flat[::2], flat[1::2], strict=True)))
    return found


class Operator(Enum):
    """metav1.LabelSelectorOperator; an equality of matchLabels is IN with one value."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class Requirement(NamedTuple):
    """One condition; `values` are sorted, and () for EXISTS and DOES_NOT_EXIST."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The condition as kubectl takes it."""
        if self.operator is Operator.EXISTS:
            return self.key
        if self.operator is Operator.DOES_NOT_EXIST:
            return f"!{self.key}"
        if self.operator is Operator.IN and len(self.values) == 1:
            return f"{self.key}={self.values[0]}"
        return f"{self.key} {'in' if self.operator is Operator.IN else 'notin'} ({','.join(self.values)})"


@dataclass(frozen=True, slots=True)
class Selector:
    """A metav1.LabelSelector: all requirements hold; with none it selects everything.

    Made by `selector`, which sorts the requirements: selectors that are written differently and mean the same
    conditions are equal.
    """

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: LabelSet) -> bool:
        """Return whether it selects an object with these labels."""
        for key, operator, values in self.requirements:
            value = labels.get(key)
            if operator is Operator.IN:
                if value not in values:
                    return False
            elif operator is Operator.NOT_IN:
                # An absent label is none of the values (metav1.LabelSelectorRequirement by way of
                # labels.Requirement.Matches).
                if value in values:
                    return False
            elif (value is None) is (operator is Operator.EXISTS):
                return False
        return True

    @property
    def anchor(self) -> tuple[str, str] | None:
        """A label that everything selected has, with its value; None where there is no such one."""
        for key, operator, values in self.requirements:
            if operator is Operator.IN and len(values) == 1:
                return key, values[0]
        return None

    @property
    def text(self) -> str:
        """The selector as kubectl takes it; "" for everything."""
        return ",".join([each.text for each in self.requirements])


EVERYTHING = Selector()


def selector(*requirements: Requirement) -> Selector:
    """Return the Selector of these requirements, in the one order that it has."""
    return Selector(tuple(sorted(set(requirements), key=_order))) if requirements else EVERYTHING


def _order(requirement: Requirement) -> tuple[str, str, tuple[str, ...]]:
    return requirement.key, requirement.operator.value, requirement.values


class Selectors(Generic[Item]):
    """Items by selector, found by the labels that they select: most are not even looked at.

    An item is filed under the label that its selector demands, where it demands one; looking up costs the
    number of labels, plus the items filed under one of them, plus those under none.
    """

    def __init__(self) -> None:
        self._anchored: dict[tuple[str, str], dict[Item, Selector]] = {}
        self._loose: dict[Item, Selector] = {}

    def __bool__(self) -> bool:
        return bool(self._anchored or self._loose)

    def add(self, item: Item, selector: Selector) -> None:
        """File an item, which must not be there yet."""
        anchor = selector.anchor
        items = self._loose if anchor is None else self._anchored.setdefault(anchor, {})
        items[item] = selector

    def discard(self, item: Item, selector: Selector) -> None:
        """Take out an item that was filed with this selector, if it is there."""
        anchor = selector.anchor
        if anchor is None:
            self._loose.pop(item, None)
        elif anchor in self._anchored:
            self._anchored[anchor].pop(item, None)
            if not self._anchored[anchor]:
                del self._anchored[anchor]

    def matching(self, labels: LabelSet) -> Iterator[Item]:
        """Yield the items whose selectors select these labels."""
        for item, selector in self._loose.items():
            if selector.matches(labels):
                yield item
        if self._anchored:
            for pair in labels.items():
                items = self._anchored.get(pair)
                if items:
                    for item, selector in items.items():
                        if selector.matches(labels):
                            yield item


@dataclass(slots=True, eq=False)
class Group(Generic[Member]):
    """The members of one namespace with one label set, by key."""

    namespace: str
    labels: LabelSet
    members: dict[Hashable, Member] = field(default_factory=dict)


class Groups(Generic[Member]):
    """Members by namespace and label set. A group is there as long as it has a member."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[LabelSet, Group[Member]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def get(self, namespace: str, labels: LabelSet) -> Group[Member] | None:
        """Return a group, if it has members."""
        return self._groups.get(namespace, {}).get(labels)

    def add(self, namespace: str, labels: LabelSet, key: Hashable, member: Member) -> Group[Member]:
        """Put a member into its group, replacing one of the same key there."""
        groups = self._groups.setdefault(namespace, {})
        group = groups.get(labels)
        if group is None:
            group = groups[labels] = Group(namespace, labels)
        group.members[key] = member
        return group

    def remove(self, namespace: str, labels: LabelSet, key: Hashable) -> None:
        """Take a member out of its group. Raises KeyError where it is in none."""
        groups = self._groups[namespace]
        group = groups[labels]
        del group.members[key]
        if not group.members:
            del groups[labels]
            if not groups:
                del self._groups[namespace]

    def of(self, namespace: str) -> Iterator[Group[Member]]:
        """Yield the groups of one namespace."""
        yield from self._groups.get(namespace, {}).values()

    def namespaces(self) -> Iterator[str]:
        """Yield the namespaces that have members."""
        yield from self._groups
