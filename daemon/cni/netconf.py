"""The standard-input half of a request: the network configuration, checked for the command. Pure.

What concerns ADD and CHECK only is read when they ask, so that nothing in it can stand in the way of a DEL.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from daemon.cni import document as json_document
from daemon.cni import hostports
from daemon.cni.document import shown
from daemon.cni.errors import CniError, Code
from daemon.cni.invocation import KNOWN_ARGS, NAME
from daemon.cni.result import VERSIONS, Dns, read_dns, read_result

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.cni.document import Document
    from daemon.cni.result import Result
    from ipam.ports import PortMapping

SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
"""The first version that has the command."""
_REMEMBERED_BYTES = 4096
_ADDRESSING = ("ipam", "ipMasq")
_CAPABILITIES = frozenset({"dns", "portmappings"})


@dataclass(frozen=True, slots=True)
class NetConf:
    """A network configuration of a supported version with a valid name."""

    name: str
    version: str
    document: Document

    def require_supported(self) -> None:
        """Refuse what would be silently not done.

        Raises:
            CniError: code 2, naming the field.
        """
        for name in _ADDRESSING:
            value = self.document.raw(name)
            if value not in (None, False, {}):
                raise _unsupported(
                    name, value, "addresses and masquerading are the daemon's: remove the field"
                )
        runtime = self.document.child("runtimeConfig")
        for name in runtime.names():
            if name not in _CAPABILITIES and runtime.raw(name) not in (None, [], {}):
                raise _unsupported(
                    f"runtimeConfig.{name}",
                    runtime.raw(name),
                    "remove the capability from Weft's plugin entry",
                )

    def previous_result(self) -> Result | None:
        """Return prevResult, None when there is none.

        Raises:
            CniError: it can't be read.
        """
        if self.document.raw("prevResult") is None:
            return None
        return read_result(self.document.child("prevResult"), self.version)

    def dns(self) -> Dns:
        """Return the DNS settings: the runtime's (capability `dns`), else the configuration's own."""
        given = self.document.child("runtimeConfig").child("dns")
        if given.names():
            return Dns(given.texts("servers"), "", given.texts("searches"), given.texts("options"))
        return read_dns(self.document.child("dns"))

    def args(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Return the arguments: those of CNI_ARGS, overridden by the configuration's args.cni."""
        if self.document.raw("args") is None:
            return dict(variables)
        given = self.document.child("args").child("cni")
        return {**variables, **{name: given.text(name) for name in KNOWN_ARGS if given.raw(name) is not None}}

    def valid_attachments(self) -> frozenset[tuple[str, str]] | None:
        """Return container id and interface of each attachment to keep; None: nothing may be collected.

        Raises:
            CniError: the list can't be read, so nothing may be collected either.
        """
        for name in ("cni.dev/valid-attachments", "cni.dev/attachments"):
            if self.document.has(name):
                entries = self.document.children(name)
                found = frozenset((entry.text("containerID"), entry.text("ifname")) for entry in entries)
                if any(not container or not ifname for container, ifname in found):
                    raise CniError(Code.INVALID_CONFIG, f"{name}: an entry lacks containerID or ifname")
                return found
        return None


@dataclass(frozen=True, slots=True)
class Wish:
    """What a configuration says about an ADD besides its name and version."""

    previous: Result | None
    dns: Dns
    ports: tuple[PortMapping, ...] = ()


def read(config: bytes, command: str) -> NetConf:
    """Decode a configuration and check what every command needs.

    Raises:
        CniError: code 6 for what is no JSON, 1 for the version, 7 for the name.
    """
    # A runtime sends the same few bytes for every pod, unless a plugin ran before us.
    return _remembered(config, command) if len(config) <= _REMEMBERED_BYTES else _read(config, command)


@lru_cache(maxsize=16)
def wish(conf: NetConf) -> Wish:
    """Return what an ADD should do.

    Raises:
        CniError: it asks for what Weft does not do, or can't be read.
    """
    conf.require_supported()
    ports = hostports.read(conf.document.child("runtimeConfig"))
    return Wish(conf.previous_result(), conf.dns(), ports)


@lru_cache(maxsize=16)
def _remembered(config: bytes, command: str) -> NetConf:
    return _read(config, command)


def _read(config: bytes, command: str) -> NetConf:
    document = json_document.read(config)
    version = document.text("cniVersion") or "0.1.0"
    if version not in VERSIONS:
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            "incompatible CNI versions",
            f'config is "{version}", plugin supports {list(VERSIONS)}',
        )
    since = SINCE.get(command, VERSIONS[0])
    if VERSIONS.index(version) < VERSIONS.index(since):
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"config version does not allow {command}",
            f'config is "{version}", {command} needs {since} or newer',
        )
    name = document.text("name")
    if not name:
        raise CniError(Code.INVALID_CONFIG, "missing network name", "the configuration's `name`")
    if not NAME.fullmatch(name):
        raise CniError(
            Code.INVALID_CONFIG,
            "invalid characters found in network name",
            f"{name!r}: a letter or digit, then letters, digits, '_', '.' and '-'",
        )
    return NetConf(name, version, document)


def requested_version(config: bytes) -> str:
    """Return the version that an error about this configuration should speak."""
    try:
        version = json_document.read(config).text("cniVersion")
    except CniError:
        return VERSIONS[-1]
    return version if version in VERSIONS else VERSIONS[-1]


def _unsupported(name: str, value: Any, remedy: str) -> CniError:
    return CniError(Code.UNSUPPORTED_FIELD, f"unsupported field {name}: {shown(value)}", remedy)
