"""Reads JSON the way Go's encoding/json does, since every other plugin and libcni do.

That is: keys in any case, the last of equal ones wins, null counts as absent, a member of the wrong type is
an error. Pure; owns no meaning of any key.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeVar

from daemon.cni.errors import CniError, Code

T = TypeVar("T")
_TYPES = {str: "text", int: "a whole number", bool: "true or false", dict: "an object", list: "a list"}


class Document:
    """A JSON object; `at` says where it stands, for messages."""

    __slots__ = ("_members", "at")

    def __init__(self, members: dict[str, Any], at: str = "") -> None:
        self.at = at
        self._members = members

    def raw(self, name: str) -> Any:
        """Return a member by its name in lower case, None when it is absent or null."""
        return self._members.get(name.casefold())

    def has(self, name: str) -> bool:
        """Whether the member is there, be it null."""
        return name.casefold() in self._members

    def text(self, name: str, default: str = "") -> str:
        """Return a text member; lone surrogates, which nothing can encode, are replaced."""
        value = self._typed(name, str, default)
        return (
            value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        )

    def number(self, name: str) -> int | None:
        """Return a whole number, None when it is absent."""
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, value, int)
        return value

    def child(self, name: str) -> Document:
        """Return an object member, empty when it is absent."""
        members: dict[str, Any] = {}
        return Document(self._typed(name, dict, members), self._path(name))

    def children(self, name: str) -> list[Document]:
        """Return a list of objects."""
        path = self._path(name)
        found = []
        for index, value in enumerate(self._list(name)):
            if not isinstance(value, dict):
                raise self.wrong(f"{name}[{index}]", value, dict)
            found.append(Document(value, f"{path}[{index}]"))
        return found

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of texts."""
        values = self._list(name)
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise self.wrong(f"{name}[{index}]", value, str)
        return tuple(values)

    def names(self) -> tuple[str, ...]:
        """Return all members' names, in lower case."""
        return tuple(self._members)

    def wrong(self, name: str, value: object, wanted: type) -> CniError:
        """The error for a member of the wrong type."""
        return CniError(
            Code.DECODING_FAILURE,
            f"network configuration: {self._path(name)} must be {_TYPES[wanted]}",
            f"it is {shown(value)}",
        )

    def _typed(self, name: str, kind: type[T], default: T) -> T:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, kind):
            raise self.wrong(name, value, kind)
        return value

    def _list(self, name: str) -> list[Any]:
        empty: list[Any] = []
        return self._typed(name, list, empty)

    def _path(self, name: str) -> str:
        return f"{self.at}.{name}" if self.at else name


def read(text: bytes) -> Document:
    """Decode a JSON object.

    Raises:
        CniError: code 6, with the decoder's words.
    """
    try:
        value = _DECODER.decode(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise CniError(
            Code.DECODING_FAILURE, "the network configuration is not valid JSON", str(error)
        ) from error
    if not isinstance(value, dict):
        raise CniError(
            Code.DECODING_FAILURE, "the network configuration must be a JSON object", f"it is {shown(value)}"
        )
    return Document(value)


def shown(value: object) -> str:
    """A value as JSON, shortened."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _fold(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key.casefold(): value for key, value in pairs}


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_fold, parse_constant=_refuse)
