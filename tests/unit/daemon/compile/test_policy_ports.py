"""Named ports: where a name leads, at which pods, and what changes as pods do."""

from __future__ import annotations

from dataclasses import replace

from daemon.cluster.model import ContainerPort, Pod
from daemon.cluster.selectors import labels
from daemon.compile.policy_ports import PortSets
from daemon.compile.policy_rules import PortScope
from datapath.policy import Target
from datapath.text import parse_address

ONE, TWO, SIX = map(parse_address, ("10.0.0.1", "10.0.0.2", "fd00::1"))
HTTP, DNS = ContainerPort("http", 6, 80), ContainerPort("dns", 17, 53)
HERE = Pod("shop", "a", "", "here", labels({}), (ONE, SIX), (HTTP, DNS))
THERE = Pod("shop", "b", "", "there", labels({}), (TWO,), (ContainerPort("http", 6, 8080),))
ALL, OWN = PortScope("http", 6, here=False), PortScope("http", 6, here=True)


def both() -> PortSets:
    sets = PortSets("here")
    sets.acquire("all", ALL, [HERE, THERE])
    sets.acquire("own", OWN, [HERE, THERE])
    return sets


def test_a_name_leads_to_each_pods_own_number() -> None:
    sets = both().sets
    assert set(sets["all"]) == {Target(ONE, 6, 80), Target(SIX, 6, 80), Target(TWO, 6, 8080)}
    assert set(sets["own"]) == {Target(ONE, 6, 80), Target(SIX, 6, 80)}


def test_pods_come_change_and_go() -> None:
    ports = both()
    ports.put_pod(THERE, replace(THERE, ports=(ContainerPort("http", 6, 9), DNS)))
    assert Target(TWO, 6, 9) in ports.sets["all"]
    assert Target(TWO, 6, 8080) not in ports.sets["all"]
    ports.put_pod(HERE, None)
    assert set(ports.sets["own"]) == set()
    ports.put_pod(None, HERE)
    assert set(ports.sets["own"]) == {Target(ONE, 6, 80), Target(SIX, 6, 80)}


def test_other_labels_touch_no_port() -> None:
    ports = both()
    ports.sets.take()
    ports.put_pod(HERE, replace(HERE, labels=labels({"app": "x"})))
    assert ports.sets.take() == {}


def test_a_name_of_another_protocol_is_another() -> None:
    ports = both()
    ports.acquire("dns-tcp", PortScope("dns", 6, here=False), [HERE, THERE])
    assert set(ports.sets["dns-tcp"]) == set()


def test_a_name_that_nobody_asks_for_costs_nothing() -> None:
    ports = both()
    ports.acquire("all", ALL, [])
    ports.release("all")
    assert "all" in ports.sets
    ports.release("all")
    ports.release("own")
    ports.put_pod(None, THERE)
    assert not ports.sets
