"""A policy that the kernel refuses fails closed alone, and is named; the others are enforced."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any

import pytest

from daemon import policyblame
from daemon.cluster.decode_pods import pod as decode_pod
from daemon.cluster.decode_policies import network_policy
from daemon.cluster.store import Store
from daemon.compile import policy as compiling
from daemon.compile.policy_rules import compile_policy
from daemon.findings import Findings
from daemon.policing import Policing
from datapath.errors import NetlinkError
from datapath.nft.connection import Nft
from datapath.policy import Direction, PortRange, Ports, Rule, Rules
from datapath.writer import Writer
from ipam.record import AttachmentKey, Record, State

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from daemon.cluster.model import NetworkPolicy
    from daemon.compile.policy_rules import CompiledPolicy
    from datapath.netlink.transport import Message
    from tests.functional.nft.spaces import Space
    from tests.functional.policies.site import Site

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

BACKWARDS = Ports((PortRange(6, 90, 80),))
"""A range that ends before it begins, which no kernel takes."""
FAULT = "shop/fault"


@pytest.fixture(autouse=True)
def _miscompile(monkeypatch: pytest.MonkeyPatch) -> None:
    """One policy becomes something that the kernel refuses, for as long as it allows port 80."""

    def compiled(policy: NetworkPolicy) -> CompiledPolicy:
        found = compile_policy(policy)
        if f"{policy.namespace}/{policy.name}" == FAULT and "80" in repr(policy.ingress):
            found.rules[Direction.INGRESS] = Rules((Rule(ports=BACKWARDS),), (Rule(ports=BACKWARDS),))
        return found

    monkeypatch.setattr(compiling, "compile_policy", compiled)


class Node:
    """Policies with a real writer."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.store = Store()
        self.findings = Findings()
        self.reports: list[Mapping[str, str]] = []
        self.writer = Writer(namespace=space.descriptor, report=self.report)
        self.records: list[Record] = []
        self.policing = Policing(
            store=self.store,
            writer=self.writer,
            node_name="here",
            records=lambda: self.records,
            remote_pods=Unwanted(),  # type: ignore[arg-type]
            findings=self.findings,
        )

    def report(self, failures: Mapping[str, str]) -> None:
        self.reports.append(failures)
        self.policing.refused(failures)

    async def start(self, group: asyncio.TaskGroup) -> asyncio.Task[None]:
        """Begin as the daemon does; the kernel has what it takes of all policies together, or nothing."""
        running = group.create_task(self.writer.run())
        await asyncio.sleep(0.1)
        await self.writer.adopt({})
        await self.policing.gather()
        await self.policing.prepare()
        await self.writer.apply({}, complete=True)
        return running

    def pod(self, number: int, name: str) -> None:
        labels = {"app": name}
        raw = {"metadata": {"namespace": "shop", "name": name, "uid": name, "labels": labels}, "spec": {}}
        self.store.pods.put(f"shop/{name}", decode_pod(raw))
        key = AttachmentKey("weft", name, "eth0")
        address = (bytes([10, 9, number, 1]),)
        self.records.append(
            Record(key, "", f"weft{number}", bytes(6), 1500, address, "shop", name, name, State.ATTACHED, 1.0)
        )
        self.policing.look()

    def policy(self, name: str, target: str, *ingress: dict[str, Any]) -> None:
        spec = {"podSelector": {"matchLabels": {"app": target}}, "ingress": list(ingress)}
        raw = {"metadata": {"namespace": "shop", "name": name}, "spec": spec}
        self.store.network_policies.put(f"shop/{name}", network_policy(raw))

    def rules(self) -> str:
        return self.space.run("nft", "list", "ruleset")

    async def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        while not condition():
            assert asyncio.get_running_loop().time() < deadline, self.rules()
            await asyncio.sleep(0.05)

    def named(self) -> list[tuple[str, str]]:
        return [(each.name, each.key) for each in self.findings.rows()]


class Unwanted:
    def want(self, wanted: bool) -> None:
        pass


def port(number: int) -> dict[str, Any]:
    return {"ports": [{"port": number}]}


async def test_one_bad_policy_of_many_at_the_start_and_later(node: Site) -> None:
    made = Node(node.router)
    made.pod(1, "web")
    made.pod(2, "db")
    for number in range(20):
        made.policy(f"p{number}", "web", port(1000 + number))
    made.policy("fault", "db", port(80))
    async with asyncio.TaskGroup() as group:
        tasks = [await made.start(group)]
        assert "weft-policy" not in made.rules(), "the kernel refused all of it together"
        tasks.append(group.create_task(made.policing.run()))
        await made.until(lambda: 'comment "shop/p19"' in made.rules())
        await made.until(lambda: made.named() == [("PolicyRefused", FAULT)])
        assert made.findings.rows()[0].level == "error"
        assert FAULT not in made.rules(), "it allows nothing"
        subject = made.policing.model.subject(bytes([10, 9, 2, 1]))
        assert subject is not None
        assert subject.ingress == (FAULT,), "and isolates all the same"
        assert made.rules().count(" : goto ingress-") == 4, "both pods, in both families"
        assert await made.writer.difference() == (), "the kernel is in line"

        # It is tried again when it is another; others are never held up.
        made.policy("fault", "db", port(81))
        await made.until(lambda: f'comment "{FAULT}"' in made.rules())
        await made.until(lambda: made.named() == [])
        made.policy("fault", "db", port(80))
        made.policy("late", "db", port(2000))
        await made.until(lambda: 'comment "shop/late"' in made.rules() and FAULT not in made.rules())
        await made.until(lambda: made.named() == [("PolicyRefused", FAULT)])
        assert "weft-trial" not in made.rules()
        for task in tasks:
            task.cancel()


async def test_what_was_refused_for_a_while_comes_into_force_by_itself(
    node: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may lack memory, for one."""
    short = [True]
    commit = Nft.commit

    def refuse(self: Nft, messages: Sequence[Message], action: str, **options: Any) -> None:
        if short and any(FAULT.encode() in message.payload for message in messages):
            raise NetlinkError(errno.ENOMEM, action)
        commit(self, messages, action, **options)

    monkeypatch.setattr(Nft, "commit", refuse)
    monkeypatch.setattr(policyblame, "RETRY_SECONDS", 0.2)
    made = Node(node.router)
    made.pod(1, "web")
    made.policy("fault", "web", port(81))
    made.policy("other", "web", port(82))
    async with asyncio.TaskGroup() as group:
        tasks = [await made.start(group)]
        tasks.append(group.create_task(made.policing.run()))
        await made.until(lambda: made.named() == [("PolicyRefused", FAULT)])
        await made.until(lambda: 'comment "shop/other"' in made.rules())
        assert FAULT not in made.rules()
        await asyncio.sleep(0.5)
        assert made.named() == [("PolicyRefused", FAULT)], "it is refused still"

        short.clear()
        await made.until(lambda: f'comment "{FAULT}"' in made.rules())
        await made.until(lambda: made.named() == [])
        assert await made.writer.difference() == ()
        for task in tasks:
            task.cancel()
