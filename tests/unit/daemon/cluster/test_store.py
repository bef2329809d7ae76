"""Tables and subscriptions: coalesced, complete, and silent when nothing changed."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.cluster.model import EndpointSlice, Node, Service, ServiceCIDR
from daemon.cluster.store import (
    ENDPOINT_SLICE,
    NAMESPACE,
    NETWORK_POLICY,
    NODE,
    POD,
    REMOTE_POD,
    SERVICE,
    SERVICE_CIDR,
    Key,
    Store,
)


def node(name: str, number: int = 0) -> Node:
    return Node(name, "uid", (bytes((10, 0, 0, number)),), ())


def endpoint_slice(name: str, service: str, triggered: float = 0) -> EndpointSlice:
    return EndpointSlice("shop", name, service, 4, triggered=triggered)


async def test_a_subscription_starts_with_all_that_exists() -> None:
    store = Store()
    store.nodes.put("a", node("a"))
    store.service_cidrs.put("kubernetes", ServiceCIDR("kubernetes", ()))
    assert store.subscribe(NODE).take() == {Key(NODE, "a")}
    assert store.subscribe().take() == {Key(NODE, "a"), Key(SERVICE_CIDR, "kubernetes")}


async def test_changes_are_coalesced_while_the_consumer_is_busy() -> None:
    store = Store()
    subscription = store.subscribe(NODE)
    for number in range(100):
        store.nodes.put("a", node("a", number))
        store.nodes.put("b", node("b", number))
    store.nodes.remove("b")
    store.service_cidrs.put("kubernetes", ServiceCIDR("kubernetes", ()))
    assert await subscription.next() == {Key(NODE, "a"), Key(NODE, "b")}
    assert not subscription.take()
    assert store.nodes["a"] == node("a", 99)


async def test_equal_values_are_no_change() -> None:
    store = Store()
    assert store.nodes.put("a", node("a"))
    subscription = store.subscribe(NODE)
    subscription.take()
    assert not store.nodes.put("a", node("a"))
    assert not store.nodes.remove("b")
    assert store.nodes.replace({"a": node("a")}) == 0
    assert not subscription.take()


async def test_replacing_all_is_a_difference() -> None:
    store = Store()
    for name in "abc":
        store.nodes.put(name, node(name))
    subscription = store.subscribe(NODE)
    subscription.take()
    assert store.nodes.replace({"b": node("b"), "c": node("c", 1), "d": node("d")}) == 3
    assert subscription.take() == {Key(NODE, "a"), Key(NODE, "c"), Key(NODE, "d")}
    assert store.nodes.synced
    assert dict(store.nodes) == {"b": node("b"), "c": node("c", 1), "d": node("d")}


async def test_waiting_for_all_tables() -> None:
    store = Store()
    waiting = asyncio.ensure_future(store.wait_synced())
    store.nodes.replace({})
    await asyncio.sleep(0)
    for table in store.tables[1:]:
        assert not store.synced
        assert not waiting.done()
        table.replace({})
    await asyncio.wait_for(waiting, 1)
    assert store.synced


async def test_cancelling_a_wait_loses_nothing() -> None:
    store = Store()
    subscription = store.subscribe(NODE)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(subscription.next(), 0.01)
    store.nodes.put("a", node("a"))
    assert await subscription.next() == {Key(NODE, "a")}


async def test_a_key_can_be_put_back() -> None:
    store = Store()
    subscription = store.subscribe(NODE)
    subscription.mark(Key(NODE, "a"))
    assert len(subscription) == 1
    assert await asyncio.wait_for(subscription.next(), 1) == {Key(NODE, "a")}


async def test_changes_as_an_iterator_end_with_their_subscription() -> None:
    store = Store()
    store.nodes.put("a", node("a"))
    changes = store.changes(NODE)
    assert await anext(changes) == {Key(NODE, "a")}
    store.nodes.put("b", node("b"))
    assert await anext(changes) == {Key(NODE, "b")}
    await changes.aclose()  # type: ignore[attr-defined]
    store.nodes.put("c", node("c"))
    assert not store._subscriptions


async def test_a_changed_slice_makes_its_service_dirty() -> None:
    store = Store()
    services, slices = store.subscribe(SERVICE), store.subscribe(ENDPOINT_SLICE)
    store.endpoint_slices.put("shop/web-1", endpoint_slice("web-1", "web"))
    assert services.take() == {Key(SERVICE, "shop/web")}
    assert slices.take() == {Key(ENDPOINT_SLICE, "shop/web-1")}
    assert not store.endpoint_slices.put("shop/web-1", endpoint_slice("web-1", "web", triggered=1))
    assert not services.take()
    store.endpoint_slices.remove("shop/web-1")
    assert not store.endpoint_slices.remove("shop/web-1")
    assert services.take() == {Key(SERVICE, "shop/web")}
    assert store.endpoint_slices.of("shop/web") == ()


async def test_a_slice_that_moves_makes_both_services_dirty() -> None:
    store = Store()
    store.endpoint_slices.put("shop/web-1", endpoint_slice("web-1", "web"))
    subscription = store.subscribe(SERVICE)
    subscription.take()
    store.endpoint_slices.replace({"shop/web-1": endpoint_slice("web-1", "api")})
    assert subscription.take() == {Key(SERVICE, "shop/web"), Key(SERVICE, "shop/api")}
    assert store.endpoint_slices.of("shop/web") == ()
    assert store.endpoint_slices.of("shop/api") == (endpoint_slice("web-1", "api"),)


async def test_the_slices_of_a_service_are_in_the_order_of_their_names() -> None:
    store = Store()
    for name in ("web-2", "web-3", "web-1"):
        store.endpoint_slices.put(f"shop/{name}", endpoint_slice(name, "web"))
    assert [each.name for each in store.endpoint_slices.of("shop/web")] == ["web-1", "web-2", "web-3"]
    assert store.endpoint_slices.of("shop/none") == ()


async def test_services_are_found_when_subscribed_to_after_their_slices() -> None:
    store = Store()
    store.endpoint_slices.put("shop/web-1", endpoint_slice("web-1", "web"))
    store.services.put("shop/web", Service("shop", "web"))
    assert store.subscribe(SERVICE).take() == {Key(SERVICE, "shop/web")}


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.sampled_from("abcd"), st.integers(0, 2)),
            st.tuples(st.just("remove"), st.sampled_from("abcd"), st.just(0)),
            st.tuples(st.just("take"), st.just(""), st.just(0)),
        )
    )
)
def test_a_consumer_that_looks_at_dirty_keys_only_knows_everything(steps: list[tuple[str, str, int]]) -> None:
    async def run() -> None:
        store = Store()
        subscription = store.subscribe(NODE)
        seen: dict[str, Node] = {}
        for action, name, number in [*steps, ("take", "", 0)]:
            if action == "put":
                store.nodes.put(name, node(name, number))
            elif action == "remove":
                store.nodes.remove(name)
            else:
                for key in subscription.take():
                    value = store.nodes.get(key.name)
                    if value is None:
                        seen.pop(key.name, None)
                    else:
                        seen[key.name] = value
        assert seen == dict(store.nodes)

    asyncio.run(run())


async def test_a_table_that_is_abandoned_is_empty_and_not_complete() -> None:
    store = Store()
    store.nodes.replace({"a": node("a")})
    subscription = store.subscribe(NODE)
    subscription.take()
    store.nodes.abandon()
    assert not store.nodes
    assert not store.nodes.synced
    assert subscription.take() == {Key(NODE, "a")}
    store.nodes.replace({})
    assert store.nodes.synced


async def test_what_policies_need_can_be_followed_and_is_not_waited_for() -> None:
    store = Store()
    everything = store.subscribe()
    for table in (*store.policy_tables, store.remote_pods):
        table.put("x", object())
    assert everything.take() == {Key(kind, "x") for kind in (NAMESPACE, NETWORK_POLICY, POD, REMOTE_POD)}
    for table in store.tables:
        table.replace({})
    assert store.synced
    assert store.subscribe(POD).take() == {Key(POD, "x")}
