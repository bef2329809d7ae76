"""What the kernel gives to new links is known of one namespace, and of now."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from datapath import sysctls
from datapath.netns import entered, open_namespace
from datapath.newlinks import NewLinks
from tests.functional.datapath.conftest import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.functional.datapath.conftest import Node


def set_default(accept: int, forwarding: int) -> None:
    run(f"sysctl -qw net.ipv6.conf.default.accept_ra={accept} net.ipv6.conf.default.forwarding={forwarding}")


@pytest.mark.parametrize(
    ("accept", "forwarding", "taken"),
    [(0, 0, False), (1, 0, True), (2, 0, True), (0, 1, False), (1, 1, False), (2, 1, True)],
)
def test_a_router_takes_advertisements_only_if_told_so_twice(
    node: Node, accept: int, forwarding: int, taken: bool
) -> None:
    with NewLinks() as links:
        set_default(accept, forwarding)
        assert links.take_advertisements() == taken


def test_a_change_is_seen_later_and_from_any_namespace(node: Node) -> None:
    other = open_namespace(node.pod())
    try:
        set_default(1, 1)
        with entered(other):
            set_default(2, 0)
        with NewLinks() as links:
            assert not links.take_advertisements()
            with entered(other):
                assert not links.take_advertisements()
                with NewLinks() as others:
                    assert others.take_advertisements()
            set_default(2, 1)
            assert links.take_advertisements()
            with entered(other):
                set_default(0, 0)
                assert links.take_advertisements()
            assert not others._files
    finally:
        os.close(other)


def test_what_can_not_be_read_counts_as_taken(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_default(0, 1)
    before = len(os.listdir("/proc/self/fd"))
    closed = NewLinks()
    assert not closed.take_advertisements()
    closed.close()
    closed.close()
    assert closed.take_advertisements()
    settings = tmp_path / "net/ipv6/conf/default"
    settings.mkdir(parents=True)
    monkeypatch.setattr(sysctls, "WRITABLE", str(tmp_path))
    for present in ("", "accept_ra"):
        if present:
            (settings / present).write_text("0\n")
        with NewLinks() as links:
            assert links.take_advertisements()
    assert len(os.listdir("/proc/self/fd")) == before
