"""Takes Weft off a node, in the order in which nothing is left half working.

Conflist first: the runtime starts no pod by it from then on. Then pods' links, the rest of the datapath, the
shim (earlier, and the runtime could not end pods that are still there), and the state directory last. Whoever
is interrupted starts it again. Owns the files; the kernel's part is `datapath.removal`. What others own in
these directories stays, and so does /etc/weft, which its user wrote.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctl.exits import FailedError, InUseError
from datapath import removal, snapshot
from datapath.desired import Sysctl
from datapath.errors import DatapathError
from datapath.netlink.transport import Socket
from datapath.nft.connection import Nft
from ipam import alias
from ipam.errors import AliasError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from datapath.removal import Remains

STATE = "/run/weft"
CONFLISTS = "/etc/cni/net.d"
PLUGINS = "/opt/cni/bin"
CONFLIST_NAMES = ("05-weft.conflist", ".05-weft.conflist.tmp")
SHIM_NAMES = ("weft", "loopback", ".weft.weft-new", ".loopback.weft-new")
MARK = b"/weft.cni.v1.Cni/Execute"
"""What every build of the shim contains; a plugin of one of these names without it is somebody else's."""


@dataclass(frozen=True, slots=True)
class Places:
    """Directories of the node, as this process sees them."""

    state: str = STATE
    conflists: str = CONFLISTS
    plugins: str = PLUGINS

    def below(self, root: str) -> Places:
        """The same where the node's root is mounted elsewhere."""
        return Places(*(root.rstrip("/") + path for path in (self.state, self.conflists, self.plugins)))


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do, and what it removes in words; none when nothing is known to be there."""

    words: str
    do: Callable[[], object]


def uninstall(places: Places, report: Callable[[str], object], *, force: bool, dry_run: bool) -> None:
    """Remove everything of Weft's from this node.

    Args:
        places: where its files are.
        report: gets a line for each thing that was removed, or would be.
        force: cut off pods that still use Weft.
        dry_run: only report.

    Raises:
        InUseError: pods use it.
        FailedError: a daemon runs, or something can't be removed; the same call again goes on from there.
    """
    try:
        with _no_daemon(places.state), Socket() as route, Nft() as nft:
            remains = removal.find(route, nft)
            if remains.pods and not force:
                raise InUseError(_in_use(remains))
            settings = _settings(places.state)
            for step in _steps(places, remains, route, nft):
                if not dry_run:
                    step.do()
                if step.words:
                    report(f"{'would remove' if dry_run else 'removed'} {step.words}")
            for setting in settings:
                report(f"left as it is: {setting}, which others may need")
    except (DatapathError, OSError) as error:
        raise FailedError(f"Weft is not removed completely: {error}; run the same command again") from error


@contextlib.contextmanager
def _no_daemon(state: str) -> Iterator[None]:
    """Hold the daemon's lock: none runs, and none starts meanwhile. No state, no daemon."""
    path = os.path.join(state, "lock")
    try:
        opened = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FailedError(
                f"a daemon serves this node: it holds {path}. Have its pod removed first (kubectl label node "
                "NAME weft.dev/exclude=, or delete the DaemonSet); it would restore what is removed"
            ) from error
        yield
    finally:
        os.close(opened)


def _steps(places: Places, remains: Remains, route: Socket, nft: Nft) -> Iterator[Step]:
    yield from _file_steps(places.conflists, CONFLIST_NAMES, lambda _: True)
    if remains.pods:
        words = f"the interfaces of {len(remains.pods)} pods: {', '.join(_pods(remains))}"
        yield Step(words, lambda: removal.remove_links(route, remains.pods))
    # Also without any that show: detached links may wait to be destroyed.
    yield Step(_list("links", remains.links), lambda: removal.remove_links(route, remains.links))
    yield Step(_list("routes", remains.routes), lambda: removal.remove_routes(route))
    tables = [f"{'ip6' if family == 10 else 'ip'} {name}" for family, name in remains.tables]
    yield Step(_list("nftables tables", tables), lambda: removal.remove_tables(nft))
    yield from _file_steps(places.plugins, SHIM_NAMES, _is_shim)
    if os.path.isdir(places.state):
        yield Step(places.state, lambda: _remove_directory(places.state))


def _file_steps(directory: str, names: tuple[str, ...], ours: Callable[[str], bool]) -> Iterator[Step]:
    for path in (os.path.join(directory, name) for name in names):
        if os.path.lexists(path) and ours(path):
            yield Step(path, lambda path=path: os.unlink(path))  # type: ignore[misc]


def _is_shim(path: str) -> bool:
    # What an installer that was killed left may be a part of one.
    if os.path.basename(path).startswith("."):
        return True
    with open(path, "rb") as file:
        return MARK in file.read()


def _remove_directory(path: str) -> None:
    """Remove a directory; one that is a mount of its own is emptied."""
    for name in os.listdir(path):
        each = os.path.join(path, name)
        if os.path.isdir(each) and not os.path.islink(each):
            shutil.rmtree(each)
        else:
            os.unlink(each)
    if not os.path.ismount(path):
        os.rmdir(path)


def _settings(state: str) -> list[str]:
    """Settings that Weft wrote and that don't go with a link; none where that is not known."""
    try:
        wanted = snapshot.read(os.path.join(state, "desired.db"))
    except snapshot.SnapshotError:
        return []
    found = {
        f"{each.path.replace('/', '.')} = {each.value}"
        for fragment in wanted.fragments.values()
        for each in fragment.objects
        if isinstance(each, Sysctl) and each.link is None
    }
    return sorted(found)


def _in_use(remains: Remains) -> str:
    return (
        f"{len(remains.pods)} pods on this node use Weft: {', '.join(_pods(remains))}. "
        "Drain the node first, or cut them off by --force"
    )


def _pods(remains: Remains) -> list[str]:
    return sorted(_pod(link, text) for link, text in remains.pods.items())


def _pod(link: str, text: str) -> str:
    try:
        found = alias.read(text)
    except AliasError:
        return link
    return f"{found.pod_namespace}/{found.pod_name}" if found.pod_name else link


def _list(kind: str, items: list[str] | tuple[str, ...]) -> str:
    return f"{len(items)} {kind}: {', '.join(items)}" if items else ""
