import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from lab.api.server import ApiServer
from lab.api.storage import Storage

PODS = "/api/v1/namespaces/default/pods"
NODES = "/api/v1/nodes"


class Api:
    """The server under test and a client of it."""

    def __init__(self, path: Path) -> None:
        self.server = ApiServer(Storage())
        self.path = str(path / "api.sock")
        self.session: aiohttp.ClientSession

    async def listen(self) -> None:
        Path(self.path).unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.bind(self.path)
        await self.server.start(sock)

    async def call(
        self, method: str, url: str, body: Any = None, kind: str = "application/json"
    ) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body)
        async with self.session.request(
            method, f"http://api{url}", data=data, headers={"Content-Type": kind}
        ) as response:
            return response.status, await response.json(content_type=None)

    async def get(self, url: str) -> Any:
        status, answer = await self.call("GET", url)
        assert status == 200, answer
        return answer

    async def watch(self, url: str) -> AsyncIterator[tuple[str, Any]]:
        async with self.session.get(f"http://api{url}") as response:
            async for line in response.content:
                event = json.loads(line)
                yield event["type"], event["object"]


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    api = Api(tmp_path)
    await api.listen()
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(api.path)) as session:
        api.session = session
        yield api
    await api.server.stop()


def pod(name: str, **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": labels}, "spec": {}}


async def test_objects_from_creation_to_deletion(api: Api) -> None:
    status, created = await api.call("POST", PODS, pod("a"))
    assert status == 201
    assert created["metadata"]["namespace"] == "default"
    assert created["kind"] == "Pod"
    assert (await api.get(f"{PODS}/a"))["metadata"]["uid"] == created["metadata"]["uid"]
    assert (await api.call("POST", PODS, pod("a")))[0] == 409
    assert (await api.call("DELETE", f"{PODS}/a"))[0] == 200
    status, answer = await api.call("GET", f"{PODS}/a")
    assert (status, answer["reason"], answer["kind"]) == (404, "NotFound", "Status")


async def test_unknown_kinds_paths_methods_and_bodies_are_refused(api: Api) -> None:
    await api.call("POST", PODS, pod("a"))
    assert (await api.call("GET", "/api/v1/unknowns"))[0] == 404
    assert (await api.call("GET", "/nothing"))[0] == 404
    assert (await api.call("PUT", PODS, pod("a")))[0] == 405
    assert (await api.call("PATCH", f"{PODS}/a", {}, "text/plain"))[0] == 415
    async with api.session.post(f"http://api{PODS}", data=b"\x00{") as response:
        assert response.status == 400
    assert (await api.call("GET", f"{PODS}?labelSelector=a%20in%20b"))[0] == 400


async def test_update_with_an_old_version_is_a_conflict(api: Api) -> None:
    _, first = await api.call("POST", PODS, pod("a"))
    status, second = await api.call("PUT", f"{PODS}/a", {**first, "spec": {"nodeName": "n"}})
    assert status == 200
    assert second["metadata"]["resourceVersion"] > first["metadata"]["resourceVersion"]
    assert (await api.call("PUT", f"{PODS}/a", {**first, "spec": {}}))[0] == 409


async def test_status_is_written_through_its_subresource_only(api: Api) -> None:
    await api.call("POST", NODES, {"metadata": {"name": "n"}, "spec": {}, "status": {"phase": "one"}})
    strategic = "application/strategic-merge-patch+json"
    await api.call("PATCH", f"{NODES}/n", {"spec": {"podCIDR": "x"}, "status": {"phase": "two"}}, strategic)
    assert (await api.get(f"{NODES}/n"))["status"] == {"phase": "one"}
    patch = {
        "spec": {"podCIDR": "y"},
        "status": {"conditions": [{"type": "NetworkUnavailable", "status": "False"}]},
    }
    await api.call("PATCH", f"{NODES}/n/status", patch, strategic)
    node = await api.get(f"{NODES}/n")
    assert node["spec"] == {"podCIDR": "x"}
    assert node["status"]["phase"] == "one"
    assert node["status"]["conditions"][0]["type"] == "NetworkUnavailable"


async def test_lists_come_in_pages_and_by_selector(api: Api) -> None:
    for number in range(5):
        await api.call("POST", PODS, pod(f"p{number}", parity=str(number % 2)))
    first = await api.get(f"{PODS}?limit=2")
    assert [item["metadata"]["name"] for item in first["items"]] == ["p0", "p1"]
    assert first["metadata"]["remainingItemCount"] == 3
    names, token = [], first["metadata"]["continue"]
    while token:
        page = await api.get(f"{PODS}?limit=2&continue={token}")
        assert page["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
        names += [item["metadata"]["name"] for item in page["items"]]
        token = page["metadata"].get("continue")
    assert names == ["p2", "p3", "p4"]
    odd = await api.get("/api/v1/pods?labelSelector=parity%3D1&fieldSelector=metadata.namespace%3Ddefault")
    assert [item["metadata"]["name"] for item in odd["items"]] == ["p1", "p3"]


async def test_a_continue_token_expires_with_the_history(api: Api) -> None:
    for number in range(3):
        await api.call("POST", PODS, pod(f"p{number}"))
    token = (await api.get(f"{PODS}?limit=1"))["metadata"]["continue"]
    api.server.storage.forget()
    status, answer = await api.call("GET", f"{PODS}?limit=1&continue={token}")
    assert (status, answer["reason"]) == (410, "Expired")


async def test_a_watch_tells_what_follows_a_list(api: Api) -> None:
    await api.call("POST", PODS, pod("before"))
    version = (await api.get(PODS))["metadata"]["resourceVersion"]
    await api.call("POST", PODS, pod("after", app="x"))
    await api.call(
        "PATCH", f"{PODS}/after", {"metadata": {"labels": {"app": "y"}}}, "application/merge-patch+json"
    )
    await api.call("DELETE", f"{PODS}/before")
    told = [
        (kind, item["metadata"]["name"])
        async for kind, item in api.watch(f"{PODS}?watch=1&resourceVersion={version}&timeoutSeconds=0.2")
    ]
    assert told == [("ADDED", "after"), ("MODIFIED", "after"), ("DELETED", "before")]


async def test_leaving_a_selection_is_a_deletion_to_its_watcher(api: Api) -> None:
    await api.call("POST", PODS, pod("a", app="x"))
    version = (await api.get(PODS))["metadata"]["resourceVersion"]
    for app in ("y", "x"):
        patch = {"metadata": {"labels": {"app": app}}}
        await api.call("PATCH", f"{PODS}/a", patch, "application/merge-patch+json")
    url = f"{PODS}?watch=true&labelSelector=app%3Dx&resourceVersion={version}&timeoutSeconds=0.2"
    assert [kind async for kind, _ in api.watch(url)] == ["DELETED", "ADDED"]


async def test_a_watch_without_version_begins_with_all_objects(api: Api) -> None:
    await api.call("POST", PODS, pod("a"))
    url = f"{PODS}?watch=1&timeoutSeconds=0.2&sendInitialEvents=true&allowWatchBookmarks=true"
    told = [(kind, item["metadata"].get("name", "")) async for kind, item in api.watch(url)]
    assert told == [("ADDED", "a"), ("BOOKMARK", "")]


async def test_bookmarks_tell_the_version_of_what_was_sent(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.api.watches.BOOKMARK_SECONDS", 0.05)
    await api.call("POST", NODES, {"metadata": {"name": "unrelated"}})
    version = (await api.get(PODS))["metadata"]["resourceVersion"]
    await api.call("POST", NODES, {"metadata": {"name": "another"}})
    url = f"{PODS}?watch=1&timeoutSeconds=0.3&allowWatchBookmarks=true&resourceVersion={version}"
    versions = [
        int(item["metadata"]["resourceVersion"]) async for kind, item in api.watch(url) if kind == "BOOKMARK"
    ]
    assert len(versions) >= 2
    assert set(versions) == {int(version) + 1}


async def test_a_version_older_than_the_history_is_gone(api: Api) -> None:
    await api.call("POST", PODS, pod("a"))
    version = (await api.get(PODS))["metadata"]["resourceVersion"]
    api.server.storage.forget()
    told = [
        (kind, item["code"]) async for kind, item in api.watch(f"{PODS}?watch=1&resourceVersion={version}")
    ]
    assert told == [("ERROR", 410)]


async def test_a_running_watch_is_told_when_its_history_is_forgotten(api: Api) -> None:
    version = (await api.get(PODS))["metadata"]["resourceVersion"]
    asyncio.get_running_loop().call_later(0.05, api.server.storage.forget)
    told = [kind async for kind, _ in api.watch(f"{PODS}?watch=1&resourceVersion={version}&timeoutSeconds=5")]
    assert told == ["ERROR"]


async def test_faults(api: Api) -> None:
    api.server.faults.status = 429
    assert (await api.call("GET", NODES))[0] == 429
    api.server.faults.status = 0
    api.server.faults.hang = True
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await api.get(NODES)
    api.server.faults.hang = False
    await api.server.stop()
    with pytest.raises(aiohttp.ClientError):
        await api.get(NODES)
    await api.listen()
    await api.get(NODES)


async def test_a_dropped_watch_breaks_off(api: Api) -> None:
    asyncio.get_running_loop().call_later(0.05, api.server.drop_watches)
    with pytest.raises(aiohttp.ClientError):
        async for _ in api.watch(f"{PODS}?watch=1&resourceVersion=1&timeoutSeconds=5"):
            pass


async def test_pods_on_a_node_are_deleted_by_their_kubelet(api: Api) -> None:
    await api.call("POST", PODS, {"metadata": {"name": "a"}, "spec": {"nodeName": "n"}})
    await api.call("DELETE", f"{PODS}/a")
    assert "deletionTimestamp" in (await api.get(f"{PODS}/a"))["metadata"]
    await api.call("DELETE", f"{PODS}/a", {"gracePeriodSeconds": 0})
    assert (await api.call("GET", f"{PODS}/a"))[0] == 404


async def test_custom_resources_are_stored_once_defined(api: Api) -> None:
    names = {"kind": "Pool", "plural": "pools"}
    spec = {"group": "weft.dev", "names": names, "scope": "Cluster", "versions": [{"name": "v1"}]}
    definition = {"metadata": {"name": "pools.weft.dev"}, "spec": spec}
    assert (await api.call("GET", "/apis/weft.dev/v1/pools"))[0] == 404
    await api.call("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
    await api.call("POST", "/apis/weft.dev/v1/pools", {"metadata": {"name": "p"}})
    assert (await api.get("/apis/weft.dev/v1/pools"))["kind"] == "PoolList"


async def test_discovery(api: Api) -> None:
    assert (await api.get("/version"))["major"] == "1"
    groups = [group["name"] for group in (await api.get("/apis"))["groups"]]
    assert "networking.k8s.io" in groups
    names = [resource["name"] for resource in (await api.get("/api/v1"))["resources"]]
    assert {"pods", "nodes", "services"} <= set(names)
    async with api.session.get("http://api/readyz") as response:
        assert await response.text() == "ok"
