"""A setting that is a least value is raised and never lowered; the settings of connection tracking work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from daemon import tracking
from daemon.config import Config
from datapath.desired import Sysctl, object_key
from datapath.diff import diff
from datapath.execute import execute
from datapath.observe import Observer, read_setting

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.functional.datapath.conftest import Node

TTL = "net/ipv4/ip_default_ttl"


def write(path: str, value: str) -> None:
    with open(f"/proc/sys/{path}", "w", encoding="ascii") as file:
        file.write(value)


def bring_in_line(node: Node, wanted: Iterable[Sysctl], *, read: bool) -> int:
    """Apply settings, with or without a reading before; returns how many steps it took."""
    desired = {object_key(each): each for each in wanted}
    known = Observer(node.host).read(desired.values()) if read else Observer(node.host).read()
    steps = diff(desired, known.objects)
    outcome = execute(node.host, steps, known.indexes)
    assert not outcome.failed
    assert Observer(node.host).read(desired.values()).objects == desired
    return len(steps)


@pytest.mark.parametrize("read", [True, False], ids=["known before", "not known before"])
@pytest.mark.parametrize(("before", "after"), [("60", "64"), ("64", "64"), ("200", "200")])
def test_a_least_value_is_raised_and_never_lowered(node: Node, before: str, after: str, read: bool) -> None:
    write(TTL, before)
    steps = bring_in_line(node, [Sysctl(TTL, "64", least=True)], read=read)
    assert read_setting(TTL) == after
    assert steps == (1 if before == "60" or not read else 0)


def test_any_other_setting_is_made_exactly_so(node: Node) -> None:
    write(TTL, "200")
    bring_in_line(node, [Sysctl(TTL, "64")], read=True)
    assert read_setting(TTL) == "64"


def test_a_namespace_gets_its_timeouts_and_leaves_the_machines_limit_alone(node: Node) -> None:
    limit = read_setting("net/netfilter/nf_conntrack_max")
    if limit is None:
        pytest.skip("this kernel has no connection tracking loaded")
    possible = tracking.writable(tracking.settings(Config(conntrack_max_per_core=1 << 24), 64))
    names = [each.path.rpartition("conntrack_")[2] for each in possible]
    assert names == ["tcp_timeout_established", "tcp_timeout_close_wait"]
    assert bring_in_line(node, possible, read=True) == 2
    assert read_setting("net/netfilter/nf_conntrack_tcp_timeout_established") == "86400"
    assert read_setting("net/netfilter/nf_conntrack_tcp_timeout_close_wait") == "3600"
    assert read_setting("net/netfilter/nf_conntrack_max") == limit
