"""What a lab node sees of the file system: /run, /etc/cni, /opt/cni of its own, the rest is the host's.

Owns the mounts inside a node's mount namespace and the directory that is the node's disk. The host's file
system gets no new mount points: /etc and /opt are replaced by symbolic links to what was there.
"""

from __future__ import annotations

import os
import shutil
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab.errors import LabError
from lab.namespaces import MS_BIND, MS_REC, mount, new_machine

if TYPE_CHECKING:
    from pathlib import Path

    from lab.namespaces import Namespaces

_PERSISTENT = ("/etc/cni", "/etc/weft", "/opt/cni")
_ORIGINALS = "/run/.host"
NETWORK_CONFIGS = "/etc/cni/net.d"
PLUGINS = "/opt/cni/bin"
KUBECONFIG = "/etc/weft/kubeconfig"
DAEMON_CONFIG = "/etc/weft/weftd.yaml"


@dataclass(frozen=True, slots=True)
class Disk:
    """The part of a node that survives a reboot, as a directory of the host."""

    root: Path

    def path(self, inside: str) -> Path:
        """Where the host finds the file that the node sees at `inside`."""
        if not inside.startswith(_PERSISTENT):
            raise LabError(f"{inside} is not on the node's disk, which holds {', '.join(_PERSISTENT)}")
        return self.root / inside[1:]

    def format(self) -> None:
        """Make the directories of an empty node."""
        for inside in (*_PERSISTENT, NETWORK_CONFIGS, PLUGINS):
            self.path(inside).mkdir(parents=True, exist_ok=True)

    def write(self, inside: str, text: str) -> None:
        """Write a file as a careful installer does: complete or not at all."""
        target = self.path(inside)
        temporary = target.with_name(f".{target.name}.new")
        temporary.write_text(text)
        temporary.replace(target)

    def install_plugins(self, shim: Path, others: tuple[Path, ...] = ()) -> None:
        """Put the shim under both its names, and other plugins, where the runtime finds them."""
        if not shim.is_file():
            raise LabError(
                f"the shim {shim} does not exist: build it with `make shim`, or name it with --shim"
            )
        for source, name in ((shim, "weft"), (shim, "loopback"), *((path, path.name) for path in others)):
            target = self.path(f"{PLUGINS}/{name}")
            temporary = target.with_name(f".{name}.new")
            shutil.copy(source, temporary)
            temporary.chmod(0o755)
            temporary.replace(target)

    def new_boot_id(self) -> None:
        """Let the next boot have another /proc/sys/kernel/random/boot_id."""
        (self.root / "boot_id").write_text(f"{uuid.uuid4()}\n")


def boot(host_name: str, disk: Disk) -> Namespaces:
    """Namespaces of a machine that has just started: empty /run, no links but lo, a boot id of its own."""
    disk.new_boot_id()

    def prepare() -> None:
        # Descriptors, because mounting over /run may hide the disk.
        sources = {inside: os.open(disk.path(inside), os.O_PATH) for inside in _PERSISTENT}
        boot_id = os.open(disk.root / "boot_id", os.O_PATH)
        mount("sysfs", "/sys", "sysfs")
        mount("tmpfs", "/run", "tmpfs", data="mode=755")
        for directory in ("/etc", "/opt"):
            _shadow(directory, tuple(inside for inside in _PERSISTENT if inside.startswith(directory)))
        for inside, descriptor in sources.items():
            mount(f"/proc/thread-self/fd/{descriptor}", inside, flags=MS_BIND)
            os.close(descriptor)
        mount(f"/proc/thread-self/fd/{boot_id}", "/proc/sys/kernel/random/boot_id", flags=MS_BIND)
        os.close(boot_id)
        os.mkdir("/run/netns")

    return new_machine(host_name, prepare)


def _shadow(directory: str, own: tuple[str, ...]) -> None:
    """Replace `directory` by one with links to all it held, except for new directories at the paths `own`."""
    original = _ORIGINALS + directory
    os.makedirs(original)
    mount(directory, original, flags=MS_BIND | MS_REC)
    mount("tmpfs", directory, "tmpfs", data="mode=755")
    for path in own:
        os.mkdir(path)
    for name in os.listdir(original):
        if not os.path.lexists(f"{directory}/{name}"):
            os.symlink(f"{original}/{name}", f"{directory}/{name}")
