"""The loop of policies with a writer that only takes notes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from daemon import policing, policyblame
from daemon.cluster.decode_pods import pod as decode_pod
from daemon.cluster.decode_policies import network_policy
from daemon.cluster.store import Store
from daemon.compile.policy_tables import TABLES
from daemon.findings import Findings
from daemon.policing import Policing
from datapath.errors import NetlinkError, NetlinkOverrunError
from datapath.kernel import birth_key
from datapath.policy import Direction, Rules
from datapath.writer import StoppedError
from ipam.record import AttachmentKey, Record, State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from datapath.desired import Fragment, FragmentKey
    from datapath.errors import DatapathError
    from datapath.nft.plan import Transaction

    Changes = Mapping[FragmentKey, Fragment | None]
    Refused = Callable[..., contextlib.AbstractAsyncContextManager[None]]

SUBJECT = ("policy", "subject", "weft1")
PEERS: dict[str, Any] = {"ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}]}


class FakeWriter:
    """Takes what a writer takes."""

    def __init__(self) -> None:
        self.offered: list[Changes] = []
        self.applied: list[Changes] = []
        self.fail: list[Exception] = []
        self.unacceptable: list[str] = []
        self.trials = 0
        self.resyncs: list[str] = []

    def offer(self, changes: Changes) -> None:
        self.offered.append(dict(changes))

    async def query(self, question: Callable[[Any], Any]) -> Any:
        self.trials += 1
        writer = self

        class Ruleset:
            def attempt(self, trial: Transaction) -> DatapathError | None:
                text = repr(trial.messages)
                bad = [each for each in writer.unacceptable if each in text]
                return NetlinkError(22, f"refused: {bad[0]}") if bad else None

        class Sync:
            ruleset = Ruleset()

        return question(Sync())

    async def resync(self, reason: str) -> None:
        self.resyncs.append(reason)

    async def apply(self, changes: Changes) -> None:
        self.applied.append(dict(changes))
        await asyncio.sleep(0)
        if self.fail:
            raise self.fail.pop(0)


class FakeDemand:
    def __init__(self) -> None:
        self.wanted = False

    def want(self, wanted: bool) -> None:
        self.wanted = wanted


class World:
    """Policing with everything around it faked but the store."""

    def __init__(self) -> None:
        self.store = Store()
        self.writer = FakeWriter()
        self.findings = Findings()
        self.demand = FakeDemand()
        self.records: list[Record] = []
        self.told: list[Changes] = []
        self.isolated: list[bool] = []
        self.connect()

    def connect(self) -> None:
        """Make policing anew, which knows nothing then."""
        self.policing = Policing(
            store=self.store,
            writer=self.writer,  # type: ignore[arg-type]
            node_name="here",
            records=lambda: self.records,
            remote_pods=self.demand,  # type: ignore[arg-type]
            findings=self.findings,
            on_applied=self.told.append,
            on_isolation=self.isolated.append,
        )

    def pod(self, **labels: str) -> None:
        raw = {"metadata": {"namespace": "shop", "name": "db", "uid": "u1", "labels": labels}, "spec": {}}
        self.store.pods.put("shop/db", decode_pod(raw))

    def attach(self, state: State = State.ATTACHED, created: float = 1.0) -> None:
        """Have one attachment on record, that of shop/db."""
        key = AttachmentKey("weft", "c1", "eth0")
        addresses = (bytes([10, 244, 1, 11]),)
        self.records = [
            Record(key, "", "weft1", bytes(6), 1500, addresses, "shop", "db", "u1", state, created)
        ]
        self.policing.look()

    def detach(self) -> None:
        self.records = []
        self.policing.look()

    def policy(self, name: str = "shop/p", **spec: Any) -> None:
        namespace, _, own = name.partition("/")
        raw = {"metadata": {"namespace": namespace, "name": own}, "spec": {"podSelector": {}, **spec}}
        self.store.network_policies.put(name, network_policy(raw))

    async def prepare(self) -> None:
        await self.policing.gather()
        await self.policing.prepare()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.prepare()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.policing.run())
            await settle()
            yield
            task.cancel()

    @property
    def latest(self) -> Changes:
        return self.writer.applied[-1]


async def settle() -> None:
    await asyncio.sleep(0.03)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.005)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A node with one pod that is attached and known."""
    monkeypatch.setattr(policing, "GATHER_SECONDS", 0.02)
    found = World()
    found.pod(app="db")
    found.attach()
    return found


