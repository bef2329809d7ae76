"""The environment half of a request: CNI_* variables, checked as the specification demands. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from daemon.cni.errors import CniError, Code

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
"""Container ids and network names."""
IFNAME_LIMIT = 15
"""IFNAMSIZ less the terminating zero."""
KNOWN_ARGS = frozenset({"K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID", "K8S_POD_INFRA_CONTAINER_ID"})
"""Keys of CNI_ARGS with a meaning here; IgnoreUnknown is about the others."""

_USUAL_IFNAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,14}")
_REQUIRED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"),
    "GC": ("CNI_PATH",),
    "STATUS": ("CNI_PATH",),
    "VERSION": (),
}
_VARIABLES = ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH")
_ON_ATTACHMENTS = frozenset({"ADD", "CHECK", "DEL"})
_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}


class Variables(Protocol):
    """The variables as they come from the shim (weft.cni.v1.ExecuteRequest); "" stands for unset."""

    command: str
    container_id: str
    netns: str
    ifname: str
    args: str
    path: str


@dataclass(frozen=True, slots=True)
class Invocation:
    """A request's variables, valid for its command; `args` only for ADD and CHECK, without IgnoreUnknown."""

    command: str
    container_id: str
    netns: str
    ifname: str
    args: Mapping[str, str]


def read(variables: Variables) -> Invocation:
    """Check the variables of one request.

    Raises:
        CniError: code 4, naming the variable and what is allowed.
    """
    command = variables.command
    if command not in _REQUIRED:
        known = ", ".join(_REQUIRED)
        raise _invalid(f"unknown CNI_COMMAND: {command}" if command else _missing(["CNI_COMMAND"]), known)
    container_id, netns, ifname = variables.container_id, variables.netns, variables.ifname
    if not (container_id and netns and ifname and variables.path):
        given = dict(zip(_VARIABLES, (container_id, netns, ifname, variables.path), strict=True))
        missing = [name for name in _REQUIRED[command] if not given[name]]
        if missing:
            raise _invalid(_missing(missing))
    if command in _ON_ATTACHMENTS:
        _check_container_id(container_id)
        _check_ifname(ifname)
    # Nothing in CNI_ARGS matters to a DEL, so nothing in it may stand in a pod's way out.
    args = _read_args(variables.args) if command in ("ADD", "CHECK") else {}
    return Invocation(command, container_id, netns, ifname, args)


def _check_container_id(container_id: str) -> None:
    if not NAME.fullmatch(container_id):
        raise _invalid(
            "invalid characters in CNI_CONTAINERID",
            f"{container_id!r}: a letter or digit, then letters, digits, '_', '.' and '-'",
        )


def _check_ifname(ifname: str) -> None:
    if _USUAL_IFNAME.fullmatch(ifname):
        return
    if len(ifname.encode()) > IFNAME_LIMIT:
        raise _invalid("interface name is too long", f"CNI_IFNAME {ifname!r}: at most {IFNAME_LIMIT} bytes")
    if ifname in (".", ".."):
        raise _invalid("interface name is . or ..", "CNI_IFNAME")
    # White space as the kernel's dev_valid_name() and Go's unicode.IsSpace() see it, and nothing unprintable.
    if any(character in "/:" or character.isspace() or not character.isprintable() for character in ifname):
        raise _invalid("interface name contains / or : or whitespace characters", f"CNI_IFNAME {ifname!r}")


def _read_args(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in text.split(";") if text else ():
        key, equals, value = part.partition("=")
        if not equals or "=" in value:
            raise _invalid(f"CNI_ARGS: invalid CNI_ARGS pair {part!r}", "KEY=VALUE pairs separated by ';'")
        pairs[key] = value
    ignore = pairs.pop("IgnoreUnknown", "0")
    if ignore.lower() not in _BOOLEANS:
        raise _invalid(f"CNI_ARGS: IgnoreUnknown is {ignore!r}", "1, true, 0 or false")
    if pairs.keys() <= KNOWN_ARGS:
        return pairs
    if not _BOOLEANS[ignore.lower()]:
        raise _invalid(
            f"CNI_ARGS: unknown args [{','.join(sorted(pairs.keys() - KNOWN_ARGS))}]",
            f"known are {', '.join(sorted(KNOWN_ARGS))}; IgnoreUnknown=1 permits others",
        )
    return {key: value for key, value in pairs.items() if key in KNOWN_ARGS}


def _missing(names: list[str]) -> str:
    return f"required env variables [{','.join(names)}] missing"


def _invalid(message: str, details: str = "") -> CniError:
    return CniError(Code.INVALID_ENVIRONMENT, message, details)
