"""Single figures with what they are compared with and the bounds that they must keep, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.tables import Table

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value.

    Attributes:
        what: was measured.
        ours: Weft's value.
        unit: of both values.
        against: what it is compared with; empty when with nothing.
        theirs: the value of that.
        at_least: bound of `theirs / ours`.
        at_most: bound of `ours`.
    """

    what: str
    ours: float
    unit: str
    against: str = ""
    theirs: float | None = None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times smaller ours is."""
        return None if self.theirs is None else self.theirs / self.ours

    @property
    def holds(self) -> bool | None:
        """Whether the bound is kept; None without any."""
        if self.at_least is not None:
            return self.ratio is not None and self.ratio >= self.at_least
        return None if self.at_most is None else self.ours <= self.at_most


def table(title: str, figures: Iterable[Figure], remark: str = "") -> Table:
    """Puts figures into a table, one line each."""
    return Table(
        title, ("", "Weft", "against", "theirs", "ratio", "bound", ""), tuple(map(_row, figures)), remark
    )


def _row(figure: Figure) -> tuple[str, ...]:
    bound = ""
    if figure.at_least is not None:
        bound = f">= {figure.at_least:g}"
    elif figure.at_most is not None:
        bound = f"<= {figure.at_most:g} {figure.unit}"
    return (
        figure.what,
        f"{figure.ours:.2f} {figure.unit}",
        figure.against,
        "" if figure.theirs is None else f"{figure.theirs:.2f} {figure.unit}",
        "" if figure.ratio is None else f"{figure.ratio:.1f}",
        bound,
        {None: "", True: "kept", False: "BROKEN"}[figure.holds],
    )
