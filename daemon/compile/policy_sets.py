"""Sets that rules share, each kept as long as somebody uses it, and what of them has become different. Pure.

What puts an element into a set may do so several times over (two pods with one address while one takes over
from the other): an element is counted, and stays until the last one is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Element = TypeVar("Element")
Extent = TypeVar("Extent")


@dataclass(slots=True, eq=False)
class SharedSet(Generic[Extent, Element]):
    """One set: its name, what belongs into it, by how many it is used, and its elements with their counts."""

    name: str
    scope: Extent
    users: int = 0
    elements: dict[Element, int] = field(default_factory=dict)


class SharedSets(Mapping[str, "Mapping[Element, int]"], Generic[Extent, Element]):
    """Sets by name: for readers a mapping to their elements, with the number of times that each is in.

    `touched` collects, by set, elements that may have come or gone until it is taken.
    """

    def __init__(self) -> None:
        self.by_name: dict[str, SharedSet[Extent, Element]] = {}
        self.touched: dict[str, set[Element]] = {}

    def __getitem__(self, name: str) -> Mapping[Element, int]:
        return self.by_name[name].elements

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)

    def acquire(self, name: str, scope: Extent) -> SharedSet[Extent, Element] | None:
        """Use a set once more; returns it if it is new, and so has to be filled."""
        found = self.by_name.get(name)
        new = found is None
        if found is None:
            found = self.by_name[name] = SharedSet(name, scope)
            self.touched.setdefault(name, set())
        found.users += 1
        return found if new else None

    def release(self, name: str) -> SharedSet[Extent, Element] | None:
        """Use a set once less; returns it if that was the last use, and it is there no more."""
        found = self.by_name[name]
        found.users -= 1
        if found.users:
            return None
        del self.by_name[name]
        self.touched.setdefault(name, set()).update(found.elements)
        return found

    def add(self, target: SharedSet[Extent, Element], elements: Iterable[Element]) -> None:
        """Count elements in."""
        counts = target.elements
        for each in elements:
            count = counts.get(each, 0)
            counts[each] = count + 1
            if not count:
                self.touched.setdefault(target.name, set()).add(each)

    def remove(self, target: SharedSet[Extent, Element], elements: Iterable[Element]) -> None:
        """Count elements out, which must be in."""
        counts = target.elements
        for each in elements:
            count = counts[each]
            if count > 1:
                counts[each] = count - 1
            else:
                del counts[each]
                self.touched.setdefault(target.name, set()).add(each)

    def take(self) -> dict[str, set[Element]]:
        """Return what may have changed since the last call, sets that came or went included."""
        taken, self.touched = self.touched, {}
        return taken
