"""Records and wiring as one piece: rebuilding and collecting. The verbs are in test_service."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from daemon.cni.attachments import Added, Request, is_namespace
from daemon.cni.naming import names
from datapath import text
from datapath.attachment import DOOMED_GROUP
from datapath.errors import DatapathError
from datapath.nft.hostports import host_port_elements, read_host_ports
from ipam import alias
from ipam.errors import PortTakenError, StoreError
from ipam.pool import Pool
from ipam.ports import PortMapping, write
from ipam.record import AttachmentKey, State
from tests.unit.daemon.cni.fakes import FakeLink

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from pathlib import Path

    from datapath.nft.elements import Range
    from ipam.record import Record
    from tests.unit.daemon.cni.conftest import Node


WEB = {"hostPort": 8080, "containerPort": 80, "protocol": "TCP"}
DNS = {"hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "192.0.2.1"}


def asked(node: Node, number: int, *, netns: str = "") -> Request:
    """What an ADD asks for, for a sandbox that is made; `netns` is another path."""
    pools = (Pool(bytes((10, 244, 1, 0)), 24),)
    node.kernel.namespaces.add(f"/run/netns/{number}")
    return Request(
        node.key(number), netns or f"/run/netns/{number}", pools, (), 1450, ("default", f"p{number}", "")
    )


def refuse(_statements: object) -> None:
    raise StoreError("disk full")


def told(outcomes: list[Added | Exception]) -> list[str]:
    return [
        text.address(each.record.addresses[0]) if isinstance(each, Added) else type(each).__name__
        for each in outcomes
    ]


def test_several_are_attached_and_then_written_with_one_transaction(node: Node) -> None:
    written: list[int] = []
    transaction = node.store._transaction

    def counted(statements: Sequence[Any]) -> None:
        written.append(len(statements))
        transaction(statements)

    node.store._transaction = counted  # type: ignore[method-assign]
    outcomes = node.attachments.add_all(node.kernel, [asked(node, number) for number in range(1, 9)])
    assert told(outcomes) == [f"10.244.1.{number + 1}" for number in range(1, 9)]
    assert written == []
    node.attachments.settle(node.kernel)
    node.attachments.settle(node.kernel)
    assert written == [8]
    assert node.kernel.calls[0] == "expect 8"
    assert {record.state for record in node.allocator.records()} == {State.ATTACHED}
    assert all(isinstance(each, Added) and {"ipam", "nft", "pod"} <= set(each.seconds) for each in outcomes)


def test_where_all_callers_went_away_nothing_is_done(node: Node) -> None:
    assert node.attachments.add_all(node.kernel, []) == []


def test_of_two_at_once_that_want_one_host_port_the_first_gets_it(node: Node) -> None:
    """Neither is taken for dead because it is not wired yet."""
    web = PortMapping(b"", 6, 80, 8080)
    requests = [replace(asked(node, number), ports=(web,)) for number in (1, 2)]
    first, second = node.attachments.add_all(node.kernel, [*requests, asked(node, 3)])[:2]
    assert isinstance(first, Added)
    assert isinstance(second, PortTakenError)
    assert second.holder.key == node.key(1)
    assert {record.key for record in node.allocator.records()} == {node.key(1), node.key(3)}
    assert [len(each.serving) for each in node.stale] == [0]
    # The next one after its death gets it, beside others.
    node.kernel.remove_namespace("/run/netns/1")
    assert all(
        isinstance(each, Added)
        for each in node.attachments.add_all(node.kernel, [requests[1], asked(node, 4)])
    )


def test_what_fails_for_one_does_not_touch_the_others(node: Node) -> None:
    node.attachments.add(node.kernel, asked(node, 1))
    requests = [
        asked(node, 2),
        asked(node, 1),
        asked(node, 3, netns="/run/netns/none"),
        replace(asked(node, 4), key=AttachmentKey("n" * 250, "c4", "eth0")),
        asked(node, 5),
        asked(node, 5),
    ]
    outcomes = node.attachments.add_all(node.kernel, requests)
    assert told(outcomes) == [
        "10.244.1.3",
        "CniError",
        "NamespaceGoneError",
        "CniError",
        "10.244.1.6",
        "CniError",
    ]
    assert {record.key: record.state for record in node.allocator.records()} == {
        node.key(number): State.ATTACHED for number in (1, 2, 5)
    }
    assert set(node.kernel.table) == {names(node.key(number))[0] for number in (1, 2, 5)}


def test_what_was_answered_survives_a_kill_before_it_is_written(node: Node) -> None:
    requests = [asked(node, 1), replace(asked(node, 2), ports=(PortMapping(b"", 6, 80, 8080),))]
    assert told(node.attachments.add_all(node.kernel, requests)) == ["10.244.1.2", "10.244.1.3"]
    before = node.allocator.records()
    node.restart()
    assert node.allocator.records() == ()
    assert node.attachments.adopt(node.kernel) == ()
    found = node.attachments.collect(node.kernel)
    assert (found.confirmed, found.released, found.orphans, found.problems) == ([], [], [], [])
    assert [alike(record) for record in node.allocator.records()] == [alike(record) for record in before]
    node.attachments.tell_flows()
    assert len(node.stale) == 1, "flows to its host port are told of at a start"
    assert told(node.attachments.add_all(node.kernel, [asked(node, 3)])) == ["10.244.1.4"]
    node.restart()
    assert node.attachments.adopt(node.kernel) == ()
    assert len(node.allocator.records()) == 3


def alike(record: Record) -> Record:
    """A record but for the protocol's wildcard address, which nftables spells out."""
    ports = tuple(each._replace(host_address=each.host_address or bytes(4)) for each in record.ports)
    return replace(record, ports=ports)


