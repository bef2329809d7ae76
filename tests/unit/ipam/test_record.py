"""What identifies an attachment."""

from __future__ import annotations

from dataclasses import replace

from ipam.record import AttachmentKey, Record, State


def test_a_key_reads_as_its_parts() -> None:
    assert str(AttachmentKey("weft", "c1", "eth0")) == "weft/c1/eth0"


def test_two_sandboxes_of_one_pod_are_two_attachments() -> None:
    assert AttachmentKey("weft", "old", "eth0") != AttachmentKey("weft", "new", "eth0")


def test_the_states_are_what_databases_of_earlier_versions_hold() -> None:
    assert {state.name: int(state) for state in State} == {"PENDING": 0, "ATTACHED": 1, "RELEASING": 2}


def test_only_the_state_changes() -> None:
    record = Record(
        AttachmentKey("weft", "c1", "eth0"),
        "/n",
        "weft1",
        b"mac",
        1450,
        (b"a",),
        "ns",
        "p",
        "u",
        State.PENDING,
        3.5,
    )
    assert record.in_state(State.ATTACHED) == replace(record, state=State.ATTACHED)
