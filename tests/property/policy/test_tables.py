"""Whatever happens in whatever order, the fragments of policies are what compiling everything anew gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings

from daemon.compile.policy import Policies
from daemon.compile.policy_tables import TABLES, PolicyTables
from datapath.fragments import Fragments
from datapath.nft.elements import parse_verdict
from datapath.nft.policy import SUBJECTS
from datapath.nft.rules import InSet
from tests.property.policy.test_increments import HERE, compiled, histories, take

if TYPE_CHECKING:
    from datapath.desired import Fragment, FragmentKey
    from tests.property.policy.test_increments import Step


def put(fragments: Fragments, changes: dict[FragmentKey, Fragment | None]) -> None:
    assert TABLES not in changes or next(iter(changes)) == TABLES
    for name, fragment in changes.items():
        fragments.replace(name, fragment)


def state(fragments: Fragments) -> tuple[object, object]:
    """All that is desired, and the order of sets and chains of no account."""
    sets = {name: dict(each) for name, each in fragments.sets().items() if each}
    tables = {
        name: (sorted(map(repr, each.sets)), sorted(map(repr, each.chains)))
        for name, each in fragments.tables.items()
    }
    return sets, tables


def whole(fragments: Fragments) -> None:
    """Whatever rules and elements lead to is there; elements of a set that no rule asks for may wait."""
    for table in fragments.tables.values():
        declared = {each.name for each in table.sets}
        statements = [each for chain in table.chains for rule in chain.rules for each in rule.statements]
        assert {each.set for each in statements if isinstance(each, InSet)} <= declared
        chains = {each.name for each in table.chains}
        for own in SUBJECTS.values():
            elements = fragments.elements((*table.key, own))
            assert {parse_verdict(each).chain for each in elements.values()} <= chains


def check(history: list[Step]) -> None:
    model, tables, fragments = Policies(HERE), PolicyTables(), Fragments()
    objects: dict[tuple[str, str], Step] = {}
    for number, step in enumerate(history):
        objects[step.kind, step.name] = step
        take(model, step)
        if number % 3:
            model.compile()
            put(fragments, tables.take(model, model.changes()))
            whole(fragments)
        if number % 5 == 0:
            put(fragments, tables.sweep())
    model.compile()
    put(fragments, tables.take(model, model.changes()))
    put(fragments, tables.sweep())
    whole(fragments)
    fresh, once = compiled(objects.values()), Fragments()
    put(once, PolicyTables().take(fresh, fresh.changes()))
    assert state(fragments) == state(once)
    assert not tables.superfluous


@pytest.mark.timeout(600)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(histories)
def test_the_order_of_events_does_not_matter_to_the_tables(history: tuple[list[Step], list[Step]]) -> None:
    check(history[0])
