"""The file that tells the runtime to use Weft: written last, kept on exit, restored.

Also looks for what stands in its way: runtimes take the first file of net.d, and one malformed earlier file
stops them altogether. The runtimes' watchers react to a rename within the directory and to writing in place,
so both are done. Owns one file of a directory that is the host's: nothing else in there is ever touched.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from daemon.cni.result import VERSIONS
from daemon.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.findings import Findings

DIRECTORY = "/etc/cni/net.d"
NAME = "05-weft.conflist"
NETWORK = "weft"
PLUGIN = "weft"
POLL_SECONDS = 1.0
_TEMPORARY = f".{NAME}.tmp"
_SUFFIXES = (".conf", ".conflist", ".json")
_RIVAL = "RivalConflist"
_MALFORMED = "MalformedConflist"
_UNWRITABLE = "ConflistUnwritable"


def content() -> bytes:
    """Return what the file holds. Old libcni reads cniVersion, from 1.2 on the highest of cniVersions."""
    configuration = {
        "cniVersion": "1.0.0",
        "cniVersions": list(VERSIONS),
        "name": NETWORK,
        "plugins": [{"type": PLUGIN, "capabilities": {"portMappings": True}}],
    }
    return json.dumps(configuration, indent=2).encode() + b"\n"


class Conflist:
    """Our file in net.d, and our view of the others."""

    def __init__(self, findings: Findings, directory: str = DIRECTORY) -> None:
        self.path = f"{directory}/{NAME}"
        self._directory = directory
        self._findings = findings

    async def run(self) -> None:
        """Install the file and keep it there for ever; call it once pods can be served."""
        while True:
            self.look()
            await asyncio.sleep(POLL_SECONDS)

    def look(self) -> bool:
        """Restore the file if it differs, report rivals; return whether it had to be written."""
        written = False
        try:
            if not self.is_installed():
                self.install()
                written = True
        except OSError as error:
            self._findings.report(
                _UNWRITABLE,
                "error",
                f"{self.path} can't be written, so the runtime does not use Weft: {error.strerror}; mount "
                f"{self._directory} of the host writable",
            )
        else:
            self._findings.clear(_UNWRITABLE)
        self._look_for_rivals()
        return written

    def is_installed(self) -> bool:
        """Whether the file is there as it should be. Raises OSError when it can't be read."""
        try:
            with open(self.path, "rb") as file:
                return file.read() == content()
        except FileNotFoundError:
            return False

    def install(self) -> None:
        """Write the file. Raises OSError."""
        os.makedirs(self._directory, mode=0o755, exist_ok=True)
        # The name ends like nothing that a runtime reads, should we die before the rename.
        temporary = f"{self._directory}/{_TEMPORARY}"
        text = content()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            _write(descriptor, text)
        finally:
            os.close(descriptor)
        os.replace(temporary, self.path)
        # The same bytes over themselves: a reader sees the whole file at any moment, a watcher sees a write.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            _write(descriptor, text)
        finally:
            os.close(descriptor)

    def _look_for_rivals(self) -> None:
        rivals: dict[str, str] = {}
        malformed: dict[str, str] = {}
        for name in self._earlier():
            path = f"{self._directory}/{name}"
            plugins, fault = _plugins(path)
            if fault:
                malformed[name] = (
                    f"{path} is no CNI configuration ({fault}) and sorts before {NAME}: the runtime may "
                    "refuse to start any pod; repair or remove it"
                )
            elif PLUGIN not in plugins:  # else an operator chains others with Weft in it
                rivals[name] = (
                    f"{path} sorts before {NAME}: the runtime uses that network and not Weft; remove it, or "
                    "rename it so that it sorts later"
                )
        self._report_all(_RIVAL, rivals)
        self._report_all(_MALFORMED, malformed)

    def _report_all(self, name: str, messages: Mapping[str, str]) -> None:
        rows = [Finding(name, "error", message, key) for key, message in messages.items()]
        self._findings.replace((name,), rows)

    def _earlier(self) -> list[str]:
        names: list[str] = []
        with suppress(OSError):
            names = os.listdir(self._directory)
        return sorted(name for name in names if name.endswith(_SUFFIXES) and name < NAME)


def _write(descriptor: int, text: bytes) -> None:
    if os.write(descriptor, text) != len(text):
        raise OSError(0, "only a part could be written")
    os.fsync(descriptor)


def _plugins(path: str) -> tuple[list[object], str]:
    """Return the types of a configuration's plugins, and why a runtime can't use the file, "" if it can."""
    try:
        with open(path, "rb") as file:
            value = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        return [], str(error)
    if not isinstance(value, dict):
        return [], "it holds no object"
    fields = {key.casefold(): entry for key, entry in value.items()}
    plugins = fields.get("plugins") if path.endswith(".conflist") else [fields]
    if not isinstance(plugins, list) or not plugins:
        return [], "it has no plugins"
    types = [plugin.get("type") for plugin in plugins if isinstance(plugin, dict)]
    return types, "" if all(types) and len(types) == len(plugins) else "it has a plugin without a type"
