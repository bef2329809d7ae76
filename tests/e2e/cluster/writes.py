"""Writes to the API over connections that are kept: thousands of objects, and single ones that are timed."""

from __future__ import annotations

import json
import threading
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from tests.e2e.cluster.processes import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.e2e.cluster.api import Api, Object

WRITERS = 4
JSON = "application/json"
MERGE = "application/merge-patch+json"


class Writer:
    """One connection, used by one thread."""

    def __init__(self, api: Api) -> None:
        self._connection = api.connection()

    def write(self, method: str, path: str, body: Object | None = None, kind: str = JSON) -> None:
        """Makes one write.

        Raises:
            ClusterError: the server refuses; with its message.
        """
        content = None if body is None else json.dumps(body).encode()
        self._connection.request(method, path, content, {"Content-Type": kind})
        with self._connection.getresponse() as response:
            answer = response.read()
        if response.status >= 300:
            raise ClusterError(f"{method} {path}: {response.status} {answer.decode(errors='replace')}")

    def renew(self) -> None:
        """Connects anew: the server closes what was idle for some minutes."""
        self.close()
        self._connection.connect()

    def close(self) -> None:
        self._connection.close()


def write_all(api: Api, method: str, writes: Iterable[tuple[str, Object | None]]) -> None:
    """Makes all writes, each a path and a body, as fast as the server takes them; in no order.

    Raises:
        ClusterError: the server refuses one.
    """
    waiting: SimpleQueue[tuple[str, Object | None]] = SimpleQueue()
    for each in writes:
        waiting.put(each)
    failures: list[BaseException] = []

    def work() -> None:
        writer = Writer(api)
        try:
            while not failures:
                writer.write(method, *waiting.get_nowait())
        except Empty:
            pass
        except (OSError, ClusterError) as error:
            failures.append(error)
        finally:
            writer.close()

    threads = [threading.Thread(target=work) for _ in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise ClusterError(f"{method} of many objects failed: {failures[0]}") from failures[0]
