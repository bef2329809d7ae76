"""Pods of this node: attachments and objects find each other in any order, and policies find both."""

from __future__ import annotations

from dataclasses import replace

import pytest

from daemon.cluster.decode_policies import network_policy
from daemon.cluster.model import Pod
from daemon.cluster.selectors import labels
from daemon.compile.policy_subjects import Attached, Subjects, takes_part
from datapath.policy import Direction, Subject
from datapath.text import parse_address
from tests.unit.daemon.compile.town import select

ONE, TWO = parse_address("10.244.1.1"), parse_address("10.244.1.2")
DB = Pod("shop", "db", "u1", "here", labels({"app": "db"}), (parse_address("10.244.1.99"),))
LINK = Attached("weft1", "shop", "db", "u1", (ONE,))
POLICY = network_policy(
    {"metadata": {"namespace": "shop", "name": "p"}, "spec": {"podSelector": select("app=db")}}
)


@pytest.mark.parametrize(
    "order", ["pod link policy", "policy link pod", "link policy pod", "policy pod link"]
)
def test_whatever_comes_first(order: str) -> None:
    subjects = Subjects()
    for each in order.split():
        if each == "pod":
            subjects.put_pod("shop/db", DB)
        elif each == "link":
            subjects.put_attached("weft1", LINK)
        else:
            subjects.put_policy("shop/p", POLICY)
        subjects.compile()
    assert subjects.subjects == {"weft1": Subject("weft1", "shop/db", (ONE,), ingress=("shop/p",))}
    assert subjects.selected == {"shop/p": {"weft1"}}
    assert subjects.turned == {"shop/p"}
    assert subjects.at(ONE) is subjects.subjects["weft1"]
    assert not subjects.pending


def test_a_pod_is_where_its_attachments_are() -> None:
    subjects = Subjects()
    subjects.put_pod("shop/db", DB)
    assert subjects.located("shop/db") is None
    assert subjects.put_attached("weft1", LINK) == ("shop/db",)
    assert subjects.located("shop/db") == replace(DB, ips=(ONE,))
    subjects.put_attached("weft2", LINK._replace(host_link="weft2", addresses=(TWO,)))
    assert subjects.located("shop/db") == replace(DB, ips=(ONE, TWO))
    subjects.put_attached("weft2", LINK._replace(host_link="weft2", uid="former", addresses=(TWO,)))
    assert subjects.located("shop/db") == replace(DB, ips=(ONE,))
    for ended in (replace(DB, finished=True), replace(DB, host_network=True), None):
        subjects.put_pod("shop/db", ended)
        assert subjects.located("shop/db") is None


def test_a_link_says_whose_it_was_and_is() -> None:
    subjects = Subjects()
    subjects.put_attached("weft1", LINK)
    assert subjects.put_attached("weft1", LINK) == ()
    assert subjects.put_attached("weft1", LINK._replace(name="web")) == ("shop/db", "shop/web")
    assert subjects.put_attached("weft1", None) == ("shop/web",)
    assert subjects.put_attached("weft1", None) == ()
    subjects.compile()
    assert not subjects.subjects
    assert subjects.at(ONE) is None


def test_an_address_is_its_new_owners_in_whichever_order_they_change() -> None:
    subjects = Subjects()
    subjects.put_attached("weft1", LINK)
    subjects.compile()
    subjects.put_attached("weft2", LINK._replace(host_link="weft2"))
    subjects.compile()
    subjects.put_attached("weft1", None)
    subjects.compile()
    assert subjects.at(ONE) is subjects.subjects["weft2"]


def test_who_takes_part() -> None:
    assert takes_part(DB)
    assert not takes_part(replace(DB, finished=True))
    assert not takes_part(replace(DB, host_network=True))


IN, OUT = Direction.INGRESS, Direction.EGRESS


@pytest.mark.parametrize(
    ("pod", "born", "closed"),
    [
        (None, ("shop", "db", "u1"), (IN,)),
        (DB, ("shop", "db", "u1"), (IN,)),
        (replace(DB, labels=labels({"app": "web"})), ("shop", "db", "u1"), ()),
        (replace(DB, labels=labels({"app": "web"})), ("shop", "db", "u2"), (IN,)),
        (replace(DB, host_network=True), ("shop", "db", "u1"), ()),
        (None, ("bank", "db", "u1"), ()),
        (None, ("", "", ""), (IN, OUT)),
    ],
    ids=["unknown", "selected", "not selected", "a former pod of the name", "host", "other space", "nothing"],
)
def test_birth(pod: Pod | None, born: tuple[str, str, str], closed: tuple[Direction, ...]) -> None:
    subjects = Subjects()
    subjects.put_pod("shop/db", pod)
    subjects.put_policy("shop/p", POLICY)
    raw = {"metadata": {"namespace": "mall", "name": "p"}, "spec": {"policyTypes": ["Egress"]}}
    subjects.put_policy("mall/p", network_policy(raw))
    assert subjects.birth(*born) == closed
