"""Which flows are stale, what is asked of the kernel for them, and how sweeps are gathered."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
from typing import TYPE_CHECKING, cast

import pytest

from datapath import conntrack
from datapath.conntrack import Destination, StaleFlows, Sweeper, delete_listed, delete_stale
from datapath.errors import DatapathError, NetlinkError
from datapath.netlink.attributes import attribute, nest
from datapath.netlink.ctnetlink import CT_DELETE, decode_flow, get_flows
from datapath.netlink.nfnetlink import header
from datapath.nft.rules import Family
from tests.unit.datapath.netlink.test_ctnetlink import TCP, V4, V6, direction, listed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from datapath.netlink.transport import Message, Socket

CLIENT, VIP, BACKEND = V4[1]
NEW = (socket.inet_aton("10.2.0.10"), 5353)
OLD = (BACKEND, 5353)
FRONTEND = Destination(Family.IPV4, VIP, 53)
NODE_PORT = Destination(Family.IPV4, None, 53)


class Kernel:
    """Lists what it is given for every selection, and counts deletions."""

    def __init__(self, *payloads: bytes, refuse: int = 0) -> None:
        self.payloads = list(payloads)
        self.selections: list[Message] = []
        self.deleted: list[Message] = []
        self.refuse = refuse

    def stream(self, message: Message, action: str) -> Iterator[bytes]:  # noqa: ARG002
        self.selections.append(message)
        yield from [each for each in self.payloads if each[0] == message.payload[0]]

    def batch_collect(self, messages: Sequence[Message], action: str) -> list[NetlinkError]:
        self.deleted += messages
        if not self.refuse:
            self.payloads = [] if messages else self.payloads
            return []
        return [NetlinkError(self.refuse, action, index=index) for index, _ in enumerate(messages)]


def delete(kernel: Kernel, stale: StaleFlows, local: Sequence[bytes] = ()) -> int:
    return delete_stale(cast("Socket", kernel), stale, local)


@pytest.mark.parametrize(
    ("serving", "local", "count"),
    [
        ({FRONTEND: frozenset({NEW})}, (), 1),
        ({FRONTEND: frozenset()}, (), 1),
        ({FRONTEND: frozenset({NEW, OLD})}, (), 0),
        ({FRONTEND: frozenset({(BACKEND, 5354)})}, (), 1),
        ({Destination(Family.IPV4, VIP, 54): frozenset()}, (), 0),
        ({Destination(Family.IPV4, CLIENT, 53): frozenset()}, (), 0),
        ({Destination(Family.IPV6, V6[1][1], 53): frozenset()}, (), 0),
        ({NODE_PORT: frozenset({NEW})}, (VIP,), 1),
        ({NODE_PORT: frozenset({OLD})}, (VIP,), 0),
        ({NODE_PORT: frozenset()}, (CLIENT,), 0),
        ({NODE_PORT: frozenset(), FRONTEND: frozenset({OLD})}, (VIP,), 0),
        ({}, (VIP,), 0),
    ],
)  # fmt: skip
def test_a_flow_is_stale_when_its_answerer_serves_its_destination_no_more(
    serving: dict[Destination, frozenset[tuple[bytes, int]]], local: Sequence[bytes], count: int
) -> None:
    kernel = Kernel(listed(*V4))
    assert delete(kernel, StaleFlows(serving), local) == count
    assert [each.kind for each in kernel.deleted] == [CT_DELETE] * count


def test_other_protocols_are_left_alone_even_where_the_kernel_did_not_leave_them_out() -> None:
    kernel = Kernel(listed(*V4, TCP))
    assert delete(kernel, StaleFlows({FRONTEND: frozenset()})) == 0


def test_a_flow_of_an_unusual_layout_is_judged_as_well() -> None:
    family, (client, vip, backend) = V4
    usual = listed(family, [client, vip, backend])
    zoned = direction(1, 17, (client, 40000), (vip, 53))
    with_zone = nest(1, zoned[4:], attribute(3, b"\0\x01"))
    kernel = Kernel(header(family) + with_zone + usual[56:])
    assert delete(kernel, StaleFlows({FRONTEND: frozenset({OLD})})) == 0
    assert delete(kernel, StaleFlows({FRONTEND: frozenset({NEW})})) == 1


def test_few_destinations_are_asked_for_one_by_one_and_many_at_once() -> None:
    few = [Destination(Family.IPV4, VIP, port) for port in range(1, 1 + conntrack.ONE_BY_ONE)]
    kernel = Kernel()
    delete(kernel, StaleFlows(dict.fromkeys(few, frozenset())))
    one_by_one = {get_flows(Family.IPV4, protocol=17, destination=VIP, port=each.port) for each in few}
    assert set(kernel.selections) == one_by_one
    assert len(kernel.selections) == len(few)
    kernel = Kernel(listed(*V6))
    more = [*few, NODE_PORT, Destination(Family.IPV6, V6[1][1], 53)]
    assert delete(kernel, StaleFlows(dict.fromkeys(more, frozenset()))) == 1
    assert kernel.selections == [
        get_flows(Family.IPV4, protocol=17),
        get_flows(Family.IPV6, protocol=17, destination=V6[1][1], port=53),
    ]


def test_more_than_fits_at_once_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conntrack, "MOST_AT_ONCE", 2)
    kernel = Kernel(*[listed(*V4)] * 5)
    assert delete(kernel, StaleFlows({FRONTEND: frozenset()})) == 2
    assert len(kernel.selections) == 2


def test_a_flow_that_went_by_itself_is_no_failure_and_another_refusal_is() -> None:
    assert delete(Kernel(listed(*V4), refuse=errno.ENOENT), StaleFlows({FRONTEND: frozenset()})) == 0
    with pytest.raises(NetlinkError, match="could not be deleted"):
        delete(Kernel(listed(*V4), refuse=errno.EPERM), StaleFlows({FRONTEND: frozenset()}))


def test_flows_can_be_chosen_by_any_property() -> None:
    kernel = Kernel(listed(*V4, TCP))
    wanted = get_flows(Family.IPV4, mark=(0x4000, 0x4000))
    assert delete_listed(cast("Socket", kernel), wanted, lambda each: decode_flow(each).mark != 0x4000) == 0
    assert delete_listed(cast("Socket", kernel), wanted, lambda each: decode_flow(each).protocol == TCP) == 1
    assert kernel.selections == [wanted, wanted]


class Sweeps:
    """Records what a sweeper would have the kernel do, and can make it wait or fail."""

    def __init__(self) -> None:
        self.done: list[StaleFlows] = []
        self.failures: list[DatapathError] = []
        self.go = threading.Event()
        self.go.set()

    def sweep(self, _: Sweeper, stale: StaleFlows) -> int:
        self.go.wait(5)
        if self.failures:
            raise self.failures.pop(0)
        self.done.append(stale)
        return len(stale.serving)


@pytest.fixture
def sweeps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sweeps]:
    recorded = Sweeps()
    monkeypatch.setattr(Sweeper, "_sweep", lambda *arguments: recorded.sweep(*arguments))
    monkeypatch.setattr(conntrack, "RETRY_SECONDS", 0.01)
    yield recorded
    recorded.go.set()


@contextlib.asynccontextmanager
async def running(sweeper: Sweeper) -> AsyncIterator[None]:
    task = asyncio.ensure_future(sweeper.run())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_what_is_offered_during_a_sweep_is_one_sweep_afterwards(sweeps: Sweeps) -> None:
    counts: asyncio.Queue[int] = asyncio.Queue()
    sweeper = Sweeper(deleted=counts.put_nowait)
    first, later, latest = (StaleFlows({FRONTEND: frozenset(peers)}) for peers in ((), (OLD,), (NEW,)))
    async with running(sweeper), asyncio.timeout(5):
        sweeper.offer(StaleFlows())
        await asyncio.sleep(0.02)
        assert sweeps.done == []
        sweeps.go.clear()
        sweeper.offer(first)
        await asyncio.sleep(0.05)
        for each in (later, StaleFlows({NODE_PORT: frozenset()}), latest):
            sweeper.offer(each)
        sweeps.go.set()
        assert [await counts.get(), await counts.get()] == [1, 2]
        await asyncio.sleep(0.05)
    assert sweeps.done == [first, StaleFlows({FRONTEND: frozenset({NEW}), NODE_PORT: frozenset()})]
    assert counts.empty()


async def test_a_failed_sweep_is_repeated_with_what_is_known_by_then(sweeps: Sweeps) -> None:
    reports: list[str] = []
    counts: asyncio.Queue[int] = asyncio.Queue()
    sweeper = Sweeper(report=reports.append, deleted=counts.put_nowait)
    sweeps.failures = [DatapathError("busy"), DatapathError("still busy")]
    sweeps.go.clear()
    async with running(sweeper), asyncio.timeout(5):
        sweeper.offer(StaleFlows({FRONTEND: frozenset({OLD}), NODE_PORT: frozenset()}))
        await asyncio.sleep(0.02)
        sweeper.offer(StaleFlows({FRONTEND: frozenset({NEW})}))
        sweeps.go.set()
        assert await counts.get() == 2
    assert sweeps.done == [StaleFlows({FRONTEND: frozenset({NEW}), NODE_PORT: frozenset()})]
    assert reports == ["busy", "still busy", ""]
