"""Which CNI network a runtime uses and what it hands to each plugin: the rules of containerd and libcni."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lab.errors import PluginError

if TYPE_CHECKING:
    from pathlib import Path

_SUFFIXES = (".conf", ".conflist", ".json")


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """A network configuration list; a single plugin's configuration is a list of one."""

    name: str
    version: str
    plugins: tuple[dict[str, Any], ...]
    file: str = ""

    def stdin(self, position: int, previous: dict[str, Any] | None, capabilities: dict[str, Any]) -> bytes:
        """What libcni writes to the plugin at `position`; only declared capabilities are passed on."""
        config = copy.deepcopy(self.plugins[position])
        config["name"] = self.name
        config["cniVersion"] = self.version
        declared = config.get("capabilities") or {}
        passed = {name: value for name, value in capabilities.items() if declared.get(name) and value}
        if passed:
            config["runtimeConfig"] = passed
        if previous is not None:
            config["prevResult"] = previous
        return json.dumps(config).encode()


LOOPBACK = NetworkConfig("cni-loopback", "0.3.1", ({"type": "loopback"},))
"""The network that containerd brings up in each sandbox before any other."""


def version_key(version: str) -> tuple[int, ...]:
    """Versions in their order."""
    return tuple(int(part) for part in version.split("."))


def parse(text: str, file: str, newest: str) -> NetworkConfig:
    """One configuration file; of its cniVersions the highest that the runtime speaks (`newest`) is taken."""
    try:
        config = json.loads(text)
        plugins = config.get("plugins", [config])
        if not plugins or not all(plugin["type"] for plugin in plugins):
            problem = "each plugin needs a type"
            raise PluginError(f"cni plugin not initialized: {file}: {problem}")
        offered = [config.get("cniVersion", "0.1.0"), *config.get("cniVersions", [])]
        spoken = [version for version in offered if version_key(version) <= version_key(newest)]
        chosen = max(spoken or offered, key=version_key)
        return NetworkConfig(str(config["name"]), chosen, tuple(plugins), file)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise PluginError(f"cni plugin not initialized: {file}: {error!r}") from error


def choose(directory: Path, newest: str = "1.1.0") -> NetworkConfig:
    """The network that containerd uses: that of the first file by name; PluginError if it is unusable."""
    names = sorted(name for name in os.listdir(directory) if name.endswith(_SUFFIXES))
    if not names:
        raise PluginError("cni plugin not initialized: no network config found in /etc/cni/net.d")
    return parse((directory / names[0]).read_text(), names[0], newest)
