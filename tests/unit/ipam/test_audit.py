"""What does not fit between IPAM's memory and the node."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipam import alias
from ipam.audit import PATIENCE, audit
from ipam.record import AttachmentKey, Record, State

NOW = 10_000.0
WELL = Record(
    key=AttachmentKey("weft", "c1", "eth0"),
    netns="/run/netns/a",
    host_link="weft0000000000a",
    mac=bytes(6),
    mtu=1450,
    addresses=(bytes([10, 1, 1, 7]),),
    state=State.ATTACHED,
    created=NOW - 5,
)
LINKS = {WELL.host_link: alias.write(WELL)}


def reasons(record: Record | None, links: dict[str, str], *namespaces: str) -> list[str]:
    faults = audit([record] if record else [], links=links, lives=lambda path: path in namespaces, now=NOW)
    return [fault.reason for fault in faults]


def test_what_fits_is_silent() -> None:
    assert reasons(WELL, LINKS, WELL.netns) == []


def test_a_dead_namespace_is_a_leak_that_names_its_addresses() -> None:
    (fault,) = audit([WELL], links=LINKS, lives=lambda _path: False, now=NOW)
    assert fault.addresses == WELL.addresses
    assert fault.container_id == "c1"
    assert fault.host_link == WELL.host_link
    assert fault.reason == "network namespace /run/netns/a is gone"


def test_an_unknown_namespace_path_is_judged_by_the_link() -> None:
    unknown = replace(WELL, netns="")
    assert reasons(unknown, LINKS) == []
    assert reasons(unknown, {}) == ["host link weft0000000000a is missing"]


def test_a_missing_link_is_named() -> None:
    assert reasons(WELL, {}, WELL.netns) == ["host link weft0000000000a is missing"]


@pytest.mark.parametrize("state", [State.PENDING, State.RELEASING])
def test_work_under_way_is_given_time(state: State) -> None:
    young = replace(WELL, state=state, created=NOW - PATIENCE)
    assert reasons(young, {}) == []
    old = replace(young, created=NOW - PATIENCE - 1)
    bare = {WELL.host_link: ""}
    assert reasons(old, bare, WELL.netns) == [f"it is {state.name.lower()} since 301 s"]


def test_what_its_daemon_had_no_time_to_confirm_is_told_by_the_link() -> None:
    pending = replace(WELL, state=State.PENDING, created=NOW - PATIENCE - 1)
    assert reasons(pending, LINKS, WELL.netns) == []
    assert reasons(pending, LINKS) == ["network namespace /run/netns/a is gone"]
    others = {WELL.host_link: alias.write(replace(WELL, addresses=(bytes([10, 1, 1, 8]),)))}
    assert reasons(pending, others, WELL.netns) == ["it is pending since 301 s"]
    assert reasons(replace(pending, state=State.RELEASING), LINKS, WELL.netns) == [
        "it is releasing since 301 s"
    ]


def test_a_link_without_a_lease_tells_what_its_alias_says() -> None:
    (fault,) = audit([], links=LINKS, lives=lambda _path: True, now=NOW)
    assert (fault.addresses, fault.container_id) == (WELL.addresses, "c1")
    assert fault.reason == "link weft0000000000a has no lease"


def test_a_link_whose_alias_says_nothing_is_still_named() -> None:
    (fault,) = audit([], links={"weft0000000000b": "?"}, lives=lambda _path: True, now=NOW)
    assert (fault.addresses, fault.container_id) == ((), "")
    assert "weft0000000000b" in fault.reason