def test_what_was_half_done_by_a_daemon_that_is_killed_is_undone(node: Node) -> None:
    node.attachments.add(node.kernel, asked(node, 1))
    link = node.link(1)
    assert link is not None
    link.alias = ""
    node.restart()
    assert node.attachments.adopt(node.kernel) == ()
    found = node.attachments.collect(node.kernel)
    assert (found.orphans, found.released) == ([link.name], [])
    assert (node.allocator.records(), node.kernel.table) == ((), {})


def test_a_link_that_bears_anothers_address_is_not_adopted(node: Node) -> None:
    node.attachments.add(node.kernel, asked(node, 1))
    node.attachments.settle(node.kernel)
    node.attachments.add(node.kernel, asked(node, 2))
    link = node.link(2)
    assert link is not None
    link.alias = link.alias.replace("10.244.1.3", "10.244.1.2")
    node.restart()
    (problem,) = node.attachments.adopt(node.kernel)
    assert "10.244.1.2 is held by weft/c1/eth0" in problem
    assert node.attachments.collect(node.kernel).orphans == [link.name]
    assert [record.key for record in node.allocator.records()] == [node.key(1)]


def written_early(node: Node) -> None:
    """What an earlier version wrote before it acted, and what a repair of the file may find."""
    node.attachments.add(node.kernel, asked(node, 1))
    node.store.set_state(node.key(1), State.PENDING)


def test_what_is_pending_on_record_and_wired_is_confirmed(node: Node) -> None:
    written_early(node)
    node.restart()
    assert node.attachments.adopt(node.kernel) == ()
    found = node.attachments.collect(node.kernel)
    assert [record.key for record in found.confirmed] == [node.key(1)]
    assert (found.released, found.orphans, found.problems) == ([], [], [])
    node.restart()
    assert [record.state for record in node.allocator.records()] == [State.ATTACHED]
    assert node.attachments.collect(node.kernel).confirmed == []


@pytest.mark.parametrize("left", ["no link", "a link without alias", "a link with another's alias"])
def test_what_is_pending_on_record_and_not_wired_to_the_end_is_undone(node: Node, left: str) -> None:
    written_early(node)
    link = node.link(1)
    assert link is not None
    if left == "no link":
        del node.kernel.table[link.name]
    else:
        link.alias = "" if left == "a link without alias" else link.alias.replace("10.244.1.2", "10.244.1.9")
    node.restart()
    assert node.attachments.adopt(node.kernel) == ()
    found = node.attachments.collect(node.kernel)
    assert [reason for _, reason in found.released] == ["its ADD was interrupted"]
    assert (node.allocator.records(), node.kernel.table) == ((), {})


def test_what_a_living_process_gave_up_is_undone_whatever_its_link_says(node: Node) -> None:
    """Its ADD was told that it failed, so nobody counts on it."""
    written_early(node)
    found = node.attachments.collect(node.kernel)
    assert [reason for _, reason in found.released] == ["its ADD was interrupted"]


def test_an_add_that_is_repeated_before_its_confirmation_is_written_is_attached(node: Node) -> None:
    node.attachments.add(node.kernel, asked(node, 1))
    assert told(node.attachments.add_all(node.kernel, [asked(node, 1)])) == ["CniError"]
    node.restart()
    assert node.attachments.adopt(node.kernel) == ()
    assert told(node.attachments.add_all(node.kernel, [asked(node, 1)])) == ["CniError"]
    assert node.link(1) is not None


def test_a_del_may_come_before_the_confirmation_is_written(node: Node) -> None:
    node.attachments.add(node.kernel, asked(node, 1))
    node.attachments.delete(node.kernel, node.key(1))
    node.attachments.settle(node.kernel)
    node.restart()
    assert node.allocator.records() == ()
    assert len(node.store.released) == 1


