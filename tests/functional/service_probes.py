"""Carries out the table of scenarios (tests/scenarios) in a lab: its pods, its changes, its probes.

What comes out wrong right after a change is asked again until it is right or the time for that is over; then
all of the step is asked once more, and must be right.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from ipaddress import ip_address
from typing import TYPE_CHECKING

from lab.api.patches import strategic
from lab.echo import ask
from lab.errors import ApiError
from lab.underlay import OUTSIDE, set_sysctls
from tests.scenarios.frontends import MissingError, locate
from tests.scenarios.manifests import placed
from tests.scenarios.model import Outcome, Source, Spread, made_by
from tests.scenarios.topology import OLD, PLACES, SPACE, UNREADY, client, namespaces, pods, space_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lab.api.resources import Object
    from lab.underlay import IpAddress
    from tests.functional.lab_cluster import LabCluster
    from tests.scenarios.model import Answer, Client, Probe, Scenario, Step

PARALLEL = 32
CHANGE_SECONDS = 5.0
"""A change has to reach all kernels within this time."""
SETTLE_SECONDS = 0.15
"""What becomes of policies and pods is asked so much later; nearly always it has arrived by then."""
_QUICK = ("Service", "EndpointSlice")
_PATIENCE = {Outcome.ANSWERED: 3.0, Outcome.REFUSED: 3.0, Outcome.DROPPED: 0.4}
_ASKS = 40
"""Of two backends one is missed by so many questions once in 10^12 times."""
_SLOW_ASKS = 16
_STICKY_ASKS = 8


class ServiceCluster:
    """The cluster of tests/scenarios/topology.py on a lab; use within the lab's context."""

    def __init__(self, lab: LabCluster) -> None:
        self.lab = lab
        self._nets: dict[str, int] = {}
        self._addresses: dict[str, dict[int, str]] = {}
        self._tunnels: dict[tuple[int, int], str] = {}
        self._attracted = 0
        self._last: dict[tuple[Client, str, int], str] = {}
        """By client, protocol and family, who answered it last in this scenario."""

    def prepare(self) -> None:
        """Start the pods; make the old ones terminating, and the unready one unready."""
        lab, storage = self.lab, self.lab.cluster.storage
        lab.call(lambda: [lab.cluster.apply(each) for each in (*namespaces(), *pods())])
        lab.run(lab.cluster.wait_ready(60))
        resource = storage.catalogue.named("pods")
        unready = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}

        def change() -> None:
            for name in OLD:
                storage.delete(resource, SPACE, name)
            storage.update(
                resource, SPACE, UNREADY, lambda pod: strategic(pod, unready), subresource="status"
            )

        lab.call(change)
        self._unlimit_refusals()
        for name in PLACES:
            sandbox = lab.call(lambda name=name: lab.cluster.sandbox(space_of(name), name))  # type: ignore[misc]
            self._nets[name] = sandbox.descriptor
            self._addresses[name] = {ip_address(text).version: text for text in sandbox.addresses}
        self._addresses["outside"] = {family: str(address) for family, address in OUTSIDE.items()}
        self._nets["outside"] = lab.cluster.underlay.outside
        for number in range(1, lab.options.nodes + 1):
            node = lab.node(f"node-{number}")
            self._nets[node.name] = node.namespaces.net
            self._addresses[node.name] = {address.version: str(address) for address in node.addresses}
            for cidr in lab.call(lab.cluster.node_objects)[node.name]["spec"]["podCIDRs"]:
                network = cidr.partition("/")[0]
                self._tunnels[number, ip_address(network).version] = network

    def _unlimit_refusals(self) -> None:
        """Let the nodes refuse more than one datagram a second and client: the kernel limits ICMP errors."""
        for node in self.lab.cluster.nodes.values():
            values = {"net.ipv4.icmp_ratelimit": "0", "net.ipv6.icmp.ratelimit": "0"}
            set_sysctls(node.namespaces.net, values)

    def end_pods(self) -> None:
        """Delete the pods without grace."""
        storage = self.lab.cluster.storage
        resource = storage.catalogue.named("pods")
        self.lab.call(lambda: [storage.delete(resource, space_of(name), name, grace=0) for name in PLACES])

    # objects

    def change(self, step: Step) -> None:
        """Make the step's changes through the API's storage."""
        time.sleep(step.wait)
        storage = self.lab.cluster.storage

        def make() -> None:
            for item in step.apply:
                self._put(item)
            for kind, name in step.delete:
                storage.delete(storage.catalogue.named(kind), SPACE, name, grace=0)

        self.lab.call(make)
        # A packet that is dropped is missed for seconds, and one that comes before the change tells nothing.
        if any(kind not in _QUICK for kind in (*(item["kind"] for item in step.apply), *dict(step.delete))):
            time.sleep(SETTLE_SECONDS)

    def _put(self, item: Object) -> None:
        storage = self.lab.cluster.storage
        resource = storage.catalogue.of(item)
        name, space = item["metadata"]["name"], item["metadata"].get("namespace", "")
        wanted = placed(item, self._address)
        try:
            storage.get(resource, space, name)
        except ApiError:
            storage.create(resource, space, wanted)
        else:
            storage.update(resource, space, name, lambda _: wanted)

    def _address(self, name: str, family: int) -> str:
        return self._addresses[name][family]

    def clean(self, scenario: Scenario) -> None:
        """Delete what the scenario made and may have left."""
        storage = self.lab.cluster.storage

        def delete() -> None:
            for kind, name in made_by(scenario):
                resource = storage.catalogue.named(kind)
                if any(item["metadata"]["name"] == name for item in storage.list(resource, SPACE)):
                    storage.delete(resource, SPACE, name, grace=0)

        self.lab.call(delete)
        self._last.clear()

    # probes

    def faults(self, probes: Iterable[Probe], limit: float = CHANGE_SECONDS) -> dict[Probe, str]:
        """What does not come out as it must, in words; a change has `limit` seconds to arrive."""
        asked = list(probes)
        found = self._pass(asked)
        if not found:
            return {}
        deadline = time.monotonic() + limit
        while found and time.monotonic() < deadline:
            time.sleep(0.05)
            found = self._pass(list(found))
        return found or self._pass(asked)

    def _pass(self, probes: list[Probe]) -> dict[Probe, str]:
        """Ask all once; those from outside one entrance after the other, as the router knows only one."""
        entrances: dict[int, list[Probe]] = defaultdict(list)
        for probe in probes:
            entrances[probe.client.node if probe.client.kind == "outside" else 0].append(probe)
        found: dict[Probe, str] = {}
        for node, group in sorted(entrances.items()):
            if node and node != self._attracted:
                self.lab.run(self.lab.cluster.attract(f"node-{node}"))
                self._attracted = node
            found |= self.lab.run(self._ask_all(group), limit=600)
        return found

    async def _ask_all(self, probes: list[Probe]) -> dict[Probe, str]:
        room = asyncio.Semaphore(PARALLEL)
        alone: dict[Client, asyncio.Lock] = defaultdict(asyncio.Lock)
        found: dict[Probe, str] = {}

        async def one(probe: Probe) -> None:
            # Raw sockets, which ask in SCTP, hear what others of their namespace are told.
            async with alone[probe.client] if probe.protocol == "sctp" else contextlib.nullcontext(), room:
                if fault := await self._ask(probe):
                    found[probe] = fault

        async with asyncio.TaskGroup() as group:
            for probe in probes:
                group.create_task(one(probe))
        return found

    async def _ask(self, probe: Probe) -> str:
        """The fault of one probe, in words; empty when all is as it must be."""
        try:
            address, port = self._locate(probe)
        except MissingError as error:
            return str(error)
        expected = {self._seen(answer, probe): answer.server for answer in probe.fate.answers}
        repeated = (probe.client, probe.protocol, probe.family)
        wanted = {self._last.get(repeated, "")} if probe.spread is Spread.KEPT else set(expected.values())
        seen: set[str] = set()
        for _ in range(self._asks(probe)):
            await asyncio.sleep(probe.pause)
            patience = _PATIENCE[probe.fate.outcome]
            net = self._nets[self._client_name(probe.client)]
            answer = await ask(net, address, probe.protocol, port=port, patience=patience)
            if answer.fault or probe.fate.outcome is not Outcome.ANSWERED:
                return _compare_refusal(probe, answer.fault, answer.name)
            if (answer.name, answer.source) not in expected:
                right = " or ".join(f"{name} seeing {source}" for name, source in sorted(expected))
                return f"answered by {answer.name} seeing {answer.source}, must be {right}"
            if answer.name not in wanted:
                return f"answered by {answer.name}, must stay with {' or '.join(wanted)}"
            seen.add(answer.name)
            self._last[repeated] = answer.name
            if probe.spread is not Spread.ALL:
                wanted = {answer.name}
            elif seen == wanted:
                return ""
        return "" if seen == wanted else f"only {', '.join(seen)} answered, must be {', '.join(wanted)}"

    def _asks(self, probe: Probe) -> int:
        if probe.spread is not Spread.ALL:
            return _STICKY_ASKS
        return _SLOW_ASKS if probe.pause else _ASKS

    def _client_name(self, asker: Client) -> str:
        match asker.kind:
            case "pod":
                return client(asker.node)
            case "node":
                return f"node-{asker.node}"
            case kind:
                return kind

    def _seen(self, answer: Answer, probe: Probe) -> tuple[str, str]:
        """The server's name and the source address that it must see."""
        family = probe.family
        balancing = probe.target.node or probe.client.node
        match answer.source:
            case Source.CLIENT:
                source = self._addresses[self._client_name(probe.client)][family]
            case Source.CLIENT_NODE:
                source = self._addresses[f"node-{probe.client.node}"][family]
            case Source.NODE:
                source = self._addresses[f"node-{balancing}"][family]
            case Source.TUNNEL:
                source = self._tunnels[balancing, family]
        return answer.server, source

    def _locate(self, probe: Probe) -> tuple[IpAddress, int]:
        storage, target = self.lab.cluster.storage, probe.target
        named = storage.catalogue.named("services")
        service = {} if target.kind == "address" else storage.get(named, SPACE, target.service)
        node = self._addresses[f"node-{target.node or probe.client.node}"]
        address, port = locate(service, probe, node[probe.family])
        return ip_address(placed(address, self._address)), port


def _compare_refusal(probe: Probe, fault: str, name: str) -> str:
    outcomes = {"ECONNREFUSED": Outcome.REFUSED, "no answer": Outcome.DROPPED, "": Outcome.ANSWERED}
    outcome = outcomes.get(fault)
    if outcome is probe.fate.outcome:
        return ""
    what = f"answered by {name}" if outcome is Outcome.ANSWERED else outcome.value if outcome else fault
    return f"{what}, must be {probe.fate.outcome.value}"