async def test_everything_is_offered_before_anything_is_waited_for(world: World) -> None:
    world.policy()
    await world.prepare()
    (offered,) = world.writer.offered
    assert offered[TABLES] is not None
    assert offered[SUBJECT] is not None
    assert world.told == [offered]
    assert not world.writer.applied


async def test_without_policies_nothing_is_said_of_them(world: World) -> None:
    await world.prepare()
    assert world.writer.offered == []


async def test_pods_of_other_nodes_are_waited_for_at_the_start(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel lets in by a policy of before is let in still."""
    monkeypatch.setattr(policing, "GATHER_SECONDS", 10.0)
    world.policy(**PEERS)
    gathering = asyncio.ensure_future(world.prepare())
    await settle()
    assert world.demand.wanted
    assert not gathering.done()
    raw = {"metadata": {"namespace": "shop", "name": "web", "labels": {"app": "web"}}, "spec": {}}
    far = decode_pod({**raw, "status": {"podIPs": [{"ip": "10.244.2.9"}]}})
    world.store.remote_pods.replace({"shop/web": far})
    await gathering
    (offered,) = world.writer.offered
    assert [name for name in offered if name[:2] == ("policy", "set")]


async def test_pods_of_other_nodes_are_not_waited_for_without_need(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policing, "GATHER_SECONDS", 10.0)
    world.policy()
    async with asyncio.timeout(2):
        await world.prepare()
    assert world.writer.offered


async def test_a_policy_comes_and_goes(world: World) -> None:
    async with world.running():
        world.policy()
        await settle()
        assert world.latest[SUBJECT] is not None
        world.store.network_policies.remove("shop/p")
        await settle()
    assert world.latest[SUBJECT] is None
    assert world.latest[TABLES] is None
    assert world.told[-1] == world.latest


async def test_a_pod_is_closed_until_its_own_rules_are_there(world: World) -> None:
    world.detach()
    world.policy()
    async with world.running():
        assert world.policing.birth("shop", "db", "u1") == (Direction.INGRESS,)
        world.attach()
        await settle()
    assert world.latest[birth_key("weft1")] is None
    assert world.latest[SUBJECT] is not None, "the one goes with what takes its place"


async def test_a_second_attachment_of_the_same_link_is_another(world: World) -> None:
    async with world.running():
        world.detach()
        world.attach(created=2.0)
        await settle()
    assert world.writer.applied == [{birth_key("weft1"): None}]


@pytest.mark.parametrize(("state", "isolated"), [(State.PENDING, False), (State.RELEASING, True)])
async def test_a_pod_counts_from_its_attachment_to_the_end_of_it(
    world: World, state: State, isolated: bool
) -> None:
    world.policy()
    world.attach(state)
    await world.prepare()
    assert any(SUBJECT in each for each in world.writer.offered) is isolated


async def test_pods_of_other_nodes_are_asked_for_while_a_policy_needs_them(world: World) -> None:
    async with world.running():
        found = [world.demand.wanted]
        for spec in (PEERS, {}):
            world.policy(**spec)
            await settle()
            found.append(world.demand.wanted)
    assert found == [False, True, False]


async def test_what_is_superfluous_is_swept_a_moment_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policing, "SWEEP_SECONDS", 0.02)
    world.policy(**PEERS)
    async with world.running():
        world.policy()
        await settle()
        await settle()
        assert set(world.latest) == {TABLES}
        count = len(world.writer.applied)
        await settle()
        assert len(world.writer.applied) == count


async def test_a_kernel_that_refuses_is_no_end(world: World) -> None:
    async with world.running():
        world.writer.fail.append(NetlinkOverrunError("the test refuses"))
        world.policy()
        await settle()
        world.store.network_policies.remove("shop/p")
        await settle()
    assert len(world.writer.applied) == 2


async def test_a_writer_that_stops_is_the_end(world: World) -> None:
    await world.prepare()
    world.writer.fail.append(StoppedError("the test stops it"))
    world.policy()
    with pytest.raises(StoppedError):
        await world.policing.run()


async def test_what_is_not_understood_becomes_a_finding(world: World) -> None:
    async with world.running():
        world.policy(ingress=[{"from": [{"ipBlock": {"cidr": "nonsense"}}]}])
        await settle()
        assert [each.name for each in world.findings.rows()] == ["PolicyIncomplete"]
        world.policy()
        await settle()
        assert not world.findings.rows()


async def test_a_policy_that_the_kernel_refuses_is_found_and_allows_nothing(world: World) -> None:
    world.policy("shop/good", ingress=[{}])
    world.policy("shop/bad", ingress=[{}])
    world.writer.unacceptable = ["shop/bad"]
    async with world.running():
        world.policing.refused({"nftables": "refused"})
        await settle()
        assert world.policing.model.refused == {
            ("shop/bad", Direction.INGRESS): world.policing.model.refused["shop/bad", Direction.INGRESS]
        }
        (row,) = world.findings.rows()
        assert (row.name, row.level, row.key) == ("PolicyRefused", "error", "shop/bad")
        assert "refused: shop/bad" in row.message
        assert len(world.writer.resyncs) == 1
        subject = world.policing.model.subjects["weft1"]
        assert subject.ingress == ("shop/bad", "shop/good"), "it isolates all the same"
        # Another version of it is tried again.
        world.policy("shop/bad", ingress=[{"ports": [{"port": 80}]}])
        await settle()
        assert not world.findings.rows()
        assert not world.policing.model.refused


@pytest.fixture
def refused(world: World, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Has the kernel refuse policies, which is asked again soon."""
    monkeypatch.setattr(policyblame, "RETRY_SECONDS", 0.02)

    @contextlib.asynccontextmanager
    async def refuse(*names: str) -> AsyncIterator[None]:
        for name in names:
            world.policy(name, ingress=[{}])
        world.writer.unacceptable = list(names)
        world.connect()
        async with world.running():
            world.policing.refused({"nftables": "refused"})
            await until(lambda: len(world.policing.model.refused) == len(names))
            yield

    return refuse


async def test_what_the_kernel_refused_is_asked_for_again_and_comes_into_force(
    world: World, refused: Refused
) -> None:
    async with refused("shop/bad", "shop/worse"):
        await until(lambda: len(world.findings.rows()) == 2)
        told = len(world.writer.applied)

        # Refused again, it stays out, and the kernel is asked ever more rarely.
        world.writer.trials = 0
        await until(lambda: world.writer.trials > 0)
        await asyncio.sleep(0.2)
        assert world.writer.trials < 4 * 5
        assert len(world.policing.model.refused) == 2
        assert len(world.writer.applied) == told

        world.writer.unacceptable = ["shop/worse"]
        await until(lambda: [each.key for each in world.findings.rows()] == ["shop/worse"])
        assert list(world.policing.model.refused) == [("shop/worse", Direction.INGRESS)]
        assert world.policing.model.rules["shop/bad", Direction.INGRESS] != Rules()
        assert "shop/bad" in repr(world.writer.applied[-1])

        world.writer.unacceptable = []
        await until(lambda: not world.findings.rows())
        assert not world.policing.model.refused


async def test_nothing_is_taken_back_while_the_kernel_refuses_everything(
    world: World, refused: Refused
) -> None:
    async with refused("shop/bad"):
        world.writer.unacceptable = [""]
        trials = world.writer.trials
        await until(lambda: world.writer.trials >= trials + 2)
        assert world.policing.model.refused


async def test_a_refused_policy_that_goes_is_asked_for_no_more(world: World, refused: Refused) -> None:
    async with refused("shop/bad"):
        world.store.network_policies.remove("shop/bad")
        await until(lambda: not world.policing.model.refused and not world.findings.rows())
        trials = world.writer.trials
        await asyncio.sleep(0.1)
        assert world.writer.trials == trials


async def test_what_else_the_kernel_refuses_is_no_policy_s_fault(world: World) -> None:
    world.policy("shop/good", ingress=[{}])
    async with world.running():
        world.policing.refused({"route 10.0.0.0/8": "no"})
        await settle()
        assert world.writer.trials == 0
        world.policing.refused({"nftables": "refused"})
        await settle()
        assert world.writer.trials > 0
        assert not world.policing.model.refused
        assert not world.writer.resyncs


async def test_it_is_told_whether_any_pod_is_isolated(world: World) -> None:
    async with world.running():
        assert not any(world.isolated)
        world.policy()
        await settle()
        assert world.isolated[-1]
        world.store.network_policies.remove("shop/p")
        await settle()
        assert not world.isolated[-1]
