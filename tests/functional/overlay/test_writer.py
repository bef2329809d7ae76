"""The writer alone in a namespace: order, cancellation, refusals, restarts of readings."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from datapath.attachment import Attachment, AttachRequest
from datapath.desired import Fragment, Neighbour, Route, RouteKind, SetElements, Sysctl
from datapath.errors import AttachError, NamespaceError, NamespaceGoneError, NetlinkError, NetlinkOverrunError
from datapath.execute import execute
from datapath.kernel import attachment_fragment, attachment_key
from datapath.nft.connection import Nft
from datapath.nft.tables import NODES, SOURCES, TABLE, TableOptions, node_tables
from datapath.observe import Observer
from datapath.sync import CHUNK
from datapath.text import parse_address
from datapath.writer import StoppedError, Writer
from tests.functional.overlay.segment import REMEMBERED, running, space, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from datapath.desired import FragmentKey
    from datapath.kernel import Kernel
    from datapath.netlink.transport import Message
    from tests.functional.nft.spaces import Space

BASE = Fragment(tables=node_tables(TableOptions()))
NODE = (parse_address("192.168.7.1"), parse_address("fd07::1"))
COMMIT = Nft.commit


@pytest.fixture
def host() -> Iterator[Space]:
    made = space("alone")
    made.ip("link add eth0 type veth peer name far", "link set far up", "link set eth0 up")
    made.ip("addr add 192.168.7.1/24 dev eth0", "addr add fd07::1/64 dev eth0 nodad")
    yield made
    made.close()


@pytest.fixture
def refusals() -> list[Mapping[str, str]]:
    return []


@pytest.fixture
async def writer(host: Space, refusals: list[Mapping[str, str]]) -> AsyncIterator[Writer]:
    made = Writer(namespace=host.descriptor, report=refusals.append)
    async with running(made.run()):
        await made.adopt({})
        await made.apply({("local",): BASE}, complete=True)
        yield made


def route(number: int, link: str | None = "eth0") -> Route:
    kind = RouteKind.UNICAST if link else RouteKind.UNREACHABLE
    return Route(bytes((10, number >> 8, number & 255, 0)), 24, link, kind=kind)


def request(pod: Space, number: int = 10) -> AttachRequest:
    return AttachRequest(
        netns=f"/run/netns/{pod.name}",
        ifname="eth0",
        host_link=f"weft{number:011x}",
        mac=bytes((2, 0, 0, 0, 1, number)),
        mtu=1450,
        addresses=(parse_address(f"10.244.1.{number}"), parse_address(f"fd44::{number:x}")),
        sources=NODE,
        alias=f"pod {number}",
    )


async def test_an_attachment_waits_for_one_bounded_piece_of_thousands_of_routes(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    many: dict[FragmentKey, Fragment | None] = {
        ("node", str(number)): Fragment((route(number, None),)) for number in range(6000)
    }
    begun, queued = threading.Event(), threading.Event()
    order: list[object] = []

    def watched(socket: object, steps: Sequence[object], indexes: dict[str, int]) -> object:
        begun.set()
        queued.wait(5)
        order.append(len(steps))
        return execute(socket, steps, indexes)  # type: ignore[arg-type]

    monkeypatch.setattr("datapath.sync.execute", watched)
    bulk = asyncio.create_task(writer.apply(many))
    await asyncio.to_thread(begun.wait, 5)
    attachment = asyncio.create_task(writer.attachment(lambda _: order.append("attachment")))
    await asyncio.sleep(0.05)
    queued.set()
    await attachment
    assert (await bulk).steps == 6000
    assert order[:2] == [CHUNK, "attachment"]
    assert sum(each for each in order if isinstance(each, int)) == 6000


async def test_only_the_latest_of_several_changes_is_written(writer: Writer, host: Space) -> None:
    held = threading.Event()
    blocked = asyncio.create_task(writer.attachment(lambda _: held.wait(5)))
    await asyncio.sleep(0.05)
    changes = [
        asyncio.create_task(writer.apply({("x",): Fragment((route(number),))})) for number in range(20)
    ]
    await asyncio.sleep(0.05)
    held.set()
    outcomes = await asyncio.gather(*changes)
    await blocked
    assert outcomes[0].steps == 1
    assert host.run("ip", "route", "show", "proto", "119").split()[0] == "10.0.19.0/24"


async def test_a_job_runs_to_its_end_though_its_caller_is_cancelled(writer: Writer) -> None:
    began, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def job(_: Kernel) -> None:
        began.set()
        may_end.wait(5)
        ended.set()

    task = asyncio.create_task(writer.attachment(job))
    await asyncio.to_thread(began.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    may_end.set()
    await writer.attachment(lambda _: None)
    assert ended.is_set()


async def test_what_a_job_raises_reaches_its_caller_and_the_writer_lives_on(writer: Writer) -> None:
    def job(_: Kernel) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await writer.attachment(job)
    assert await writer.attachment(lambda _: 7) == 7


class Counter:
    """An intake where numbers come in; what is served is written down."""

    def __init__(self, order: list[object]) -> None:
        self.numbers = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
        self.order = order
        self.served = threading.Event()

    def come(self, count: int = 1) -> None:
        os.eventfd_write(self.numbers, count)

    def fileno(self) -> int:
        return self.numbers

    @property
    def waiting(self) -> int:
        return 3

    def serve(self, kernel: Kernel) -> bool:
        try:
            os.eventfd_read(self.numbers)
        except BlockingIOError:
            return False
        assert kernel.links()
        self.order.append("request")
        self.served.set()
        return True


@pytest.fixture
def counter(writer: Writer) -> Iterator[Counter]:
    counter = Counter([])
    yield counter
    writer.attend(None)
    os.close(counter.numbers)


async def test_requests_wake_the_thread_as_jobs_do(writer: Writer, counter: Counter) -> None:
    writer.attend(counter)
    await asyncio.sleep(0.05)
    assert writer.queued[0] == 3
    counter.come()
    assert await asyncio.to_thread(counter.served.wait, 5)
    assert await writer.attachment(lambda _: 7) == 7
    counter.come(2)
    await asyncio.sleep(0.05)
    assert counter.order == ["request"] * 3
    writer.attend(None)
    counter.come()
    assert await writer.attachment(lambda _: 7) == 7
    assert counter.order == ["request"] * 3


async def test_requests_do_not_wait_for_bulk_work(
    writer: Writer, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    many: dict[FragmentKey, Fragment] = {(str(number),): Fragment((route(number),)) for number in range(1000)}
    begun, queued = threading.Event(), threading.Event()

    def watched(socket: object, steps: Sequence[object], indexes: dict[str, int]) -> object:
        begun.set()
        queued.wait(5)
        counter.order.append(len(steps))
        return execute(socket, steps, indexes)  # type: ignore[arg-type]

    monkeypatch.setattr("datapath.sync.execute", watched)
    writer.attend(counter)
    bulk = asyncio.create_task(writer.apply(many))
    await asyncio.to_thread(begun.wait, 5)
    counter.come(2)
    queued.set()
    assert (await bulk).steps == 1000
    assert counter.order[:3] == [CHUNK, "request", "request"]


async def test_what_was_overheard_is_told_after_the_request(writer: Writer, counter: Counter) -> None:
    news = os.eventfd(0, os.EFD_NONBLOCK)
    told = asyncio.Event()

    def hear() -> None:
        counter.order.append("news")
        told.set()

    def serve(kernel: Kernel) -> bool:
        more = Counter.serve(counter, kernel)
        if more:
            os.eventfd_write(news, 1)
            # The loop has nothing else to do meanwhile: it would hear of it at once.
            time.sleep(0.05)
            counter.order.append("answer")
        return more

    counter.serve = serve  # type: ignore[method-assign]
    writer.attend(counter)
    writer.overhear(news, hear)
    try:
        counter.come(2)
        async with asyncio.timeout(5):
            await told.wait()
        assert counter.order == ["request", "answer", "request", "answer", "news"]
        told.clear()
        os.eventfd_read(news)
        writer.overhear(news, hear)
        os.eventfd_write(news, 1)
        async with asyncio.timeout(5):
            await told.wait()
    finally:
        writer.ignore(news)
        os.close(news)


async def test_a_change_that_came_before_a_request_is_known_to_it(writer: Writer, counter: Counter) -> None:
    key = ("x",)
    await writer.apply({key: Fragment((route(1),))})
    found: list[object] = []

    def serve(kernel: Kernel) -> bool:
        found.append(kernel._sync.fragments().get(key))
        return Counter.serve(counter, kernel)

    counter.serve = serve  # type: ignore[method-assign]
    writer.attend(counter)
    await asyncio.sleep(0.05)
    found.clear()
    counter.come()
    writer.offer({key: None})
    assert await asyncio.to_thread(counter.served.wait, 5)
    await asyncio.sleep(0.05)
    assert found[-1] is None


async def test_one_refused_object_stops_no_other_and_is_retried(
    writer: Writer, host: Space, refusals: list[Mapping[str, str]]
) -> None:
    bad = Route(bytes((10, 9, 9, 0)), 24, "eth0", source=bytes((203, 0, 113, 7)))
    applied = await writer.apply({("x",): Fragment((route(1), bad, route(2)))})
    assert len(applied.failures) == 1
    ((words, error),) = applied.failures.items()
    assert words == "route 10.9.9.0/24 dev eth0 src 203.0.113.7"
    assert "EINVAL" in error
    await asyncio.sleep(0)
    assert refusals == [applied.failures]
    assert len(host.run("ip", "route", "show", "proto", "119").splitlines()) == 2
    host.ip("addr add 203.0.113.7/32 dev eth0")

    async def recovered() -> bool:
        return refusals[-1] == {}

    await until(recovered, within=3)
    assert await writer.difference() == ()


async def test_what_needs_a_link_that_is_not_there_waits_without_a_word(
    writer: Writer, host: Space, refusals: list[Mapping[str, str]]
) -> None:
    applied = await writer.apply({("x",): Fragment((route(1, "eth7"), route(2)))})
    assert applied.failures == {}
    host.ip("link add eth7 type veth peer name far7", "link set far7 up", "link set eth7 up")
    drift = await writer.resync("test")
    assert drift.failures == {}
    assert "10.0.1.0/24 dev eth7" in host.run("ip", "route", "show", "proto", "119")
    assert refusals == []


async def test_a_setting_that_can_not_be_written_is_named(writer: Writer) -> None:
    applied = await writer.apply({("x",): Fragment((Sysctl("net/ipv4/no_such_thing", "1"),))})
    assert "does not exist" in applied.failures["sysctl net/ipv4/no_such_thing = 1"]


async def test_a_reading_that_fails_is_repeated(
    writer: Writer, host: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces, left = Observer.pieces, [3]

    def failing(*arguments: object) -> Iterator[None]:
        yield
        if left[0]:
            left[0] -= 1
            raise NetlinkOverrunError("dropped")
        yield from pieces(*arguments)  # type: ignore[arg-type]

    await writer.apply({("x",): Fragment((route(1),))})
    host.ip("route flush proto 119")
    monkeypatch.setattr(Observer, "pieces", failing)
    drift = await writer.resync("test")
    assert [each.object for each in drift.differences] == ["10.0.1.0/24 dev eth0"]
    assert left == [0]


async def test_a_reading_that_never_succeeds_is_told(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> Iterator[None]:
        raise NetlinkOverrunError("dropped")

    monkeypatch.setattr("datapath.writer.READING_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(Observer, "pieces", failing)
    with pytest.raises(NetlinkOverrunError):
        await writer.resync("test")
    monkeypatch.undo()
    assert (await writer.resync("test")).differences == ()


async def test_pods_are_attached_with_elements_and_nothing_remains_of_a_failure(
    writer: Writer, host: Space
) -> None:
    pod = space("pod")
    try:
        wanted = request(pod)
        await writer.attachment(lambda kernel: kernel.attach(wanted))
        listed = host.run("nft", "list", "set", "ip", TABLE, SOURCES)
        assert f'"{wanted.host_link}" . 10.244.1.10' in listed
        assert await writer.difference() == ()
        with pytest.raises(NamespaceGoneError):
            await writer.attachment(lambda kernel: kernel.attach(replace(wanted, netns="/run/netns/none")))
        second = request(pod, 11)
        with pytest.raises(AttachError):
            await writer.attachment(lambda kernel: kernel.attach(second))
        assert second.host_link not in host.run("nft", "list", "ruleset") + host.run("ip", "link")
    finally:
        pod.close()


def detach(known: Attachment, kernel: Kernel) -> None:
    kernel.detach(known)


def counted(monkeypatch: pytest.MonkeyPatch, refuse: int) -> list[int]:
    """Have commits counted from now on, and the one of that number refused; their numbers of messages."""
    commits: list[int] = []

    def commit(self: Nft, messages: Sequence[Message], action: str, *, generation: int | None = None) -> None:
        commits.append(len(messages))
        if len(commits) == refuse:
            raise NetlinkError(errno.EBUSY, action)
        COMMIT(self, messages, action)

    monkeypatch.setattr(Nft, "commit", commit)
    return commits


async def test_pods_that_are_expected_get_their_elements_together(
    writer: Writer, host: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    pods = [space(f"pod{number}") for number in range(3)]
    try:
        for refuse in (0, 1):
            commits = counted(monkeypatch, refuse)
            wanted = [request(pod, 20 + number) for number, pod in enumerate(pods)]

            def job(kernel: Kernel, wanted: list[AttachRequest] = wanted) -> None:
                kernel.expect(wanted)
                for each in wanted:
                    kernel.attach(each)

            await writer.attachment(job)
            listed = host.run("nft", "list", "set", "ip", TABLE, SOURCES)
            assert all(f'"{each.host_link}" . ' in listed for each in wanted)
            assert len(commits) == 1 or refuse
            assert await writer.difference() == ()
            for each in wanted:
                known = Attachment(*(getattr(each, name) for name in REMEMBERED))
                await writer.attachment(partial(detach, known))
    finally:
        for pod in pods:
            pod.close()


async def test_a_pod_that_fails_takes_no_other_along_even_if_all_is_read_again(
    writer: Writer, host: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    pods = [space(f"pod{number}") for number in range(3)]
    commits = counted(monkeypatch, refuse=2)
    try:
        wanted = [request(pod, 20 + number) for number, pod in enumerate(pods)]
        wanted[1] = replace(wanted[1], netns="/run/netns/none")

        def job(kernel: Kernel) -> None:
            kernel.expect(wanted)
            kernel.attach(wanted[0])
            with pytest.raises(NamespaceGoneError):
                kernel.attach(wanted[1])
            kernel.attach(wanted[2])

        await writer.attachment(job)
        assert len(commits) > 2
        listed = host.run("nft", "list", "set", "ip", TABLE, SOURCES)
        assert [each.host_link in listed for each in wanted] == [True, False, True]
        assert await writer.difference() == ()
    finally:
        for pod in pods:
            pod.close()


async def test_detaching_leaves_nothing_and_may_be_repeated(writer: Writer, host: Space) -> None:
    pod = space("pod")
    try:
        wanted = request(pod)
        known = Attachment(*(getattr(wanted, name) for name in REMEMBERED))
        await writer.attachment(lambda kernel: kernel.attach(wanted))
        assert await writer.attachment(lambda kernel: kernel.inspect(known)) == ()
        assert (await writer.attachment(lambda kernel: kernel.detach(known))).found
        assert "10.244.1.10" not in host.run("ip", "route") + host.run("nft", "list", "ruleset")

        async def reaped() -> bool:
            return wanted.host_link not in host.run("ip", "link")

        await until(reaped, within=2)
        assert not (await writer.attachment(lambda kernel: kernel.detach(known))).found
        assert await writer.difference() == ()
    finally:
        pod.close()


async def test_a_pod_that_is_detached_right_after_its_adoption_stays_detached(host: Space) -> None:
    made = Writer(namespace=host.descriptor)
    gone = Attachment(
        "weft0000000000a", "/run/netns/none", "eth0", bytes(6), 1450, (bytes((10, 244, 1, 10)),)
    )
    async with running(made.run()):
        await made.adopt({attachment_key(gone.host_link): attachment_fragment(gone, NODE)})
        await made.attachment(lambda kernel: kernel.detach(gone))
        await made.apply({("local",): BASE}, complete=True)
        await made.resync("start")
        assert await made.difference() == ()
        assert "10.244.1.10" not in host.run("nft", "list", "ruleset")


async def test_pods_routes_follow_the_nodes_address(writer: Writer, host: Space) -> None:
    pod = space("pod")
    try:
        await writer.attachment(lambda kernel: kernel.attach(request(pod)))
        host.ip("addr add 192.168.7.9/24 dev eth0")
        await writer.apply({}, sources=(parse_address("192.168.7.9"), NODE[1]))
        assert "src 192.168.7.9" in host.run("ip", "route", "show", "10.244.1.10")
        assert await writer.difference() == ()
    finally:
        pod.close()


async def test_pods_can_be_attached_while_nftables_refuses_bulk(
    writer: Writer, host: Space, monkeypatch: pytest.MonkeyPatch, refusals: list[Mapping[str, str]]
) -> None:
    commit = Nft.commit

    def refusing(self: Nft, messages: object, action: str, **more: object) -> None:
        raise NetlinkError(12, action)

    monkeypatch.setattr(Nft, "commit", refusing)
    elements = SetElements((2, TABLE), NODES, {bytes((192, 168, 7, 2)): b""})
    applied = await writer.apply({("sets",): Fragment(elements=(elements,))})
    assert "ENOMEM" in applied.failures["nftables"]
    monkeypatch.setattr(Nft, "commit", commit)

    async def recovered() -> bool:
        return bool(refusals) and refusals[-1] == {}

    await until(recovered, within=3)
    assert "192.168.7.2" in host.run("nft", "list", "set", "ip", TABLE, NODES)


async def test_a_foreign_flush_between_does_not_fail_an_attach(writer: Writer, host: Space) -> None:
    pod = space("pod")
    try:
        host.run("nft", "flush", "ruleset")
        await writer.attachment(lambda kernel: kernel.attach(request(pod)))
        assert "10.244.1.10" in host.run("nft", "list", "set", "ip", TABLE, SOURCES)
        await writer.resync("test")
        assert await writer.difference() == ()
    finally:
        pod.close()


async def test_difference_changes_nothing_and_names_everything(writer: Writer, host: Space) -> None:
    await writer.apply({("x",): Fragment((route(1), route(2)))})
    host.ip("route del 10.0.1.0/24", "route replace 10.0.2.0/24 dev lo proto 119")
    host.ip("route add 10.0.3.0/24 dev eth0 proto 119")
    host.run("nft", "flush", "chain", "ip", "weft", "egress")
    before = host.run("ip", "route") + host.run("nft", "list", "ruleset")
    found = {" ".join(each) for each in await writer.difference()}
    assert found == {
        "route missing 10.0.1.0/24 dev eth0",
        "route changed 10.0.2.0/24 dev eth0 (found: 10.0.2.0/24 dev lo)",
        "route stale 10.0.3.0/24 dev eth0",
        "nft changed rules of chain ip weft egress",
    }
    assert host.run("ip", "route") + host.run("nft", "list", "ruleset") == before


async def test_what_waits_is_done_before_the_writer_stops(host: Space) -> None:
    made = Writer(namespace=host.descriptor)
    many: dict[FragmentKey, Fragment | None] = {
        ("node", str(number)): Fragment((route(number, None),)) for number in range(500)
    }
    async with running(made.run()):
        await made.adopt({})
        waiting = asyncio.create_task(made.apply(many, complete=True))
        await asyncio.sleep(0)
    assert (await waiting).failures == {}
    assert len(host.run("ip", "route", "show", "proto", "119").splitlines()) == 500
    with pytest.raises(StoppedError):
        await made.apply({})
    with pytest.raises(StoppedError):
        await made.attachment(lambda _: None)


async def test_a_writer_that_can_not_start_says_so() -> None:
    made = Writer(namespace=-1)
    with pytest.raises(NamespaceError):
        await made.run()
    with pytest.raises(StoppedError):
        await made.apply({})


def test_a_fragment_of_an_attachment_names_link_and_addresses() -> None:
    made = attachment_fragment(
        Attachment("weft0123456789a", "/run/netns/x", "eth0", bytes(6), 1450, (bytes((10, 0, 0, 1)),)), NODE
    )
    assert [value.name for value in made.elements] == [SOURCES]
    assert Neighbour not in {type(value) for value in made.objects}
