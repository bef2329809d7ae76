"""What a scenario is made of: objects that are applied, probes that follow, and the fate each must have.

Values only: the runners (the packet tracer and the real kernel) read them, and nothing here knows either.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from tests.scenarios.topology import PLACES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lab.api.resources import Object


class Client(NamedTuple):
    """Who asks.

    `kind` is "pod" (of that node), "node" (itself), "outside" (through that node), or the name of a server
    that asks its own Service.
    """

    kind: str
    node: int

    @property
    def text(self) -> str:
        """As ids write it: pod-1, node-3, outside-1."""
        return f"{self.kind}-{self.node}" if self.kind in ("pod", "node", "outside") else self.kind


class Target(NamedTuple):
    """What is asked: a frontend of a Service, or an address that belongs to none.

    Attributes:
        kind: "cluster", "nodeport", "balancer", "external" or "address".
        service: the Service's name; for "address" the name of whose it is, for the id.
        port: the Service's port, whatever the frontend; a number that it has not stands for itself.
        node: for "nodeport" the node whose address is asked; 0: the client's own, or the one it enters by.
        addresses: for "address" the addresses by family, or whose they are ("@NAME/FAMILY").
    """

    kind: str
    service: str = ""
    port: int = 80
    node: int = 0
    addresses: tuple[str, str] = ("", "")

    @property
    def text(self) -> str:
        """As ids write it."""
        node = f"@{self.node}" if self.node else ""
        port = f":{self.port}" if self.port != 80 else ""
        return f"{self.service or 'nobody'}/{self.kind}{node}{port}"


class Source(Enum):
    """Whose address the server must see."""

    CLIENT = "the client's own"
    CLIENT_NODE = "that of the client's node"
    NODE = "the InternalIP of the node that balances"
    TUNNEL = "the tunnel address of the node that balances"


class Answer(NamedTuple):
    """The pod that answers, and the source that it sees."""

    server: str
    source: Source


class Outcome(Enum):
    """What becomes of a new connection."""

    ANSWERED = "answered"
    REFUSED = "refused"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Fate:
    """What must become of a packet; each of the answers must be possible, and no other."""

    outcome: Outcome
    answers: frozenset[Answer] = frozenset()


REFUSED = Fate(Outcome.REFUSED)
DROPPED = Fate(Outcome.DROPPED)


def answered(source: Source, *servers: str) -> Fate:
    """Answered by one of the servers, which all see the same source."""
    return Fate(Outcome.ANSWERED, frozenset(Answer(server, source) for server in servers))


class Spread(Enum):
    """How the answers to the same question are spread over the backends."""

    ALL = "each of the answers comes sooner or later, and no other"
    STICKY = "always the same"
    KEPT = "always the same, and the same as the client got before"


@dataclass(frozen=True, slots=True)
class Probe:
    """One question and what must become of it.

    Attributes:
        client: who asks.
        target: what is asked.
        protocol: "tcp", "udp" or "sctp".
        family: 4 or 6.
        fate: what must become of it.
        spread: over which backends repeated questions go.
        pause: seconds before each repetition.
    """

    client: Client
    target: Target
    protocol: str
    family: int
    fate: Fate
    spread: Spread = Spread.ALL
    pause: float = 0.0

    @property
    def id(self) -> str:
        """For a person: who asks what how."""
        return f"{self.client.text} → {self.target.text} {self.protocol}{self.family}"


@dataclass(frozen=True, slots=True)
class Step:
    """A change and what must be so afterwards.

    Attributes:
        probes: asked when the change has reached the kernel, in any order.
        apply: objects that are created, or replace those of the same name.
        delete: kind and name of objects.
        label: what the step shows; part of the ids.
        wait: seconds before the change, where the API's clock has to move on.
    """

    probes: tuple[Probe, ...]
    apply: tuple[Object, ...] = ()
    delete: tuple[tuple[str, str], ...] = ()
    label: str = ""
    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """Steps in order; all objects are deleted in the end."""

    name: str
    steps: tuple[Step, ...] = field(default=())


def made_by(scenario: Scenario) -> set[tuple[str, str]]:
    """Kind and name of what a scenario makes; what it only changes it has changed back in the end."""
    return {
        (item["kind"], item["metadata"]["name"])
        for step in scenario.steps
        for item in step.apply
        if item["kind"] != "Namespace" and item["metadata"]["name"] not in PLACES
    }


class Row(NamedTuple):
    """One probe of one step: a line of the table."""

    id: str
    scenario: Scenario
    step: int
    probe: Probe


def rows(scenarios: Iterable[Scenario]) -> Iterator[Row]:
    """All lines of the table; ids are unique."""
    for scenario in scenarios:
        for number, step in enumerate(scenario.steps):
            label = f" {step.label}" if step.label else ""
            for probe in step.probes:
                yield Row(f"{scenario.name}{label}: {probe.id}", scenario, number, probe)
