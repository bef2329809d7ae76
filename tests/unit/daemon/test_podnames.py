"""Names of addresses."""

from __future__ import annotations

from daemon.cluster.decode_pods import pod as decode_pod
from daemon.podnames import FRESH_SECONDS, PodNames
from tests.unit.daemon.compile.town import packed, shop


def test_own_pods_are_named_at_once_and_others_while_they_are_followed() -> None:
    town, now = shop(), 100.0
    pods = {"shop/far": decode_pod(town.objects["Pod", "shop/far"])}
    names = PodNames(town.models["here"], pods, clock=lambda: now)
    assert names.name(packed("10.244.1.11")) == "shop/db"
    assert names.name(packed("fd00:0:0:2::12")) == "shop/far"
    assert names.name(packed("8.8.8.8")) == ""
    pods["bank/web"] = decode_pod(town.objects["Pod", "bank/web"])
    assert names.name(packed("10.244.2.20")) == ""
    now += FRESH_SECONDS + 0.1
    assert names.name(packed("10.244.2.20")) == "bank/web"


def test_an_address_of_before_names_nobody() -> None:
    raw = {
        "metadata": {"namespace": "shop", "name": "over"},
        "spec": {},
        "status": {"phase": "Succeeded", "podIPs": [{"ip": "10.244.2.30"}]},
    }
    names = PodNames(shop().models["here"], {"shop/over": decode_pod(raw)})
    assert names.name(packed("10.244.2.30")) == ""
