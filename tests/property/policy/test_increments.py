"""Whatever happens in whatever order, the model is what compiling everything anew gives.

Also, whoever looks only at what a change says was touched knows everything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.cluster import decode
from daemon.cluster.decode_pods import namespace, pod
from daemon.cluster.decode_policies import network_policy
from daemon.compile.policy import Policies
from daemon.compile.policy_subjects import Attached
from tests.property.policy import clusters
from tests.unit.daemon.compile.town import packed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from daemon.compile.policy import Changes

HERE = clusters.NODES[0]
POD_NUMBERS = range(5)
SET_KINDS = ("peers", "nodes", "ports")

names = st.sampled_from([f"policy{number}" for number in range(4)])
numbers = st.sampled_from(POD_NUMBERS)


@dataclass(frozen=True)
class Step:
    """One object that is there now, or with the value None is not: `kind` and `name` say which."""

    kind: str
    name: str
    value: Any = None


@st.composite
def node_steps(draw: st.DrawFn) -> Step:
    raw = draw(st.sampled_from(clusters.nodes()))
    if draw(st.booleans()):
        other = draw(st.integers(1, 3))
        raw["status"]["addresses"][0]["address"] = f"192.168.7.{other}"
    name = raw["metadata"]["name"]
    return Step("node", name, draw(st.sampled_from([decode.node(raw), None])))


@st.composite
def namespace_steps(draw: st.DrawFn) -> Step:
    name = draw(st.sampled_from(clusters.SPACES))
    raw = {"metadata": {"name": name, "labels": draw(clusters.label_sets)}}
    return Step("namespace", name, draw(st.sampled_from([namespace(raw), namespace(raw), None])))


@st.composite
def policy_steps(draw: st.DrawFn) -> Step:
    value = network_policy(draw(clusters.policies(names)))
    return Step("policy", value.key, draw(st.sampled_from([value, value, None])))


@st.composite
def pod_steps(draw: st.DrawFn) -> Step:
    value = pod(draw(clusters.pods(draw(numbers))))
    kind = "pod" if value.node == HERE else "remote_pod"
    return Step(kind, value.key, draw(st.sampled_from([value, value, value, None])))


def attachment(number: int, who: int, uid: str) -> Step:
    """The attachment of a number, of the pod of another."""
    link = f"weft{number}"
    addresses = (packed(f"10.244.1.{number + 100}"), packed(f"fd00:0:0:1::{number + 100}"))
    namespace = clusters.SPACES[who % len(clusters.SPACES)]
    return Step("attached", link, Attached(link, namespace, f"p{who}", uid, addresses))


@st.composite
def attachment_steps(draw: st.DrawFn) -> Step:
    """Attachments of known pods, of their predecessors (another UID), and of nobody."""
    number, who = draw(numbers), draw(numbers)
    step = attachment(number, who, draw(st.sampled_from([f"u{who}", f"u{who}", "", "former"])))
    if draw(st.integers(0, 4)) == 0:
        return Step("attached", step.name)
    if draw(st.integers(0, 9)) == 0:
        return Step("attached", step.name, step.value._replace(namespace="", name=""))
    return step


@st.composite
def beginnings(draw: st.DrawFn) -> list[Step]:
    """A whole cluster, with everything attached that runs here: what happens then meets something."""
    found = [Step("node", raw["metadata"]["name"], decode.node(raw)) for raw in clusters.nodes()]
    found += [
        Step("namespace", raw["metadata"]["name"], namespace(raw)) for raw in draw(clusters.namespaces())
    ]
    for number in POD_NUMBERS:
        value = pod(draw(clusters.pods(number)))
        found.append(Step("pod" if value.node == HERE else "remote_pod", value.key, value))
        found.append(attachment(number, number, value.uid))
    for number in range(3):
        policy = network_policy(draw(clusters.policies(st.just(f"policy{number}"))))
        found.append(Step("policy", policy.key, policy))
    return found


steps = st.lists(
    st.one_of(
        node_steps(), namespace_steps(), policy_steps(), policy_steps(), pod_steps(), attachment_steps()
    ),
    min_size=1,
    max_size=12,
)


def take(model: Policies, step: Step) -> None:
    getattr(model, f"put_{step.kind}")(step.name, step.value)


def state(model: Policies) -> dict[str, Any]:
    """All that a model says."""
    sets = {kind: {name: dict(found) for name, found in getattr(model, kind).items()} for kind in SET_KINDS}
    return sets | {
        "subjects": dict(model.subjects),
        "rules": dict(model.rules),
        "tunnels": dict(model.tunnels),
        "own": model.own_addresses,
        "in force": model.in_force,
        "needs": model.needs_all_pods,
        "groups": model.groups,
        "problems": list(model.problems()),
    }


def compiled(steps: Iterable[Step]) -> Policies:
    model = Policies(HERE)
    for step in steps:
        if step.value is not None:
            take(model, step)
    model.compile()
    return model


@dataclass
class Mirror:
    """A consumer that looks at nothing but what changes say."""

    subjects: dict[Any, Any] = field(default_factory=dict)
    rules: dict[Any, Any] = field(default_factory=dict)
    tunnels: dict[Any, Any] = field(default_factory=dict)
    peers: dict[str, set[Any]] = field(default_factory=dict)
    nodes: dict[str, set[Any]] = field(default_factory=dict)
    ports: dict[str, set[Any]] = field(default_factory=dict)

    def follow(self, model: Policies, changes: Changes) -> None:
        for kind in ("subjects", "rules", "tunnels"):
            mine, now = getattr(self, kind), getattr(model, kind)
            for key in getattr(changes, kind):
                mine.pop(key, None)
                if key in now:
                    mine[key] = now[key]
        for kind in SET_KINDS:
            self._follow_sets(getattr(self, kind), getattr(model, kind), getattr(changes, kind))

    def _follow_sets(
        self, mine: dict[str, set[Any]], now: Mapping[str, Any], touched: Mapping[str, set[Any]]
    ) -> None:
        for name, elements in touched.items():
            if name not in now:
                mine.pop(name, None)
                continue
            own = mine.setdefault(name, set())
            own -= elements
            own |= {each for each in elements if each in now[name]}


def check(history: list[Step], shuffled: list[Step]) -> None:
    model, mirror = Policies(HERE), Mirror()
    objects: dict[tuple[str, str], Step] = {}
    for number, step in enumerate(history):
        objects[step.kind, step.name] = step
        take(model, step)
        if number % 3:
            model.compile(1 + number % 2)
            mirror.follow(model, model.changes())
    model.compile()
    mirror.follow(model, model.changes())
    order = {(step.kind, step.name): number for number, step in enumerate(shuffled)}
    fresh = compiled(sorted(objects.values(), key=lambda step: order[step.kind, step.name]))
    assert state(model) == state(fresh)
    assert not model.changes()
    assert mirror.subjects == model.subjects
    assert mirror.rules == model.rules
    assert mirror.tunnels == model.tunnels
    for kind in SET_KINDS:
        assert getattr(mirror, kind) == {
            name: set(elements) for name, elements in getattr(model, kind).items()
        }


histories = st.tuples(beginnings(), steps).flatmap(
    lambda parts: st.tuples(st.just(parts[0] + parts[1]), st.permutations(parts[0] + parts[1]))
)


def many(examples: int) -> settings:
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.timeout(600)
@many(300)
@given(histories)
def test_the_order_of_events_does_not_matter(history: tuple[list[Step], list[Step]]) -> None:
    check(*history)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@many(5000)
@given(histories)
def test_the_order_of_events_does_not_matter_in_thousands_of_histories(
    history: tuple[list[Step], list[Step]],
) -> None:
    check(*history)


@given(st.lists(pod_steps(), max_size=6))
def test_without_policies_nothing_is_compiled(history: list[Step]) -> None:
    model = compiled(history)
    assert not model.in_force
    assert not model.needs_all_pods
    assert not any((model.rules, model.peers, model.ports))
