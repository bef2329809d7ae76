"""List-watch against an API server that pages, forgets, drops, hangs, refuses and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import json
import random
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from daemon.cluster import decode, decode_services
from daemon.cluster.connection import Connection
from daemon.cluster.endpoint import Endpoint
from daemon.cluster.reflector import Reflector, Resource, Timing
from daemon.cluster.store import NODE, Key, Store
from daemon.findings import Findings
from daemon.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.unit.daemon.cluster.conftest import FakeApi

FAST = Timing(watch=30, idle=30, first_delay=0.01, last_delay=0.05, absent=0.1, patience=0, page=3)


class Follower:
    """A reflector at work, and what it fills."""

    def __init__(self, connection: Connection, timing: Timing, **options: Any) -> None:
        self.store = Store()
        self.findings = Findings()
        self.metrics = Metrics()
        resource = Resource("/api/v1/nodes", decode.node, **options)
        self.reflector = Reflector(
            connection,
            resource,
            self.store.nodes,
            findings=self.findings,
            metrics=self.metrics,
            timing=timing,
        )

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, {"kind": NODE, **labels}) or 0


@pytest.fixture
async def follow(api: FakeApi, tmp_path: object) -> AsyncIterator[Callable[..., Follower]]:
    connection = Connection(lambda: Endpoint(api.url, "a test"), scratch=str(tmp_path), connect_timeout=1)
    tasks: list[asyncio.Task[None]] = []

    def start(timing: Timing = FAST, **options: Any) -> Follower:
        follower = Follower(connection, timing, **options)
        tasks.append(asyncio.get_running_loop().create_task(follower.reflector.run()))
        return follower

    yield start
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await connection.close()


async def until(condition: Callable[[], object], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


def ip(number: int) -> dict[str, Any]:
    return {"addresses": [{"type": "InternalIP", "address": f"10.0.{number // 250}.{number % 250 + 1}"}]}


async def test_it_lists_in_pages_then_follows(api: FakeApi, follow: Callable[..., Follower]) -> None:
    for number in range(8):
        api.put(f"n{number}")
    follower = follow()
    await asyncio.wait_for(follower.store.nodes.wait_synced(), 5)
    assert list(follower.store.nodes) == [f"n{number}" for number in range(8)]
    assert api.requests["GET"] == 3
    await until(lambda: api.requests["WATCH"])
    api.put("n8")
    api.put("n0", status=ip(7))
    api.delete("n1")
    await until(lambda: "n8" in follower.store.nodes and "n1" not in follower.store.nodes)
    assert follower.store.nodes["n0"].internal_ips == (bytes((10, 0, 0, 8)),)
    assert follower.reflector.connected
    assert follower.count("weft_objects") == 8
    assert follower.count("weft_api_events_total", type="deleted") == 1
    assert api.requests["GET"] == 3


async def test_a_dropped_watch_goes_on_where_it_ended(api: FakeApi, follow: Callable[..., Follower]) -> None:
    follower = follow()
    await until(lambda: api.requests["WATCH"] == 1)
    api.put("n0")
    await until(lambda: "n0" in follower.store.nodes)
    api.drop()
    api.put("n1")
    await until(lambda: "n1" in follower.store.nodes)
    assert api.requests["GET"] == 1
    assert api.queries[-1]["resourceVersion"] == "101"


async def test_bookmarks_move_the_place_to_go_on_from(api: FakeApi, follow: Callable[..., Follower]) -> None:
    follower = follow()
    await until(lambda: api.requests["WATCH"] == 1)
    assert api.queries[-1]["allowWatchBookmarks"] == "true"
    api.bookmark()
    await until(lambda: follower.count("weft_api_events_total", type="bookmark"))
    api.forget()
    api.drop()
    await until(lambda: api.requests["WATCH"] == 2)
    assert api.queries[-1]["resourceVersion"] == "101"
    assert api.requests["GET"] == 1
    assert len(follower.store.nodes) == 0


async def test_after_an_outage_what_was_deleted_meanwhile_is_noticed(
    api: FakeApi, follow: Callable[..., Follower]
) -> None:
    for number in range(5):
        api.put(f"n{number}")
    follower = follow()
    await until(lambda: api.requests["WATCH"])
    subscription = follower.store.subscribe(NODE)
    subscription.take()
    await api.stop()
    await until(lambda: not follower.reflector.connected)
    api.delete("n1")
    api.put("n9")
    api.put("n2", status=ip(3))
    api.forget()
    await until(lambda: follower.findings.rows())
    (row,) = follower.findings.rows()
    assert (row.name, row.level) == ("ApiServerUnreachable", "warning")
    assert api.url in row.message
    assert set(follower.store.nodes) == {"n0", "n1", "n2", "n3", "n4"}
    assert not subscription.take()
    await api.start()
    await until(lambda: "n9" in follower.store.nodes)
    assert set(follower.store.nodes) == {"n0", "n2", "n3", "n4", "n9"}
    assert subscription.take() == {Key(NODE, "n1"), Key(NODE, "n9"), Key(NODE, "n2")}
    assert not follower.findings.rows()


async def test_after_a_long_outage_a_server_that_forgot_is_listed_at_once(
    api: FakeApi, follow: Callable[..., Follower]
) -> None:
    """A restarted API server answers a watch with 410: the pauses of the outage are over by then."""
    follower = follow(dataclasses.replace(FAST, first_delay=0.02, last_delay=10))
    await until(lambda: api.requests["WATCH"])
    await api.stop()
    await until(
        lambda: (
            sum(follower.count("weft_api_errors_total", reason=why) for why in ("connect", "protocol")) >= 6
        )
    )
    api.put("n9")
    api.forget()
    watches = api.requests["WATCH"]
    await api.start()
    await until(lambda: api.requests["WATCH"] > watches)
    await until(lambda: "n9" in follower.store.nodes, seconds=0.3)


async def test_what_is_not_selected_is_not_there(api: FakeApi, follow: Callable[..., Follower]) -> None:
    for number in range(8):
        api.put(f"n{number}", labels={"skip": ""} if number == 3 else {})
    follower = follow(selector="!skip")
    await until(lambda: api.requests["WATCH"])
    assert set(follower.store.nodes) == {f"n{number}" for number in range(8) if number != 3}
    assert all(query["labelSelector"] == "!skip" for query in api.queries)
    assert api.requests["GET"] == 3


async def test_a_label_that_comes_takes_the_object_away_and_back(
    api: FakeApi, follow: Callable[..., Follower]
) -> None:
    api.put("n0")
    follower = follow(selector="!skip")
    await until(lambda: api.requests["WATCH"])
    api.put("n0", labels={"skip": ""})
    await until(lambda: not follower.store.nodes)
    api.put("n0")
    await until(lambda: "n0" in follower.store.nodes)
    assert api.requests["GET"] == 1


@pytest.mark.parametrize("label", ["headless", "service-proxy-name"])
async def test_a_label_that_says_so_takes_a_service_away_from_the_proxy_and_back(
    api: FakeApi, follow: Callable[..., Follower], label: str
) -> None:
    api.put("web")
    follower = follow(selector=decode_services.SELECTOR)
    await until(lambda: api.requests["WATCH"])
    assert "web" in follower.store.nodes
    api.put("web", labels={f"service.kubernetes.io/{label}": ""})
    await until(lambda: not follower.store.nodes)
    api.put("web")
    await until(lambda: "web" in follower.store.nodes)


@pytest.mark.parametrize("label", ["headless", "service-proxy-name"])
async def test_slices_are_followed_that_are_of_a_service_and_for_the_proxy(
    api: FakeApi, follow: Callable[..., Follower], label: str
) -> None:
    of = {decode_services.SERVICE_LABEL: "web"}
    api.put("ours", labels=of)
    api.put("nobodys")
    api.put("others", labels={**of, f"service.kubernetes.io/{label}": "x"})
    follower = follow(selector=decode_services.SLICE_SELECTOR)
    await until(lambda: api.requests["WATCH"])
    assert set(follower.store.nodes) == {"ours"}


async def test_without_a_selector_none_is_sent(api: FakeApi, follow: Callable[..., Follower]) -> None:
    follow()
    await until(lambda: api.requests["WATCH"])
    assert not any({"labelSelector", "fieldSelector"} & query.keys() for query in api.queries)


async def test_fields_are_selected_by_in_lists_and_watches(
    api: FakeApi, follow: Callable[..., Follower]
) -> None:
    follow(fields="spec.nodeName=n1")
    await until(lambda: api.requests["WATCH"])
    assert all(query["fieldSelector"] == "spec.nodeName=n1" for query in api.queries)


async def test_who_is_retired_takes_back_what_it_reported(
    api: FakeApi, follow: Callable[..., Follower]
) -> None:
    api.put("n0", status={"addresses": [{"type": "InternalIP", "address": "nonsense"}]})
    follower = follow()
    await until(lambda: api.requests["WATCH"])
    await api.stop()
    await until(lambda: len(follower.findings.rows()) == 2)
    follower.reflector.retire()
    assert not follower.findings.rows()


async def test_gone_inside_a_watch_lists_again(api: FakeApi, follow: Callable[..., Follower]) -> None:
    follower = follow()
    await until(lambda: api.requests["WATCH"])
    event = {
        "type": "ERROR",
        "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"},
    }
    api.publish_raw(event)
    await until(lambda: api.requests["GET"] == 2)
    await until(lambda: api.requests["WATCH"] == 2)
    assert follower.count("weft_api_lists_total") == 2


async def test_an_error_inside_a_watch_keeps_the_place(api: FakeApi, follow: Callable[..., Follower]) -> None:
    follower = follow()
    await until(lambda: api.requests["WATCH"])
    api.publish_raw({"type": "ERROR", "object": {"code": 500, "reason": "InternalError", "message": "etcd"}})
    await until(lambda: follower.count("weft_api_errors_total", reason="500"))
    assert api.requests["GET"] == 1


async def test_pages_that_expire_are_replaced_by_one_answer(
    api: FakeApi, follow: Callable[..., Follower]
) -> None:
    for number in range(8):
        api.put(f"n{number}")
    api.expire_pages = 1
    follower = follow()
    await asyncio.wait_for(follower.store.nodes.wait_synced(), 5)
    assert len(follower.store.nodes) == 8
    assert "limit" not in api.queries[2]


async def test_a_refusing_server_is_asked_when_it_said(api: FakeApi, follow: Callable[..., Follower]) -> None:
    api.put("n0")
    body = {"kind": "Status", "code": 429, "reason": "TooManyRequests", "message": "slow down"}
    api.fail = [web.json_response(body, status=429, headers={"Retry-After": "1"}), web.Response(status=503)]
    follower = follow()
    await until(lambda: api.requests["GET"] == 1)
    await asyncio.sleep(0.5)
    assert api.requests["GET"] == 1
    await asyncio.wait_for(follower.store.nodes.wait_synced(), 5)
    assert follower.count("weft_api_errors_total", reason="429") == 1
    assert follower.count("weft_api_errors_total", reason="503") == 1


async def test_a_silent_connection_counts_as_dead(api: FakeApi, follow: Callable[..., Follower]) -> None:
    api.silent = True
    follower = follow(Timing(watch=30, idle=0.2, first_delay=0.01, last_delay=0.05, patience=60))
    await until(lambda: api.requests["WATCH"] == 1)
    api.put("n0")
    await until(lambda: follower.count("weft_api_errors_total", reason="timeout"))
    api.silent = False
    await until(lambda: "n0" in follower.store.nodes)
    assert api.requests["GET"] == 1


async def test_watches_end_by_themselves_and_go_on(api: FakeApi, follow: Callable[..., Follower]) -> None:
    follower = follow(Timing(watch=0.5, idle=30, first_delay=0.01, last_delay=0.05, patience=60))
    await until(lambda: api.requests["WATCH"] == 2)
    api.put("n0")
    await until(lambda: "n0" in follower.store.nodes)
    assert api.requests["GET"] == 1
    assert not follower.count("weft_api_errors_total", reason="protocol")


async def test_a_server_that_ends_watches_at_once_is_not_hammered(
    api: FakeApi, follow: Callable[..., Follower]
) -> None:
    follow(Timing(watch=30, first_delay=0.2, last_delay=0.2, patience=60))
    await until(lambda: api.requests["GET"] == 1)
    api.fail = [web.Response(status=200) for _ in range(1000)]
    api.drop()
    await asyncio.sleep(1)
    assert api.requests["WATCH"] < 12


async def test_unchanged_objects_wake_nobody(api: FakeApi, follow: Callable[..., Follower]) -> None:
    api.put("n0", status=ip(1))
    follower = follow()
    await until(lambda: api.requests["WATCH"])
    subscription = follower.store.subscribe(NODE)
    subscription.take()
    for number in range(20):
        heartbeat = [{"type": "Ready", "status": "True", "lastHeartbeatTime": str(number)}]
        api.put("n0", status={**ip(1), "conditions": heartbeat})
    await until(lambda: follower.count("weft_api_events_total", type="modified") == 20)
    assert not subscription.take()


async def test_one_bad_node_stops_no_other(api: FakeApi, follow: Callable[..., Follower]) -> None:
    api.put("good", status=ip(1))
    api.put("bad", spec={"podCIDR": "nonsense"})
    api.put("fine", status=ip(2))
    follower = follow()
    await until(lambda: api.requests["WATCH"])
    assert set(follower.store.nodes) == {"good", "fine"}
    (row,) = follower.findings.rows()
    assert (row.name, row.key, row.level) == ("UndecodableNode", "bad", "warning")
    assert "'nonsense' is not a CIDR" in row.message
    api.put("good", status={"addresses": [{"type": "InternalIP", "address": "x"}]})
    await until(lambda: len(follower.findings.rows()) == 2)
    assert follower.store.nodes["good"].internal_ips == (bytes((10, 0, 0, 2)),)
    api.put("good", status=ip(4))
    api.delete("bad")
    await until(lambda: not follower.findings.rows())
    assert follower.store.nodes["good"].internal_ips == (bytes((10, 0, 0, 5)),)


async def test_a_bad_node_keeps_its_last_good_version_over_a_new_list(
    api: FakeApi, follow: Callable[..., Follower]
) -> None:
    api.put("n0", status=ip(1))
    follower = follow()
    await until(lambda: api.requests["WATCH"])
    await api.stop()
    api.put("n0", spec={"podCIDR": "nonsense"})
    api.forget()
    await api.start()
    await until(lambda: any(row.name == "UndecodableNode" for row in follower.findings.rows()))
    assert follower.store.nodes["n0"].internal_ips == (bytes((10, 0, 0, 2)),)


async def test_an_absent_optional_kind_is_an_empty_table_until_it_comes(
    api: FakeApi, follow: Callable[..., Follower]
) -> None:
    api.absent = True
    follower = follow(optional=True)
    await asyncio.wait_for(follower.store.nodes.wait_synced(), 5)
    assert not follower.store.nodes
    assert not follower.findings.rows()
    api.put("n0")
    api.absent = False
    await until(lambda: "n0" in follower.store.nodes)


async def test_an_absent_kind_that_is_needed_is_a_finding(
    api: FakeApi, follow: Callable[..., Follower]
) -> None:
    api.absent = True
    follower = follow()
    await until(lambda: follower.findings.rows())
    (row,) = follower.findings.rows()
    assert row.level == "error"
    assert "HTTP 404 NotFound" in row.message
    assert not follower.store.nodes.synced


async def test_versions_that_go_back_are_another_history(
    api: FakeApi, follow: Callable[..., Follower]
) -> None:
    follower = follow()
    await until(lambda: api.requests["WATCH"])
    api.put("n0")
    await until(lambda: "n0" in follower.store.nodes)
    del api.objects["n0"]
    item = {"metadata": {"name": "n1", "resourceVersion": "7"}}
    api.publish_raw({"type": "ADDED", "object": item})
    await until(lambda: api.requests["GET"] == 2)
    await until(lambda: not follower.store.nodes)


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"[]", b'{"items": 5, "metadata": {}}', b'{"items": []}', b'{"items": [], "metadata": {}}'],
)
async def test_an_answer_that_is_no_list_is_an_error_and_tried_again(
    api: FakeApi, follow: Callable[..., Follower], body: bytes
) -> None:
    api.put("n0")
    api.fail = [web.Response(body=body)]
    follower = follow()
    await until(lambda: "n0" in follower.store.nodes)
    assert follower.count("weft_api_errors_total", reason="protocol") == 1


@pytest.mark.parametrize(
    "event", [{"type": "ADDED"}, {"object": {}}, {"type": "ADDED", "object": {"metadata": 1}}]
)
async def test_a_watch_event_that_can_not_be_read_restarts_the_watch(
    api: FakeApi, follow: Callable[..., Follower], event: dict[str, Any]
) -> None:
    follower = follow()
    await until(lambda: api.requests["WATCH"])
    api.publish_raw(event)
    await until(lambda: follower.count("weft_api_errors_total", reason="protocol"))
    api.log.clear()
    api.put("n1")
    await until(lambda: "n1" in follower.store.nodes)


async def test_items_without_a_name_are_left_out(api: FakeApi, follow: Callable[..., Follower]) -> None:
    api.put("n0")
    items: list[Any] = [None, {}, {"metadata": {}}, {"metadata": {"name": "n5"}}]
    api.fail = [web.json_response({"items": items, "metadata": {"resourceVersion": "100"}})]
    follower = follow()
    await until(lambda: "n0" in follower.store.nodes)
    assert set(follower.store.nodes) == {"n5", "n0"}
    assert [row.key for row in follower.findings.rows()] == ["?"]


async def test_five_thousand_nodes(api: FakeApi, follow: Callable[..., Follower]) -> None:
    padding = {"images": [{"names": [f"registry.example/image-{number}" * 3]} for number in range(40)]}
    for number in range(5000):
        status = {**ip(number), **padding} if number % 10 == 0 else ip(number)
        api.put(
            f"n{number}", spec={"podCIDR": f"10.{100 + number // 250}.{number % 250}.0/24"}, status=status
        )
    api.forget()
    follower = follow(Timing())
    started = asyncio.get_running_loop().time()
    await asyncio.wait_for(follower.store.nodes.wait_synced(), 30)
    assert len(follower.store.nodes) == 5000
    assert api.requests["GET"] == 20
    assert asyncio.get_running_loop().time() - started < 15
    await until(lambda: api.requests["WATCH"])
    keys = follower.store.subscribe(NODE).take()
    assert len(keys) == 5000
    gc.collect()


async def test_large_events_pass_whole(api: FakeApi, follow: Callable[..., Follower]) -> None:
    follower = follow()
    await until(lambda: api.requests["WATCH"])
    api.put("big", metadata_padding="x" * (6 << 20), status=ip(1))
    await until(lambda: "big" in follower.store.nodes, 20)
    assert len(json.dumps(api.objects["big"])) > 6 << 20


WEIGHTS = {"put": 10, "delete": 6, "forget": 2, "drop": 2, "refuse": 2, "bookmark": 2, "outage": 1, "wait": 9}


async def happen(api: FakeApi, chance: random.Random) -> None:
    """One thing that happens to an API server."""
    name = f"n{chance.randrange(8)}"
    match chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]:
        case "put":
            api.put(name, status=ip(chance.randrange(5)))
        case "delete" if name in api.objects:
            api.delete(name)
        case "forget":
            api.forget()
        case "drop":
            api.drop()
        case "refuse":
            api.fail.append(web.Response(status=chance.choice([429, 500, 503])))
        case "bookmark":
            api.bookmark()
        case "outage":
            await api.stop()
            await asyncio.sleep(0.02)
            await api.start()
        case "wait":
            await asyncio.sleep(chance.random() * 0.02)


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_happens_the_table_ends_up_as_the_server(
    api: FakeApi, follow: Callable[..., Follower], seed: int
) -> None:
    """And a consumer that takes dirty keys now and then knows the same."""
    chance = random.Random(seed)
    follower = follow()
    subscription = follower.store.subscribe(NODE)
    seen: dict[str, object] = {}

    def consume() -> None:
        for key in subscription.take():
            if key.name in follower.store.nodes:
                seen[key.name] = follower.store.nodes[key.name]
            else:
                seen.pop(key.name, None)

    for _ in range(60):
        await happen(api, chance)
        if chance.random() < 0.1:
            consume()
    expected = {name: decode.node(item) for name, item in api.objects.items()}
    await until(lambda: dict(follower.store.nodes) == expected and follower.store.nodes.synced)
    await asyncio.sleep(0.05)
    assert dict(follower.store.nodes) == expected
    consume()
    assert seen == expected
