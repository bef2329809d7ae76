"""What links of a namespace are born with: whether they take router advertisements.

Owns two open files of /proc/sys. A setting's file, read again, gives the value of now, and belongs to the
namespace in which it was opened.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from datapath import sysctls

if TYPE_CHECKING:
    from types import TracebackType

_BYTES = 16
_NO = b"0\n"
_ALWAYS = b"2\n"


class NewLinks:
    """The settings that new links of the calling thread's namespace get; usable on any thread."""

    def __init__(self) -> None:
        self._files: list[int] = []
        try:
            for name in ("accept_ra", "forwarding"):
                path = f"{sysctls.WRITABLE}/net/ipv6/conf/default/{name}"
                self._files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            self.close()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> NewLinks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def take_advertisements(self) -> bool:
        """Return whether a link that is created now would; also True where that can't be read."""
        try:
            accept, forwarding = self._files
            # As ipv6_accept_ra in include/net/ipv6.h has it: a router takes them only if told so twice.
            if os.pread(forwarding, _BYTES, 0) == _NO:
                return os.pread(accept, _BYTES, 0) != _NO
            return os.pread(accept, _BYTES, 0) == _ALWAYS
        except (OSError, ValueError):
            return True

    def close(self) -> None:
        """Close the files; may be repeated."""
        while self._files:
            os.close(self._files.pop())
