"""Destroys detached links off the critical path. Owns one thread and one socket; decides nothing.

The kernel waits tens of milliseconds for each destruction of a link but hardly longer for many at once, so
detached links gather in DOOMED_GROUP for a moment and go together. What a killed daemon left in the group
goes at the next start.
"""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING

from datapath.attachment import DOOMED_GROUP
from datapath.errors import DatapathError, NetlinkError
from datapath.netlink.links import del_group
from datapath.netlink.transport import Socket

if TYPE_CHECKING:
    from collections.abc import Callable

GATHER_SECONDS = 0.05
"""How long links gather. Runtimes remove the pod's namespace right after DEL, and its veth with it."""
RETRY_SECONDS = 1.0


class Reaper:
    """A thread that destroys the doomed links of its namespace whenever it is woken.

    Args:
        namespace: descriptor of the node's network namespace; None is that of the thread that calls `start`.
        report: called on the reaper's thread with the text of a failure; the reaper tries again by itself.
    """

    def __init__(self, *, namespace: int | None = None, report: Callable[[str], None] | None = None) -> None:
        self._namespace = namespace
        self._report = report
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; its first act is to destroy what an earlier process left."""
        # The socket belongs to the namespace where it is created, whatever thread uses it.
        host = Socket(namespace=self._namespace)
        self._wake.set()
        self._thread = threading.Thread(target=self._run, args=(host,), name="weft-reaper", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Say that there are links to destroy; any thread, returns at once."""
        self._wake.set()

    def stop(self) -> None:
        """Destroy what is doomed now and end the thread; may be repeated."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self, host: Socket) -> None:
        with host:
            while True:
                self._wake.wait()
                # A stop ends the wait at once.
                self._stopping.wait(GATHER_SECONDS)
                self._wake.clear()
                if not self._reap(host):
                    self._stopping.wait(RETRY_SECONDS)
                    self._wake.set()
                if self._stopping.is_set():
                    return

    def _reap(self, host: Socket) -> bool:
        """Destroy all doomed links; whether that is done."""
        try:
            host.batch((del_group(DOOMED_GROUP),), "detached links can't be destroyed")
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return True
            failure: DatapathError = error
        except DatapathError as error:
            failure = error
        else:
            return True
        if self._report is not None:
            self._report(str(failure))
        return False
