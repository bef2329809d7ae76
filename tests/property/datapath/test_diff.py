"""From any state to any state: the steps are accepted by a kernel that forgets as the real one does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from datapath.desired import (
    ADDRESS,
    LINK,
    ROUTE,
    FdbEntry,
    LinkAddress,
    Neighbour,
    Route,
    Sysctl,
    VxlanLink,
    object_key,
)
from datapath.diff import Action, diff, link_of

if TYPE_CHECKING:
    from datapath.desired import KernelObject, ObjectKey
    from datapath.diff import Step

LINKS = ("weft.vxlan", "weft.vxlan6")
ADDRESSES = [bytes((10, 0, number, 0)) for number in range(4)]
MACS = [bytes((2, 0, 0, 0, 0, number)) for number in range(3)]
FOREIGN = "eth0"


class RefusedError(AssertionError):
    """The model kernel does not take a step."""


class ModelKernel:
    """Holds objects; a link takes along what is on it, an address the routes that prefer it."""

    def __init__(self, objects: dict[ObjectKey, KernelObject]) -> None:
        self.objects = dict(objects)
        self.dropped: set[ObjectKey] = set()

    def do(self, step: Step) -> None:
        if step.action is Action.DELETE:
            self._delete(step)
            return
        assert step.new is not None
        if step.action is Action.REPLACE and step.key not in self.objects:
            raise RefusedError(f"{step} replaces what is not there")
        link = link_of(step.new)
        if link not in (None, FOREIGN) and (LINK, link) not in self.objects:
            raise RefusedError(f"{step}: no such link")
        if isinstance(step.new, Route) and step.new.source is not None and not self._has(step.new.source):
            raise RefusedError(f"{step}: invalid prefsrc")
        self.objects[step.key] = step.new

    def _delete(self, step: Step) -> None:
        # What the kernel dropped by itself may be deleted once more: that refusal is no failure.
        if self.objects.pop(step.key, None) is None and step.key not in self.dropped:
            raise RefusedError(f"{step} deletes what is not there")
        if isinstance(step.old, VxlanLink):
            for key in [key for key, value in self.objects.items() if link_of(value) == step.old.name]:
                self._drop(key)
        self._forget_sources()

    def _has(self, address: bytes) -> bool:
        return any(key[0] == ADDRESS and value.address == address for key, value in self.objects.items())  # type: ignore[union-attr]

    def _forget_sources(self) -> None:
        for key, value in list(self.objects.items()):
            if isinstance(value, Route) and value.source is not None and not self._has(value.source):
                self._drop(key)

    def _drop(self, key: ObjectKey) -> None:
        del self.objects[key]
        self.dropped.add(key)


def links() -> st.SearchStrategy[VxlanLink]:
    return st.builds(
        VxlanLink,
        name=st.sampled_from(LINKS),
        vni=st.sampled_from([1, 2]),
        port=st.just(4789),
        mac=st.sampled_from(MACS),
        local=st.sampled_from([b"\x01" * 4, b"\x02" * 4]),
        mtu=st.sampled_from([1450, 1400]),
    )


@st.composite
def states(draw: st.DrawFn) -> dict[ObjectKey, KernelObject]:
    """A state that a kernel can hold: what needs a link or an address has it."""
    found = {object_key(link): link for link in draw(st.lists(links(), max_size=2))}
    objects: dict[ObjectKey, KernelObject] = dict(found)
    some: list[st.SearchStrategy[KernelObject]]
    names = [link.name for link in found.values()]
    some = [st.builds(Sysctl, st.sampled_from("abc"), st.sampled_from("12"))]
    if names:
        name = st.sampled_from(names)
        address = st.sampled_from(ADDRESSES)
        some += [
            st.builds(LinkAddress, name, address, st.just(32)),
            st.builds(Neighbour, name, address, st.sampled_from(MACS)),
            st.builds(FdbEntry, name, st.sampled_from(MACS), address),
        ]
    for value in draw(st.lists(st.one_of(some), max_size=9)):
        objects[object_key(value)] = value
    sources = [None, *(value.address for value in objects.values() if isinstance(value, LinkAddress))]
    routes = st.builds(
        Route,
        destination=st.sampled_from(ADDRESSES),
        length=st.just(24),
        link=st.sampled_from([FOREIGN, *names]),
        gateway=st.sampled_from([None, *ADDRESSES]),
        source=st.sampled_from(sources),
    )
    objects.update((object_key(route), route) for route in draw(st.lists(routes, max_size=5)))
    return objects


@settings(max_examples=250)
@given(desired=states(), known=states())
def test_steps_lead_from_any_state_to_any_other(
    desired: dict[ObjectKey, KernelObject], known: dict[ObjectKey, KernelObject]
) -> None:
    kernel = ModelKernel(known)
    for step in diff(desired, known):
        kernel.do(step)
    kept = {key: value for key, value in known.items() if isinstance(value, Sysctl)}
    assert kernel.objects == {**kept, **desired}


@settings(max_examples=100)
@given(desired=states(), known=states())
def test_adds_come_before_deletes_and_links_before_what_is_on_them(
    desired: dict[ObjectKey, KernelObject], known: dict[ObjectKey, KernelObject]
) -> None:
    steps = diff(desired, known)
    remade = {key for key in known if key[0] == LINK and key in desired}
    phases = [
        (step.action is Action.DELETE and step.key not in remade, step.key[0])
        for step in steps
        if not (step.action is Action.DELETE and step.key in remade)
    ]
    assert phases == sorted(phases, key=lambda phase: (phase[0], -phase[1] if phase[0] else phase[1]))


@given(state=states())
def test_nothing_is_to_be_done_about_equal_states(state: dict[ObjectKey, KernelObject]) -> None:
    assert diff(state, dict(state)) == []


@settings(max_examples=100)
@given(desired=states(), known=states())
def test_keys_restrict_the_comparison(
    desired: dict[ObjectKey, KernelObject], known: dict[ObjectKey, KernelObject]
) -> None:
    keys = {key for key in desired.keys() | known.keys() if key[0] == ROUTE}
    steps = diff(desired, known, keys)
    assert {step.key for step in steps} == {key for key in keys if desired.get(key) != known.get(key)}
