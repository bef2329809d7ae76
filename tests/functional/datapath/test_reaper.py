"""Detached links are destroyed off the critical path, many at once, and after a restart."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from datapath import reaper
from datapath.attachment import attach, detach
from datapath.errors import NetlinkError
from datapath.netlink.links import get_links
from datapath.netlink.transport import Socket
from datapath.reaper import Reaper
from tests.functional.datapath.conftest import remembered, request

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from datapath.netlink.transport import Message, Reply
    from tests.functional.datapath.conftest import Node


def veths(node: Node) -> int:
    return len(node.host.dump(get_links("veth"), "count"))


def wait_for(node: Node, count: int) -> None:
    limit = time.monotonic() + 5
    while veths(node) != count:
        assert time.monotonic() < limit, f"{veths(node)} links are there, not {count}"
        time.sleep(0.01)


def test_links_go_when_the_reaper_is_woken_and_others_stay(node: Node) -> None:
    made = [request(node.pod(), number) for number in range(1, 6)]
    for each in made:
        attach(node.host, each)
    destroyer = Reaper()
    destroyer.start()
    try:
        for each in made[:4]:
            detach(node.host, remembered(each))
            destroyer.wake()
        wait_for(node, 1)
    finally:
        destroyer.stop()
    assert veths(node) == 1


def test_what_an_earlier_process_left_goes_at_the_start(node: Node) -> None:
    made = request(node.pod())
    attach(node.host, made)
    detach(node.host, remembered(made))
    destroyer = Reaper(namespace=os.open("/proc/thread-self/ns/net", os.O_RDONLY))
    destroyer.start()
    wait_for(node, 0)
    destroyer.stop()
    destroyer.stop()


def test_stop_does_what_is_left(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaper, "GATHER_SECONDS", 60)
    destroyer = Reaper()
    destroyer.start()
    made = request(node.pod())
    attach(node.host, made)
    detach(node.host, remembered(made))
    destroyer.stop()
    assert veths(node) == 0
    assert not any(thread.name == "weft-reaper" for thread in threading.enumerate())


def test_a_failure_is_reported_and_tried_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaper, "RETRY_SECONDS", 0.01)
    failures = iter([True, True, False])
    batch = Socket.batch

    def refused(self: Socket, messages: Sequence[Message], action: str) -> list[Reply]:
        if threading.current_thread().name == "weft-reaper" and next(failures, False):
            raise NetlinkError(16, action)
        return batch(self, messages, action)

    monkeypatch.setattr(Socket, "batch", refused)
    made = request(node.pod())
    attach(node.host, made)
    detach(node.host, remembered(made))
    said: list[str] = []
    destroyer = Reaper(report=said.append)
    destroyer.start()
    wait_for(node, 0)
    destroyer.stop()
    assert said == ["detached links can't be destroyed: Device or resource busy [EBUSY]"] * 2
