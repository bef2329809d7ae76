"""Puts the shim where the container runtime looks for it: what the init container `install` does.

Owns the files `weft` and `loopback` of the plugin directory and nothing else: the conflist is the daemon's to
write, once it serves. Needs no privileges besides those on the directory. A shim that runs meanwhile, or is
started, is a whole old one or a whole new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SHIM = "weft"
LOOPBACK = "loopback"
MARK = b"/weft.cni.v1.Cni/Execute"
"""What every build of the shim contains, and other plugins do not."""
MODE = 0o755


class InstallError(Exception):
    """The shim could not be installed; the message says what to do."""


def default_source() -> str:
    """Return where the image keeps the shim: beside the environment's programs."""
    return os.path.join(sys.prefix, "libexec", SHIM)


def install(source: str, directory: str) -> tuple[str, ...]:
    """Install the shim as `weft`, and as `loopback` unless another plugin of that name is there.

    Returns:
        The names that were written; a file that is as it should be is left alone.

    Raises:
        InstallError: source or directory can't be used.
    """
    try:
        with open(source, "rb") as file:
            content = file.read()
    except OSError as error:
        raise InstallError(
            f"the shim {source} can't be read: {error.strerror}; give the one of this version by --source"
        ) from error
    if MARK not in content:
        raise InstallError(f"{source} is not Weft's shim; give the one of this version by --source")
    try:
        with _only_installer(directory) as opened:
            wanted = (SHIM, LOOPBACK) if _may_replace(os.path.join(directory, LOOPBACK)) else (SHIM,)
            written = tuple(name for name in wanted if _write(os.path.join(directory, name), content))
            os.fsync(opened)
    except OSError as error:
        raise InstallError(
            f"the shim can't be installed to {directory}: {error.strerror} ({error.filename or directory});"
            " it has to exist and be writable: check the mount of the plugin directory"
        ) from error
    return written


@contextlib.contextmanager
def _only_installer(directory: str) -> Iterator[int]:
    """Hold the directory's lock: a pod that is replaced may still install while the new one does."""
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield opened
    finally:
        os.close(opened)


def _may_replace(path: str) -> bool:
    """Tell whether there is nothing, or a shim of any version; others' plugin serves as well and stays."""
    try:
        with open(path, "rb") as file:
            return MARK in file.read()
    except FileNotFoundError:
        return True


def _write(path: str, content: bytes) -> bool:
    """Replace a file in one step; False if it was as wanted already."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        state = os.fstat(file.fileno())
        if state.st_mode & 0o7777 == MODE and file.read() == content:
            return False
    directory, name = os.path.split(path)
    # No conflist names a plugin that begins with a dot. An installer that was killed leaves the file, and the
    # next one takes it over.
    temporary = os.path.join(directory, f".{name}.weft-new")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    opened = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
    try:
        with open(opened, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(opened, MODE)  # whatever the umask is
            os.fsync(opened)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return True
