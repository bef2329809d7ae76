from __future__ import annotations

import errno
from typing import TYPE_CHECKING, cast

from datapath import arrival
from datapath.arrival import await_local
from datapath.errors import NetlinkError
from datapath.netlink.routes import get_route
from datapath.text import parse_address

if TYPE_CHECKING:
    import pytest

    from datapath.netlink.transport import Message, Socket

FOUR, SIX = parse_address("10.0.0.5"), parse_address("fd00::5")
ELSEWHERE, LOCAL = bytes((10, 128, 0, 0, 254, 3, 0, 1)), bytes((10, 128, 0, 0, 255, 2, 0, 2))
"""The start of rtmsg: unicast by the main table, local by the table of that name."""


class Pod:
    """A namespace's socket that answers as told; the last answer stays."""

    def __init__(self, *answers: bytes | NetlinkError) -> None:
        self.answers = list(answers)
        self.asked: list[Message] = []

    def request(self, message: Message, _action: str) -> bytes:
        self.asked.append(message)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, NetlinkError):
            raise answer
        return answer


def awaited(pod: Pod, *addresses: bytes) -> bool:
    return await_local(cast("Socket", pod), addresses)


def test_it_asks_until_the_address_is_local() -> None:
    unreachable = NetlinkError(errno.ENETUNREACH, "asking")
    pod = Pod(ELSEWHERE, unreachable, ELSEWHERE, LOCAL)
    assert awaited(pod, FOUR, SIX)
    assert pod.asked == [get_route(SIX)] * 4


def test_ipv4_needs_no_asking() -> None:
    pod = Pod(ELSEWHERE)
    assert awaited(pod, FOUR)
    assert pod.asked == []


def test_a_work_queue_that_is_stuck_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "PATIENCE_SECONDS", 0.001)
    assert not awaited(Pod(ELSEWHERE), SIX)
