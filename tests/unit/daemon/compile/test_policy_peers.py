"""Sets of pods' addresses: who is in them as pods, labels and namespaces come, change and go."""

from __future__ import annotations

import pytest

from daemon.cluster.decode_policies import label_selector
from daemon.cluster.model import Pod
from daemon.cluster.selectors import EVERYTHING, Selector, labels
from daemon.compile.policy_peers import PeerSets
from daemon.compile.policy_rules import PodScope
from datapath import text
from tests.unit.daemon.compile.town import select

WEB = label_selector(select("app=web"))
SHOP_WEB = PodScope("shop", WEB)
TEAM_A = PodScope(label_selector(select("team=a")), EVERYTHING)
ANYWHERE = PodScope(EVERYTHING, WEB)


class Crowd:
    """Pods by name, put into sets."""

    def __init__(self) -> None:
        self.peers = PeerSets()
        self.pods: dict[str, Pod] = {}
        self.peers.put_namespace("shop", labels({"team": "a"}))
        self.peers.put_namespace("bank", labels({"team": "b"}))

    def put(self, name: str, ips: str, have: str = "") -> None:
        where, _, own = name.partition("/")
        pairs = select(have).get("matchLabels", {})
        addresses = tuple(map(text.parse_address, ips.split()))
        pod = Pod(where, own, "", "n", labels(pairs), addresses)
        self.peers.put_pod(name, self.pods.get(name), pod)
        self.pods[name] = pod

    def drop(self, name: str) -> None:
        self.peers.put_pod(name, self.pods.pop(name), None)

    def __getitem__(self, name: str) -> str:
        return " ".join(sorted(map(text.address, self.peers.sets[name])))


@pytest.fixture
def crowd() -> Crowd:
    found = Crowd()
    found.put("shop/a", "10.0.0.1 fd00::1", "app=web")
    found.put("shop/b", "10.0.0.2", "app=db")
    found.put("bank/c", "10.0.0.3", "app=web")
    found.peers.acquire("shop-web", SHOP_WEB)
    found.peers.acquire("team-a", TEAM_A)
    found.peers.acquire("anywhere", ANYWHERE)
    return found


def test_a_new_set_has_all_who_belong(crowd: Crowd) -> None:
    assert crowd["shop-web"] == "10.0.0.1 fd00::1"
    assert crowd["team-a"] == "10.0.0.1 10.0.0.2 fd00::1"
    assert crowd["anywhere"] == "10.0.0.1 10.0.0.3 fd00::1"


def test_a_pod_joins_all_sets_that_it_belongs_to(crowd: Crowd) -> None:
    crowd.put("shop/d", "10.0.0.4", "app=web")
    assert all("10.0.0.4" in crowd[name] for name in ("shop-web", "team-a", "anywhere"))
    crowd.drop("shop/d")
    assert not any("10.0.0.4" in crowd[name] for name in ("shop-web", "team-a", "anywhere"))


def test_changed_labels_move_a_pod(crowd: Crowd) -> None:
    crowd.peers.sets.take()
    crowd.put("shop/a", "10.0.0.1 fd00::1", "app=db")
    assert crowd["shop-web"] == ""
    assert crowd["team-a"] == "10.0.0.1 10.0.0.2 fd00::1"
    assert set(crowd.peers.sets.take()) == {"shop-web", "anywhere"}


def test_a_changed_address_replaces_the_old_one(crowd: Crowd) -> None:
    crowd.put("shop/a", "10.0.0.9 fd00::1", "app=web")
    assert crowd["shop-web"] == "10.0.0.9 fd00::1"


def test_an_address_that_two_pods_have_stays_until_both_are_gone(crowd: Crowd) -> None:
    crowd.put("shop/heir", "10.0.0.1", "app=web")
    crowd.drop("shop/a")
    assert crowd["shop-web"] == "10.0.0.1"
    crowd.drop("shop/heir")
    assert crowd["shop-web"] == ""


def test_labels_of_a_namespace_move_all_its_pods(crowd: Crowd) -> None:
    crowd.peers.put_namespace("bank", labels({"team": "a"}))
    assert crowd["team-a"] == "10.0.0.1 10.0.0.2 10.0.0.3 fd00::1"
    crowd.peers.put_namespace("shop", labels({}))
    assert crowd["team-a"] == "10.0.0.3"
    assert crowd["shop-web"] == "10.0.0.1 fd00::1"


def test_a_namespace_that_is_not_known_is_not_selected(crowd: Crowd) -> None:
    crowd.put("new/a", "10.0.0.7", "app=web")
    assert "10.0.0.7" not in crowd["anywhere"]
    crowd.peers.put_namespace("new", labels({}))
    assert "10.0.0.7" in crowd["anywhere"]
    crowd.peers.put_namespace("new", None)
    crowd.peers.put_namespace("new", None)
    assert "10.0.0.7" not in crowd["anywhere"]


def test_a_set_that_is_not_used_any_more_is_gone_and_comes_back_whole(crowd: Crowd) -> None:
    crowd.peers.acquire("shop-web", SHOP_WEB)
    crowd.peers.release("shop-web")
    assert "shop-web" in crowd.peers.sets
    for name in ("shop-web", "team-a", "anywhere"):
        crowd.peers.release(name)
    assert not crowd.peers.sets
    crowd.put("shop/d", "10.0.0.4", "app=web")
    crowd.peers.acquire("shop-web", SHOP_WEB)
    assert crowd["shop-web"] == "10.0.0.1 10.0.0.4 fd00::1"


def test_selectors_are_asked_per_label_set_and_not_per_pod(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(200):
        crowd.put(f"shop/web-{number}", f"10.1.0.{number}", "app=web")
    asked = 0
    matches = Selector.matches

    def counted(self: Selector, own: object) -> bool:
        nonlocal asked
        asked += 1
        return matches(self, own)  # type: ignore[arg-type]

    monkeypatch.setattr(Selector, "matches", counted)
    crowd.peers.acquire("more", PodScope("shop", label_selector(select("app=web tier=x"))))
    assert asked == len(list(crowd.peers._groups.of("shop"))) == 2
    asked = 0
    crowd.put("shop/one-more", "10.1.1.1", "app=web")
    assert asked == 0