def test_a_confirmation_that_cannot_be_written_is_tried_again_and_named(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.attachments.add(node.kernel, asked(node, 1))
    with monkeypatch.context() as patch:
        patch.setattr(node.store, "_write", refuse)
        with pytest.raises(StoreError, match="disk full"):
            node.attachments.settle(node.kernel)
        assert node.attachments.collect(node.kernel).problems == [
            "new attachments can't be written: disk full"
        ]
    assert node.attachments.collect(node.kernel).problems == []
    node.restart()
    assert [record.state for record in node.allocator.records()] == [State.ATTACHED]


class Handover:
    """Stands for datapath.handover's."""

    def __init__(self) -> None:
        self.given_back: list[str] = []
        self.required: list[tuple[list[str], set[Range], list[str]]] = []
        self.failure: Exception | None = None

    def give_back(self, addresses: Iterable[bytes]) -> None:
        self.given_back += map(text.address, addresses)

    def require_clean(
        self,
        addresses: Collection[bytes],
        pools: set[Range],
        held: Callable[[], Iterable[bytes]],
    ) -> None:
        self.required.append(([*map(text.address, addresses)], pools, sorted(map(text.address, held()))))
        if self.failure is not None:
            raise self.failure


def test_addresses_are_clean_before_anything_is_wired(node: Node) -> None:
    handover = Handover()
    node.attachments._handover = handover  # type: ignore[assignment]
    assert told(node.attachments.add_all(node.kernel, [asked(node, each) for each in (1, 2)])) == [
        "10.244.1.2",
        "10.244.1.3",
    ]
    pool = (bytes((10, 244, 1, 2)), bytes((10, 244, 1, 254)))
    both = ["10.244.1.2", "10.244.1.3"]
    assert handover.required == [(both, {pool}, both)]
    node.attachments.delete(node.kernel, node.key(1))
    assert handover.given_back == ["10.244.1.2"]
    node.kernel.calls.clear()
    handover.failure = DatapathError("flows can't be listed")
    assert told(node.attachments.add_all(node.kernel, [asked(node, 3)])) == ["DatapathError"]
    assert not any(each.startswith("attach") for each in node.kernel.calls)
    assert [record.key for record in node.allocator.records()] == [node.key(2)]
    assert handover.given_back == ["10.244.1.2", "10.244.1.4"]
    handover.failure = None
    node.attachments.clean([Pool(bytes((10, 9, 0, 0)), 30), Pool(bytes((10, 9, 0, 9)), 32)])
    span = (bytes((10, 9, 0, 2)), bytes((10, 9, 0, 2)))
    assert handover.required[-1] == ([], {span}, ["10.244.1.3"])


async def test_a_lost_database_is_rebuilt_from_the_aliases(node: Node) -> None:
    for number in (1, 2, 3):
        await node.add(number)
    before = {record.key: record for record in node.allocator.records()}
    await node.ask("DEL", 3)
    for suffix in ("", "-wal", "-shm"):
        os.unlink(f"{node.store.path}{suffix}")
    node.restart()
    assert node.attachments.adopt(node.kernel) == ()
    after = {record.key: record for record in node.allocator.records()}
    assert set(after) == {node.key(1), node.key(2)}
    for key, record in after.items():
        unknown = replace(before[key], pod_uid="", created=record.created)
        assert record == unknown
    # The next ADD takes neither a held address nor the one that was released unnoticed.
    assert (await node.add(4))["ips"][0]["address"] == "10.244.1.4/32"


async def test_host_ports_are_rebuilt_from_the_kernel(node: Node) -> None:
    await node.add(1, runtimeConfig={"portMappings": [WEB, DNS]})
    await node.add(2)
    before = node.kernel.host_ports()
    for suffix in ("", "-wal", "-shm"):
        os.unlink(f"{node.store.path}{suffix}")
    node.restart()
    assert node.attachments.adopt(node.kernel) == ()
    first, second = (node.allocator.get(node.key(number)) for number in (1, 2))
    assert first is not None
    assert second is not None
    assert write(first.ports) == "0.0.0.0:8080->80/tcp,192.0.2.1:53->5353/udp,[::]:8080->80/tcp"
    assert second.ports == ()
    # They are what the next reading of the kernel is compared with.
    wanted = {
        elements.key: elements.elements
        for each in node.attachments.attached()
        for elements in host_port_elements(each.addresses, each.ports)
    }
    assert read_host_ports(wanted) == before
    # And they are held.
    assert (await node.refused("ADD", 3, runtimeConfig={"portMappings": [WEB]}))["code"] == 108


async def test_links_that_only_look_like_ours_are_named_and_not_believed(node: Node) -> None:
    await node.add(1)
    link = node.link(1)
    assert link is not None
    table = node.kernel.table
    table["weft00000000001"] = FakeLink("weft00000000001", ("", ""), alias=link.alias)
    table["weft00000000002"] = FakeLink("weft00000000002", ("", ""), alias="weft1 nonsense")
    table["weft00000000003"] = FakeLink("weft00000000003", ("", ""), alias="")
    table["weft00000000004"] = FakeLink("weft00000000004", ("", ""), alias=link.alias, group=DOOMED_GROUP)
    table["weft.vxlan"] = FakeLink("weft.vxlan", ("", ""), kind="vxlan")
    node.boot = "boot-2"
    node.restart()
    problems = node.attachments.adopt(node.kernel)
    assert len(problems) == 2
    assert "alias of another link" in problems[0]
    assert [record.key for record in node.allocator.records()] == [node.key(1)]


async def test_collecting_leaves_the_living_alone(node: Node) -> None:
    await node.add(1)
    await node.add(2)
    node.kernel.remove_namespace("/run/netns/2")
    # The path can't be seen, but the kernel has the link: it lives.
    node.kernel.namespaces.clear()
    found = node.attachments.collect(node.kernel)
    assert [(record.key, reason) for record, reason in found.released] == [
        (node.key(2), "its network namespace is gone")
    ]
    assert (found.orphans, found.broken, found.problems) == ([], [], [])
    assert node.attachments.collect(node.kernel).released == []


async def test_an_attachment_whose_link_was_removed_is_kept_and_named(node: Node) -> None:
    await node.add(1)
    del node.kernel.table[names(node.key(1))[0]]
    found = node.attachments.collect(node.kernel)
    assert [record.key for record in found.broken] == [node.key(1)]
    assert len(node.allocator.records()) == 1


async def test_interrupted_steps_are_finished_or_undone(node: Node) -> None:
    for number in (1, 2, 3):
        await node.add(number)
    node.store.set_state(node.key(1), State.PENDING)
    node.store.set_state(node.key(2), State.RELEASING)
    found = node.attachments.collect(node.kernel)
    assert {(str(record.key), reason) for record, reason in found.released} == {
        ("weft/c1/eth0", "its ADD was interrupted"),
        ("weft/c2/eth0", "its DEL was interrupted"),
    }
    assert [record.key for record in node.allocator.records()] == [node.key(3)]
    assert set(node.kernel.table) == {names(node.key(3))[0]}


async def test_links_without_a_record_go_and_foreign_ones_stay(node: Node) -> None:
    await node.add(1)
    foreign = {"weft.vxlan": "vxlan", "weft0": "veth", "cali0123456789a": "veth", "weft0123456789a": "dummy"}
    for name, kind in foreign.items():
        node.kernel.table[name] = FakeLink(name, ("", ""), kind=kind)
    node.kernel.table["weft00000000001"] = FakeLink("weft00000000001", ("", ""))
    found = node.attachments.collect(node.kernel)
    assert found.orphans == ["weft00000000001"]
    assert set(node.kernel.table) == {names(node.key(1))[0], *foreign}


async def test_what_cannot_be_collected_now_is_tried_again(node: Node) -> None:
    await node.add(1)
    node.store.set_state(node.key(1), State.PENDING)
    node.kernel.table["weft00000000001"] = FakeLink("weft00000000001", ("", ""))
    node.kernel.broken = "busy"
    found = node.attachments.collect(node.kernel)
    assert len(found.problems) == 2
    assert len(node.allocator.records()) == 1
    node.kernel.broken = ""
    assert len(node.attachments.collect(node.kernel).released) == 1


async def test_complete_attachments_are_what_the_desired_state_gets(node: Node) -> None:
    await node.add(1)
    await node.add(2)
    node.store.set_state(node.key(2), State.RELEASING)
    (attachment,) = node.attachments.attached()
    record = node.allocator.get(node.key(1))
    assert record is not None
    assert (attachment.host_link, attachment.netns, attachment.ifname) == (
        record.host_link,
        "/run/netns/1",
        "eth0",
    )
    assert (attachment.mac, attachment.mtu, attachment.addresses) == (record.mac, 1450, record.addresses)


async def test_the_alias_on_the_link_reads_back(node: Node) -> None:
    await node.add(1)
    link, record = node.link(1), node.allocator.get(node.key(1))
    assert link is not None
    assert record is not None
    assert alias.read(link.alias).addresses == record.addresses


def test_a_namespace_is_told_from_what_is_left_of_one(tmp_path: Path) -> None:
    assert is_namespace("/proc/self/ns/net")
    leftover = tmp_path / "cni-1"
    leftover.touch()
    assert not is_namespace(str(leftover))
    assert not is_namespace(str(tmp_path / "absent"))
    assert not is_namespace("")
