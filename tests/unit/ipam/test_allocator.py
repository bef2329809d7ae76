"""Handing out and taking back addresses."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import pytest

from ipam import allocator as allocator_module
from ipam.allocator import Allocator, Wish
from ipam.errors import DuplicateError, ExhaustedError, PortTakenError, UnknownAttachmentError
from ipam.pool import Pool
from ipam.ports import PortMapping
from ipam.record import AttachmentKey, Record, State
from ipam.store import Store

if TYPE_CHECKING:
    from pathlib import Path

SECOND = 1_000_000_000


def pool(text: str) -> Pool:
    network = ip_network(text)
    return Pool(network.network_address.packed, network.prefixlen)


SMALL = pool("10.0.0.0/29")
DUAL = (pool("10.0.0.0/24"), pool("fd00::/64"))


def key(number: int) -> AttachmentKey:
    return AttachmentKey("weft", f"c{number}", "eth0")


class Bench:
    """An allocator with a clock, and a way to die and come back."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.now = 1000 * SECOND
        self.allocator = self.restart()

    def restart(self) -> Allocator:
        self.store = Store(self.path, boot="b", clock=lambda: self.now)
        self.allocator = Allocator(self.store, cooldown=30)
        return self.allocator

    def add(self, number: int, *pools: Pool) -> tuple[str, ...]:
        record = self.allocator.reserve(
            key(number),
            pools or (SMALL,),
            netns=f"/run/netns/{number}",
            host_link=f"weft{number:011x}",
            mac=bytes(6),
            mtu=1450,
            pod=("default", f"pod-{number}", ""),
        )
        self.allocator.confirm(key(number))
        self.allocator.settle()
        return texts(record)

    def drop(self, number: int) -> tuple[str, ...]:
        self.allocator.begin_release(key(number))
        return texts(self.allocator.release(key(number)))


def texts(record: Record) -> tuple[str, ...]:
    return tuple(str(ip_address(address)) for address in record.addresses)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(str(tmp_path / "state.db"))


def test_an_attachment_gets_one_address_of_each_family_in_the_order_of_the_pools(bench: Bench) -> None:
    assert bench.add(1, *DUAL) == ("10.0.0.2", "fd00::2")
    assert bench.add(2, DUAL[1], DUAL[0]) == ("fd00::3", "10.0.0.3")


def test_the_states_follow_what_was_done(bench: Bench) -> None:
    allocator = bench.allocator
    reserved = allocator.reserve(key(1), DUAL, netns="/n", host_link="weft1", mac=bytes(6), mtu=1)
    assert reserved.state is State.PENDING
    assert reserved.created == pytest.approx(1000)
    assert allocator.confirm(key(1)).state is State.ATTACHED
    assert bench.restart().records() == ()
    allocator.settle()
    assert bench.restart().records()[0].state is State.ATTACHED
    assert allocator.begin_release(key(1)).state is State.RELEASING
    assert bench.restart().records()[0].state is State.RELEASING


def wish(number: int, *pools: Pool, link: int | None = None) -> Wish:
    return Wish(key(number), pools or (SMALL,), "/n", f"weft{link or number:011x}", bytes(6), 1450)


def test_several_are_recorded_at_once_and_each_for_itself(bench: Bench) -> None:
    bench.add(1)
    bench.drop(1)
    bench.now += 3600 * SECOND
    bench.add(2)
    found = bench.allocator.reserve_all([wish(number) for number in (3, 2, 4, 5, 6, 7)])
    given = [texts(each)[0] if isinstance(each, Record) else type(each) for each in found]
    assert given == ["10.0.0.4", DuplicateError, "10.0.0.5", "10.0.0.6", "10.0.0.2", ExhaustedError]
    assert [bench.allocator.confirm(key(each)).state for each in (3, 6)] == [State.ATTACHED] * 2
    bench.allocator.settle()
    states = {record.key: record.state for record in bench.restart().records()}
    assert [states[key(number)] for number in (3, 4, 5, 6)] == [
        State.ATTACHED,
        State.PENDING,
        State.PENDING,
        State.ATTACHED,
    ]
    assert bench.allocator.reserve_all([]) == []


