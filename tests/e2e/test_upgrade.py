"""Roll-outs under load: a restart, another version and back; not a packet is lost, and pods come and go."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.cluster import manifests
from tests.e2e.cluster.cluster import PODS, pod_manifest
from tests.e2e.cluster.deployment import MANIFEST, image_of
from tests.e2e.cluster.previous import previous_release
from tests.e2e.cluster.processes import wait_for
from tests.e2e.cluster.traffic import FAMILIES, pinging, seen_from_pod, streaming, url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.cluster.cluster import Cluster, Pod
    from tests.e2e.cluster.node import Node
    from tests.e2e.cluster.previous import Release

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.timeout(900)]

SHIMS = ("weft", "loopback")


@pytest.fixture(scope="module")
def pods(cluster: Cluster) -> Iterator[list[Pod]]:
    """Two pods on each node."""
    yield [cluster.create_pod(f"{node}-{letter}", node) for node in cluster.nodes for letter in "ab"]
    cluster.delete_pods()


@pytest.fixture(scope="module")
def previous(cluster: Cluster) -> Release:
    """Another build: its image is on the nodes."""
    release = previous_release()
    for node in cluster.nodes.values():
        node.ctr("images", "import", release.archive)
    return release


@contextlib.contextmanager
def load(cluster: Cluster, pods: list[Pod]) -> Iterator[None]:
    """Pings and TCP streams in both directions between the nodes, and between two pods of one node."""
    first, second, *_, last = pods
    with contextlib.ExitStack() as stack:
        for client, server in ((first, last), (last, first), (first, second)):
            stack.enter_context(pinging(cluster, client, list(server.addresses)))
        stack.enter_context(streaming(cluster, first, last))
        stack.enter_context(streaming(cluster, last, second))
        yield


def churn(cluster: Cluster, name: str, roll_out: Callable[[], object], pods: list[Pod]) -> None:
    """Creates pods and deletes half of them while a roll-out goes on; all end as they should."""
    names = [f"{name}-{number}" for number in range(10)]
    roll_out()
    for number, each in enumerate(names):
        cluster.api.create(PODS, pod_manifest(each))
        if number >= 4 and number % 2:
            cluster.api.delete(f"{PODS}/{names[number - 4]}")
        time.sleep(0.4)
    for each in names[7::2]:
        cluster.api.delete(f"{PODS}/{each}")
    cluster.weft.await_rollout()
    kept = [cluster.await_pod(each) for each in names[::2]]
    addresses = [address for pod in (*pods, *kept) for address in pod.addresses]
    assert len(set(addresses)) == len(addresses)
    for pod in kept:
        for address in pod.addresses:
            reached = cluster.api.execute(pods[0].name, "ping", "-c", "1", "-W", "2", address)
            assert reached.exit_code == 0, reached.output
    for family in FAMILIES:
        seen = seen_from_pod(cluster, pods[0], url(getattr(pods[-1], family)))
        assert seen == getattr(pods[0], family)
    cluster.delete_pods(*names)
    expected = {pod.name for pod in pods}
    wait_for(
        "no attachments but the pods'",
        lambda: attached(cluster) == expected,
        state=lambda: attached(cluster),
    )


def attached(cluster: Cluster) -> set[str]:
    """Names of the pods that the agents know; nothing else may be on a node's tombstone list."""
    names: set[str] = set()
    for node in cluster.nodes.values():
        assert not node.files("/run/weft/deletions")
        listed = node.weftctl("attachments").splitlines()[1:]
        names |= {line.split()[1] for line in listed if line.split()[0] == "default"}
    return names


def shim_of(node: Node) -> bytes:
    content = node.path("/opt/cni/bin/weft").read_bytes()
    assert node.path("/opt/cni/bin/loopback").read_bytes() == content
    return content


def test_a_restart_by_roll_out_touches_no_traffic(cluster: Cluster, pods: list[Pod]) -> None:
    before = cluster.weft.agents()
    with load(cluster, pods):
        churn(cluster, "restart", cluster.weft.restart, pods)
    after = cluster.weft.agents()
    assert {pod["metadata"]["uid"] for pod in before.values()}.isdisjoint(
        pod["metadata"]["uid"] for pod in after.values()
    )
    assert not any(cluster.weft.restarts().values())


def test_an_upgrade_and_its_rollback_touch_no_traffic(
    cluster: Cluster, pods: list[Pod], previous: Release
) -> None:
    """From this build to another one, and back; each with its own manifest, image, shim and state."""
    current = manifests.load(MANIFEST)
    shims = {image_of(current): shim_of(cluster.nodes["n1"])}
    with load(cluster, pods):
        for turn, objects in enumerate((previous.objects, current)):
            churn(cluster, f"turn-{turn}", lambda each=objects: manifests.apply(cluster.api, each), pods)  # type: ignore[misc]
            image = image_of(objects)
            for pod in cluster.weft.agents().values():
                assert pod["spec"]["containers"][0]["image"] == image
            for node in cluster.nodes.values():
                assert shims.setdefault(image, shim_of(node)) == shim_of(node)
        assert len(set(shims.values())) == 2, "the two builds have the same shim"
    assert not any(cluster.weft.restarts().values())


def test_each_builds_shim_works_with_the_others_daemon(
    cluster: Cluster, pods: list[Pod], previous: Release
) -> None:
    """As when a shim is called at the moment when a node changes from one version to the other."""
    current = manifests.load(MANIFEST)
    own = shim_of(cluster.nodes["n1"])
    with pinging(cluster, pods[0], list(pods[-1].addresses)):
        manifests.apply(cluster.api, previous.objects)
        cluster.weft.await_rollout()
        other = shim_of(cluster.nodes["n1"])
        come_and_go(cluster, "new-shim", own)
        manifests.apply(cluster.api, current)
        cluster.weft.await_rollout()
        come_and_go(cluster, "old-shim", other)
        cluster.weft.restart()  # puts the right one in place again
        cluster.weft.await_rollout()
    for node in cluster.nodes.values():
        assert shim_of(node) == own


def come_and_go(cluster: Cluster, name: str, shim: bytes) -> None:
    """Puts a shim in place of the installed one; pods start and stop by it, with their agent and without."""
    for node in cluster.nodes.values():
        for program in SHIMS:
            part = node.path(f"/opt/cni/bin/.{program}.part")
            part.write_bytes(shim)
            part.chmod(0o755)
            part.rename(node.path(f"/opt/cni/bin/{program}"))
        first, second = (cluster.create_pod(f"{name}-{node.name}-{number}", node.name) for number in "12")
        cluster.delete_pods(first.name)
        node.weft.kill()
        cluster.delete_pods(second.name)
        wait_for("a tombstone", lambda node=node: node.files("/run/weft/deletions"))  # type: ignore[misc]
        hold = node.path("/opt/cni/bin/weft").read_bytes()
        node.weft.start()
        cluster.weft.await_rollout()
        assert hold == shim
        wait_for(
            "the deletions to be done",
            lambda node=node: not node.files("/run/weft/deletions"),  # type: ignore[misc]
        )
