"""Batches that are alike but for some fields: laid out once by the encoders, then filled by one call each.

Owns where the fields are, and knows nothing of what they mean.
"""

from __future__ import annotations

from itertools import accumulate
from operator import itemgetter
from struct import Struct
from typing import TYPE_CHECKING

from datapath.netlink.transport import frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from datapath.netlink.transport import Message

_HEADER_BYTES = 16
_SEQUENCE_PLACE = 8
_SEQUENCE = "I"
_OTHERS = 64
"""The first stand-in for a field is bytes of its number, counted from 1; the second, of that plus this."""


class Template:
    """Messages that await the values of their fields; `number` is how many messages.

    Args:
        make: returns the messages for values of the fields. It is called here only; it must put each value
            into them as it is, or leave it out, and always at the same places.
        formats: of the fields, as in `struct`: "I" for an integer, "6s" for six bytes.
    """

    __slots__ = ("_constants", "_pack", "_pick", "number")

    def __init__(self, make: Callable[..., Sequence[Message]], formats: Sequence[str]) -> None:
        layouts = [Struct(f"={each}") for each in formats]
        messages, others = make(*_stand_ins(layouts, 1)), make(*_stand_ins(layouts, 1 + _OTHERS))
        self.number = number = len(messages)
        framed, other = frame(messages, 0, number - 1), frame(others, 0, number - 1)
        starts = accumulate((_HEADER_BYTES + len(each.payload) for each in messages[:-1]), initial=0)
        fields = [(start + _SEQUENCE_PLACE, _SEQUENCE, index) for index, start in enumerate(starts)]
        fields += [
            (place, formats[field], number + field) for place, field in _differences(framed, other, layouts)
        ]
        fields.sort()
        # What is packed are the constant parts between the fields, and the fields.
        layout, end = "=", 0
        order: list[int] = []
        constants: list[bytes] = []
        for place, form, value in fields:
            layout += f"{place - end}s{form}"
            order += [number + len(formats) + len(constants), value]
            constants.append(framed[end:place])
            end = place + Struct(f"={form}").size
        order.append(number + len(formats) + len(constants))
        constants.append(framed[end:])
        self._constants = tuple(constants)
        self._pack = Struct(f"{layout}{len(framed) - end}s").pack
        self._pick = itemgetter(*order)

    def fill(self, first: int, values: Sequence[bytes | int]) -> bytes:
        """Return the messages as they are sent, numbered from `first`; the last is acknowledged."""
        return self._pack(*self._pick((*range(first, first + self.number), *values, *self._constants)))


def _stand_ins(layouts: Sequence[Struct], first: int) -> Iterator[bytes | int]:
    for number, layout in enumerate(layouts, first):
        yield layout.unpack(bytes((number,)) * layout.size)[0]


def _differences(framed: bytes, other: bytes, layouts: Sequence[Struct]) -> Iterator[tuple[int, int]]:
    """Yield place and number of each field: only where one is do the two differ, and its bytes tell which."""
    place = 0
    while place < len(framed):
        if framed[place] == other[place]:
            place += 1
        else:
            field = framed[place] - 1
            yield place, field
            place += layouts[field].size