def test_what_the_store_refuses_of_one_does_not_concern_the_others(bench: Bench) -> None:
    found = bench.allocator.reserve_all([wish(1), wish(2, link=1), wish(3)])
    assert [type(each) for each in found] == [Record, DuplicateError, Record]
    bench.allocator.settle()
    assert [texts(each)[0] for each in bench.restart().records()] == ["10.0.0.2", "10.0.0.3"]
    assert bench.add(4) == ("10.0.0.4",)


def test_addresses_are_used_in_turn_before_any_comes_again(bench: Bench) -> None:
    assert [bench.add(number)[0] for number in (1, 2)] == ["10.0.0.2", "10.0.0.3"]
    bench.drop(1)
    bench.now += 3600 * SECOND
    assert [bench.add(number)[0] for number in (3, 4, 5)] == ["10.0.0.4", "10.0.0.5", "10.0.0.6"]
    assert bench.add(6)[0] == "10.0.0.2"


def test_the_longest_released_comes_first_and_pressure_cuts_its_rest_short(bench: Bench) -> None:
    for number in range(1, 6):
        bench.add(number)
    for number in (3, 1):
        bench.drop(number)
        bench.now += SECOND
    assert bench.allocator.usage([SMALL])[0].cooling == 2
    assert bench.add(7)[0] == "10.0.0.4"
    assert bench.add(8)[0] == "10.0.0.2"


def test_order_and_rest_survive_a_restart(bench: Bench) -> None:
    for number in range(1, 6):
        bench.add(number)
    for number in (3, 1):
        bench.drop(number)
    bench.restart()
    assert bench.allocator.usage([SMALL])[0].cooling == 2
    assert [bench.add(7)[0], bench.add(8)[0]] == ["10.0.0.4", "10.0.0.2"]


def test_a_restart_goes_on_where_it_was(bench: Bench) -> None:
    bench.add(1)
    bench.add(2)
    bench.drop(2)
    bench.restart()
    assert bench.add(3)[0] == "10.0.0.4"


def test_exhaustion_names_pool_and_figures(bench: Bench) -> None:
    for number in range(1, 6):
        bench.add(number)
    with pytest.raises(
        ExhaustedError, match=r"no IP addresses available in range 10\.0\.0\.0/29: 5 of 5"
    ) as caught:
        bench.add(6)
    error = caught.value
    assert (error.pool, error.size, error.used, error.cooling) == ("10.0.0.0/29", 5, 5, 0)
    assert len(bench.allocator.records()) == 5


def test_a_family_that_is_exhausted_costs_the_other_nothing(bench: Bench) -> None:
    for number in range(1, 6):
        bench.add(number, SMALL, DUAL[1])
    with pytest.raises(ExhaustedError):
        bench.add(6, SMALL, DUAL[1])
    bench.drop(1)
    assert bench.add(7, SMALL, DUAL[1]) == ("10.0.0.2", "fd00::7")


def test_a_second_pool_of_a_family_serves_when_the_first_is_full(bench: Bench) -> None:
    for number in range(1, 6):
        bench.add(number)
    assert bench.add(6, SMALL, pool("10.0.1.0/24")) == ("10.0.1.2",)


def test_a_pool_without_room_is_exhausted_from_the_start(bench: Bench) -> None:
    with pytest.raises(ExhaustedError, match="0 of 0"):
        bench.add(1, pool("10.0.0.0/31"))


def test_a_changed_pod_cidr_leaves_old_attachments_theirs(bench: Bench) -> None:
    assert bench.add(1, SMALL) == ("10.0.0.2",)
    other = pool("10.9.0.0/24")
    assert bench.add(2, other) == ("10.9.0.2",)
    assert [usage.used for usage in bench.allocator.usage([SMALL, other])] == [1, 1]
    bench.restart()
    assert bench.drop(1) == ("10.0.0.2",)
    # And should the CIDR come back, the address rests there like any other.
    assert bench.add(3, SMALL) == ("10.0.0.3",)


