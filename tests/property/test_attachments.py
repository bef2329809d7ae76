"""Attachments as a state machine: ADD, DEL, dying sandboxes, and kills between any two steps.

The kernel is a fake that keeps what was done before the kill; the database is the real one, reopened or lost.
After each start everything must fit again.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from daemon.cni.attachments import Attachments, Request
from daemon.cni.errors import CniError, Code
from daemon.cni.naming import names
from ipam.allocator import Allocator
from ipam.errors import ExhaustedError, PortTakenError, StoreError
from ipam.pool import Pool
from ipam.ports import PortMapping, claims
from ipam.record import AttachmentKey, State
from ipam.store import Store
from tests.unit.daemon.cni.fakes import FakeKernel

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ipam.ports import Claim

POOLS = (Pool(bytes((10, 0, 0, 0)), 28), Pool(b"\xfd" + bytes(15), 64))
SIZE = POOLS[0].size
SECOND = 1_000_000_000
SANDBOXES = 20
numbers = st.integers(0, SANDBOXES - 1)
steps = st.integers(0, 14)


def exposed(number: int) -> tuple[PortMapping, ...]:
    """The host ports that a sandbox asks for: some none, some several, many the same."""
    web, dns = PortMapping(b"", 6, 80 + number % 3, 80), PortMapping(bytes(16), 17, 53, 53)
    return ((), (), (web,), (web, dns), (dns,))[number % 5]


def claimed(ports: Iterable[PortMapping]) -> set[Claim]:
    return set(claims(ports, (4, 16)))


class Killed(BaseException):
    """The daemon was killed."""


class Database:
    """A connection that dies at a step, before the step's statement is done."""

    def __init__(self, real: Any, step: Any) -> None:
        self.real = real
        self.step = step

    def execute(self, *arguments: Any) -> Any:
        self.step()
        return self.real.execute(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class Node(RuleBasedStateMachine):
    """One node. `told` is what the runtime was told of each attachment, and so may rely on."""

    @initialize()
    def boot(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="weft-property-")
        self.boots = 0
        self.now = SECOND
        self.fuse = -1
        self.disk_is_full = False
        self.serial = 0
        self.kernel = FakeKernel(step=self.step)
        self.sandboxes: dict[int, tuple[str, AttachmentKey]] = {}
        self.told: dict[AttachmentKey, tuple[bytes, ...]] = {}
        self.wanted: dict[AttachmentKey, tuple[PortMapping, ...]] = {}
        self.unsure: set[AttachmentKey] = set()
        self.start()

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            self.store.close()
            shutil.rmtree(self.directory)

    def step(self) -> None:
        if self.fuse == 0:
            raise Killed
        self.fuse -= 1

    def statement(self) -> None:
        self.step()
        if self.disk_is_full:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error

    @property
    def path(self) -> str:
        return os.path.join(self.directory, "state.db")

    def start(self) -> None:
        """What the daemon does when it starts, in its order."""
        self.fuse = -1
        self.disk_is_full = False
        self.store = Store(self.path, boot=f"boot-{self.boots}", clock=lambda: self.now)
        self.store._database = Database(self.store._database, self.statement)  # type: ignore[assignment]
        self.attachments = Attachments(Allocator(self.store, cooldown=30), lives=self.kernel.lives)
        assert self.attachments.adopt(self.kernel) == ()
        collected = self.attachments.collect(self.kernel)
        assert collected.problems == []
        assert collected.broken == []
        assert all(record.state is State.ATTACHED for record in self.attachments.ipam.records())

    def restart(self) -> None:
        self.fuse = -1
        self.store._database.real.close()  # type: ignore[attr-defined]
        self.start()

    def run(self, fuse: int, work: Any, *, lost: bool = False) -> bool:
        """Do something with the daemon killed after so many steps; whether it got to the end."""
        self.fuse = fuse
        try:
            work()
        except Killed:
            if lost:
                self.lose_the_database()
            else:
                self.restart()
            return False
        finally:
            self.fuse = -1
        return True

    def sandbox(self, number: int) -> tuple[str, AttachmentKey]:
        """The sandbox of a number, made when there is none: each has a container id of its own."""
        if number not in self.sandboxes:
            self.serial += 1
            netns = f"/run/netns/{number}-{self.serial}"
            self.kernel.namespaces.add(netns)
            key = AttachmentKey("weft", f"c{self.serial}", "eth0")
            self.sandboxes[number], self.wanted[key] = (netns, key), exposed(number)
        return self.sandboxes[number]

    @rule(
        chosen=st.lists(numbers, min_size=1, max_size=5),
        fuse=st.one_of(st.just(-1), st.integers(0, 40)),
        lost=st.booleans(),
        settled=st.booleans(),
    )
    def add(self, chosen: list[int], fuse: int, lost: bool, settled: bool) -> None:
        """Several at once, as they wait in a burst."""
        asked = [self.sandbox(number) for number in chosen]
        asked = [(netns, key) for netns, key in asked if key not in self.told]
        if not asked:
            return

        def work() -> None:
            requests = [
                Request(key, netns, POOLS, (), 1450, ("", "", ""), ports=self.wanted[key])
                for netns, key in asked
            ]
            for request, outcome in zip(
                requests, self.attachments.add_all(self.kernel, requests), strict=True
            ):
                if isinstance(outcome, ExhaustedError):
                    assert len(self.attachments.ipam.records()) == SIZE
                elif isinstance(outcome, PortTakenError):
                    # Of the dead it is taken; one of the same group may hold it and fail afterwards.
                    known = self.told.keys() | self.unsure | {key for _, key in asked}
                    assert outcome.holder.key in known
                    assert claimed(outcome.holder.ports) & claimed(request.ports)
                elif isinstance(outcome, CniError):
                    assert outcome.code is Code.ALREADY_ATTACHED
                    assert request.key in self.unsure or request.key in self.told
                elif isinstance(outcome, Exception):
                    raise outcome
                else:
                    self.told[request.key] = outcome.record.addresses
                    self.unsure.discard(request.key)
            if settled:
                self.attachments.settle(self.kernel)

        if not self.run(fuse, work, lost=lost):
            # Nobody was told whether it was done. The runtime deletes it, sooner or later or never.
            self.unsure.update(key for _, key in asked if key not in self.told)

    @rule(fuse=st.one_of(st.just(-1), st.integers(0, 3)), full=st.booleans())
    def settle(self, fuse: int, full: bool) -> None:
        """What came behind an answer comes late, or finds a full disk."""
        self.disk_is_full = full

        def work() -> None:
            with suppress(StoreError):
                self.attachments.settle(self.kernel)

        self.run(fuse, work)
        self.disk_is_full = False

    @rule(number=numbers, fuse=st.one_of(st.just(-1), steps))
    def delete(self, number: int, fuse: int) -> None:
        if number not in self.sandboxes:
            return
        _, key = self.sandboxes[number]
        self.told.pop(key, None)
        self.unsure.add(key)
        if self.run(fuse, lambda: self.attachments.delete(self.kernel, key)):
            self.unsure.discard(key)
            assert self.attachments.ipam.get(key) is None
            assert names(key)[0] not in self.kernel.table

    @rule(number=numbers)
    def delete_again(self, number: int) -> None:
        """A late DEL for a sandbox that is long gone takes nothing from the one that followed it."""
        self.attachments.delete(
            self.kernel, AttachmentKey("weft", f"c{max(0, self.serial - 30) - number}", "eth0")
        )

    @rule(number=numbers)
    def sandbox_dies(self, number: int) -> None:
        """Without a DEL, as runtimes do it."""
        if number in self.sandboxes:
            netns, key = self.sandboxes.pop(number)
            self.kernel.remove_namespace(netns)
            self.told.pop(key, None)
            self.unsure.discard(key)

    @rule(fuse=st.one_of(st.just(-1), steps))
    def collect(self, fuse: int) -> None:
        self.run(fuse, lambda: self.attachments.collect(self.kernel))

    @rule()
    def crash(self) -> None:
        self.restart()

    @rule()
    def lose_the_database(self) -> None:
        self.fuse = -1
        self.store._database.real.close()  # type: ignore[attr-defined]
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.unlink(self.path + suffix)
        self.start()

    @precondition(lambda self: self.boots < 2)
    @rule()
    def reboot(self) -> None:
        self.boots += 1
        self.sandboxes.clear()
        self.told.clear()
        self.unsure.clear()
        self.kernel.namespaces.clear()
        self.kernel.table.clear()
        self.restart()
        assert self.attachments.ipam.records() == ()

    @rule(seconds=st.integers(0, 100))
    def wait(self, seconds: int) -> None:
        self.now += seconds * SECOND

    @invariant()
    def what_the_runtime_was_told_holds(self) -> None:
        if not hasattr(self, "store"):
            return
        for key, addresses in self.told.items():
            record = self.attachments.ipam.get(key)
            assert record is not None
            assert record.state is State.ATTACHED
            assert set(record.addresses) == set(addresses)
            assert set(self.kernel.table[names(key)[0]].addresses) == set(addresses)

    @invariant()
    def no_address_is_held_twice(self) -> None:
        if not hasattr(self, "store"):
            return
        for holders in (self.attachments.ipam.records(), tuple(self.kernel.table.values())):
            addresses = [address for holder in holders for address in holder.addresses]
            assert len(addresses) == len(set(addresses))
        held = {address for record in self.attachments.ipam.records() for address in record.addresses}
        assert held.isdisjoint(self.store.released)

    @invariant()
    def host_ports_lead_to_who_was_told_so(self) -> None:
        """And to nobody else: the fake kernel refuses two that hold one."""
        if not hasattr(self, "store"):
            return
        leads = self.kernel.host_ports()
        for key, addresses in self.told.items():
            record = self.attachments.ipam.get(key)
            assert record is not None
            assert claimed(record.ports) == claimed(self.wanted[key])
            found = {PortMapping(*port) for address in addresses for port in leads.get(address, ())}
            assert claimed(found) == claimed(self.wanted[key])

    @invariant()
    def no_link_is_without_a_record(self) -> None:
        if not hasattr(self, "store"):
            return
        known = {record.host_link for record in self.attachments.ipam.records()}
        assert set(self.kernel.table) <= known
        for record in self.attachments.ipam.records():
            link = self.kernel.table.get(record.host_link)
            assert link is None or (set(link.addresses), link.group) == (set(record.addresses), 0)

    @rule()
    def nothing_leaks(self) -> None:
        """After a collection only what the runtime was told of is held."""
        self.attachments.collect(self.kernel)
        held = {record.key for record in self.attachments.ipam.records()}
        assert set(self.told) <= held <= set(self.told) | self.unsure


TestNode = Node.TestCase
TestNode.settings = settings(
    max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