def test_overlapping_pools_never_share_an_address(bench: Bench) -> None:
    wide = pool("10.0.0.0/24")
    assert bench.add(1, SMALL) == ("10.0.0.2",)
    assert bench.add(2, wide) == ("10.0.0.3",)
    assert bench.add(3, SMALL) == ("10.0.0.4",)
    bench.drop(2)
    assert [bench.add(number, SMALL)[0] for number in (4, 5, 6)] == ["10.0.0.5", "10.0.0.6", "10.0.0.3"]


def test_a_huge_pool_reuses_released_addresses_before_it_grows_for_ever(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipam.queue.QUEUE_LIMIT", 4)
    seen = set()
    for number in range(40):
        seen.add(bench.add(number, DUAL[1])[0])
        bench.drop(number)
        bench.now += 60 * SECOND
    assert len(seen) == 4
    assert len(bench.store.released) <= 5


def test_pools_that_change_are_looked_at_anew(bench: Bench) -> None:
    wide = Pool(SMALL.network, SMALL.length - 1)
    assert bench.add(1) == ("10.0.0.2",)
    assert bench.add(2, wide) == ("10.0.0.3",)
    assert bench.add(3) == ("10.0.0.4",)
    bench.drop(2)
    assert bench.add(4, wide) == ("10.0.0.5",)
    # Two that overlap never give one address twice.
    assert bench.add(5, SMALL, wide) == ("10.0.0.6",)
    assert bench.add(6, SMALL, wide) == ("10.0.0.3",)
    assert bench.add(7, SMALL, wide) == ("10.0.0.7",)


def test_pools_may_differ_among_those_that_come_at_once(bench: Bench) -> None:
    wide = Pool(SMALL.network, SMALL.length - 1)
    found = bench.allocator.reserve_all([wish(1), wish(2, wide), wish(3), wish(4, wide)])
    assert [texts(each)[0] for each in found if isinstance(each, Record)] == [
        "10.0.0.2",
        "10.0.0.3",
        "10.0.0.4",
        "10.0.0.5",
    ]


def test_a_key_or_link_is_taken_once(bench: Bench) -> None:
    bench.add(1)
    with pytest.raises(DuplicateError):
        bench.add(1)
    with pytest.raises(DuplicateError):
        bench.allocator.reserve(key(2), [SMALL], netns="", host_link=f"weft{1:011x}", mac=bytes(6), mtu=1)
    assert bench.add(3) == ("10.0.0.3",), "what was refused has taken nothing"


def test_what_is_unknown_can_be_neither_confirmed_nor_released(bench: Bench) -> None:
    for step in (bench.allocator.confirm, bench.allocator.begin_release, bench.allocator.release):
        with pytest.raises(UnknownAttachmentError):
            step(key(9))


def test_restored_attachments_keep_their_addresses_and_the_gaps_rest(bench: Bench) -> None:
    found = [
        Record(key(n), "", f"weft{n:011x}", bytes(6), 1450, (SMALL.address(offset),), state=State.ATTACHED)
        for n, offset in ((1, 5), (2, 3))
    ]
    assert bench.allocator.restore(found) == ()
    # 10.0.0.6 was never used for all we know; .2 and .4 may have been given back a moment ago.
    assert bench.add(3)[0] == "10.0.0.6"
    assert bench.allocator.usage([SMALL])[0].cooling == 2
    assert [bench.add(4)[0], bench.add(5)[0]] == ["10.0.0.2", "10.0.0.4"]


def test_restored_attachments_that_contradict_each_other_are_reported(bench: Bench) -> None:
    first, second = (
        Record(key(n), "", f"weft{n:011x}", bytes(6), 1450, (SMALL.address(5),), state=State.ATTACHED)
        for n in (1, 2)
    )
    problems = bench.allocator.restore([first, second])
    assert len(problems) == 1
    assert "weft/c2/eth0" in problems[0]
    assert [record.key for record in bench.allocator.records()] == [key(1)]


def test_figures_of_a_huge_pool(bench: Bench) -> None:
    bench.add(1, *DUAL)
    bench.add(2, *DUAL)
    bench.drop(1)
    usage = bench.allocator.usage(DUAL)
    assert [(row.used, row.cooling) for row in usage] == [(1, 1), (1, 1)]
    assert usage[1].free == 2**64 - 4
    bench.now += 30 * SECOND
    assert [row.cooling for row in bench.allocator.usage(DUAL)] == [0, 0]


def test_gaps_are_remembered_within_bounds(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator_module, "QUEUE_LIMIT", 8)
    far = Record(key(1), "", "weft1", bytes(6), 1450, (DUAL[1].address(10**6),), state=State.ATTACHED)
    bench.allocator.restore([far])
    bench.add(2, DUAL[1])
    assert len(bench.store.released) == 7


WEB, OTHER_WEB = PortMapping(b"", 6, 80, 8080), PortMapping(b"", 6, 80, 9090)
AT_ONE = PortMapping(bytes((192, 0, 2, 1)), 6, 80, 80)


def expose(bench: Bench, number: int, *ports: PortMapping, pools: tuple[Pool, ...] = DUAL) -> Record:
    return bench.allocator.reserve(
        key(number),
        pools,
        netns=f"/run/netns/{number}",
        host_link=f"weft{number:011x}",
        mac=bytes(6),
        mtu=1450,
        pod=("default", f"pod-{number}", ""),
        ports=ports,
    )


def test_host_ports_are_remembered(bench: Bench) -> None:
    record = expose(bench, 1, WEB, AT_ONE)
    assert record.ports == (WEB, AT_ONE)
    bench.allocator.settle()
    assert bench.restart().get(key(1)) == record
    assert bench.allocator.confirm(key(1)).ports == (WEB, AT_ONE)


def test_a_host_port_is_held_once_and_the_error_names_who_has_it(bench: Bench) -> None:
    expose(bench, 1, WEB)
    with pytest.raises(
        PortTakenError, match=r"80->9090/tcp is held by pod default/pod-1 \(container c1\)"
    ) as got:
        expose(bench, 2, OTHER_WEB)
    assert got.value.holder.key == key(1)
    assert bench.allocator.get(key(2)) is None
    # Nothing was taken for it, so the next one gets the next address.
    assert texts(expose(bench, 3)) == ("10.0.0.3", "fd00::3")
    bench.drop(1)
    expose(bench, 2, OTHER_WEB)


def test_other_protocols_addresses_and_numbers_are_other_ports(bench: Bench) -> None:
    expose(bench, 1, WEB)
    expose(bench, 2, AT_ONE, PortMapping(b"", 17, 80, 80), PortMapping(b"", 6, 81, 80))
    with pytest.raises(PortTakenError, match=r"192.0.2.1:80->80/tcp"):
        expose(bench, 3, AT_ONE)


@pytest.mark.parametrize("length", [4, 16])
def test_all_addresses_of_one_family_are_among_those_of_both(bench: Bench, length: int) -> None:
    expose(bench, 1, PortMapping(bytes(length), 6, 80, 80))
    with pytest.raises(PortTakenError):
        expose(bench, 2, WEB)
    # Of the other family it is free.
    expose(bench, 3, PortMapping(bytes(20 - length), 6, 80, 80))


def test_a_port_of_a_family_that_a_pod_lacks_is_not_held(bench: Bench) -> None:
    assert expose(bench, 1, WEB, pools=DUAL[:1]).ports == (WEB,)
    assert expose(bench, 2, WEB, pools=DUAL[1:]).ports == (WEB,)
