"""NetworkPolicies on real nodes: kubelets' probes pass, pods of both nodes are let in or shut out.

What all of policies' behaviour is, tests/functional and tests/property hold; here it is that objects of a
real API server, and pods that real kubelets probe, lead to it.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.cluster import flood
from tests.e2e.cluster.cluster import PODS
from tests.e2e.cluster.manifests import merge
from tests.e2e.cluster.policies import (
    PORT,
    PROBED_SECONDS,
    SECOND_PORT,
    Caller,
    apply_policy,
    create_probed,
    delete_policies,
    labelled,
    neighbourhood,
    packets_in,
    probes_failed,
)
from tests.e2e.cluster.processes import Program, wait_for
from tests.e2e.cluster.services import PORT as SERVICE_PORT
from tests.e2e.cluster.services import create_service

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tests.e2e.cluster.cluster import Cluster, Pod

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.timeout(120)]

DENY: dict[str, Any] = {"policyTypes": ["Ingress", "Egress"]}
IN_FORCE_SECONDS = 1.0


@pytest.fixture(scope="module")
def server(cluster: Cluster) -> Iterator[Pod]:
    """On the first node, probed by its kubelet in each way there is."""
    pod = create_probed(cluster, "server", "n1", app="server")
    yield pod
    cluster.delete_pods(pod.name)


@pytest.fixture(scope="module")
def callers(cluster: Cluster) -> Iterator[dict[str, Caller]]:
    """A pod beside the server, one on the other node, and both nodes themselves."""
    pods = {
        name: cluster.create_pod(name, node, serve=False, labels={"app": name})
        for name, node in (("near", "n1"), ("far", "n2"))
    }
    yield {
        **{name: Caller.pod(cluster, pod) for name, pod in pods.items()},
        **{name: Caller.node(cluster, name) for name in cluster.nodes},
    }
    cluster.delete_pods(*pods)


@pytest.fixture(autouse=True)
def no_policies(cluster: Cluster) -> Iterator[None]:
    """Every scenario ends without policies, and leaves nothing of them on the nodes."""
    yield
    delete_policies(cluster.api)
    for node in cluster.nodes.values():
        wait_for(
            f"no policy to be left on {node.name}",
            lambda node=node: "weft-policy" not in node.run("nft", "list", "tables"),  # type: ignore[misc]
            timeout=10,
        )


@contextmanager
def flooding(cluster: Cluster, pod: Pod, addresses: list[str], directory: Path) -> Iterator[None]:
    """UDP packets from a pod to addresses, for as long as the body runs."""
    command = cluster.in_network_of(pod, sys.executable, flood.__file__, *addresses)
    program = Program("flood", command, directory / "flood.log", nested=True)
    program.start()
    try:
        wait_for("the flood", lambda: program.says("flooding"), timeout=10)
        yield
    finally:
        program.kill()


def relabel(cluster: Cluster, pod: str, **labels: str) -> None:
    merge(cluster.api, f"{PODS}/{pod}", {"metadata": {"labels": labels}})


def finds(caller: Caller, outcome: str, addresses: Iterable[str], port: int = PORT) -> None:
    """Wait until connections to all addresses end so, which does not take long."""
    wanted = list(addresses)

    def found() -> bool:
        return caller.outcomes(wanted, port) == [outcome] * len(wanted)

    wait_for(f"{outcome} from {caller.name}", found, timeout=10, state=lambda: caller.outcomes(wanted, port))


def test_probes_pass_under_default_deny(cluster: Cluster, server: Pod, callers: dict[str, Caller]) -> None:
    """Also of a pod that comes later; and nobody else gets in, before the last policy goes."""
    finds(callers["far"], "connected", server.addresses)
    apply_policy(cluster.api, "deny", **DENY)
    for name in ("far", "near", "n2"):
        finds(callers[name], "silence", server.addresses)
    later = create_probed(cluster, "later", "n2", app="later")
    time.sleep(PROBED_SECONDS)
    for pod, own, other in ((server, "n1", "n2"), (later, "n2", "n1")):
        assert not probes_failed(cluster, pod)
        # Kubelets probe the first address of a pod: that of the other family is probed in their stead here,
        # and by a kubelet in test_address_families.
        assert callers[own].outcomes(pod.addresses) == ["connected"] * 2
        assert callers[own].outcomes(pod.addresses, SECOND_PORT) == ["refused"] * 2
        assert callers[other].outcomes(pod.addresses) == ["silence"] * 2
    assert callers["far"].outcomes(server.addresses) == ["silence"] * 2
    delete_policies(cluster.api, "deny")
    for name in ("far", "near", "n2"):
        finds(callers[name], "connected", server.addresses)
    cluster.delete_pods(later.name)


def test_pods_are_let_in_by_label_and_to_a_named_port(
    cluster: Cluster, server: Pod, callers: dict[str, Caller]
) -> None:
    """From the other node and their own, and what labels say changes at once."""
    apply_policy(
        cluster.api,
        "named",
        podSelector=labelled(app="server"),
        ingress=[{"from": [{"podSelector": labelled(app="far")}], "ports": [{"port": "http"}]}],
    )
    finds(callers["near"], "silence", server.addresses)
    finds(callers["far"], "connected", server.addresses)
    assert callers["far"].outcomes(server.addresses, SECOND_PORT) == ["silence"] * 2
    assert callers["n2"].outcomes(server.addresses) == ["silence"] * 2
    relabel(cluster, "far", app="stranger")
    relabel(cluster, "near", app="far")
    finds(callers["far"], "silence", server.addresses)
    finds(callers["near"], "connected", server.addresses)
    relabel(cluster, "server", app="open")
    finds(callers["far"], "connected", server.addresses)
    assert callers["far"].outcomes(server.addresses, SECOND_PORT) == ["refused"] * 2
    for name in ("near", "far", "server"):
        relabel(cluster, name, app=name)


def test_namespaces_are_let_in_by_label(cluster: Cluster, server: Pod, callers: dict[str, Caller]) -> None:
    namespace = "/api/v1/namespaces/default"
    peers = [{"namespaceSelector": labelled(team="friends")}]
    apply_policy(cluster.api, "team", podSelector=labelled(app="server"), ingress=[{"from": peers}])
    finds(callers["far"], "silence", server.addresses)
    merge(cluster.api, namespace, {"metadata": {"labels": {"team": "friends"}}})
    try:
        for name in ("far", "near"):
            finds(callers[name], "connected", server.addresses)
        assert callers["n2"].outcomes(server.addresses) == ["silence"] * 2, "a node is no pod"
    finally:
        merge(cluster.api, namespace, {"metadata": {"labels": {"team": None}}})
    finds(callers["far"], "silence", server.addresses)


def test_services_do_not_lead_around_policies(
    cluster: Cluster, server: Pod, callers: dict[str, Caller]
) -> None:
    """A policy sees the pod and its port behind a Service, and egress is decided there as well."""
    made = create_service(cluster, "front", "server", endpoints=1)
    addresses = made["spec"]["clusterIPs"]
    for name in callers:
        finds(callers[name], "connected", addresses, SERVICE_PORT)
    peers = [{"podSelector": labelled(app="far")}]
    apply_policy(
        cluster.api,
        "behind",
        podSelector=labelled(app="server"),
        ingress=[{"from": peers, "ports": [{"port": PORT}]}],
    )
    for name, outcome in {"near": "silence", "n2": "silence", "far": "connected", "n1": "connected"}.items():
        finds(callers[name], outcome, addresses, SERVICE_PORT)
    whole = [{"podSelector": labelled(app="nobody")}]
    apply_policy(
        cluster.api,
        "out",
        podSelector=labelled(app="far"),
        policyTypes=["Egress"],
        egress=[{"to": whole}],
    )
    finds(callers["far"], "silence", addresses, SERVICE_PORT)


def test_a_pod_is_closed_from_its_first_packet_on(cluster: Cluster, server: Pod, tmp_path: Path) -> None:
    """Though another sends to its addresses from before there is such a pod."""
    apply_policy(cluster.api, "deny", **DENY)
    allow = {"podSelector": labelled(app="flooder"), "policyTypes": ["Egress"], "egress": [{}]}
    apply_policy(cluster.api, "flood", **allow)
    flooder = cluster.create_pod("flooder", "n2", serve=False, labels={"app": "flooder"})
    newest = cluster.create_pod("newest", "n1", serve=False)
    with flooding(cluster, flooder, neighbourhood(newest), tmp_path):
        pods = [cluster.create_pod(f"born-{number}", "n1", labels={"app": "born"}) for number in range(3)]
        for pod in pods:
            assert set(pod.addresses) <= set(neighbourhood(newest)), "it was flooded"
            assert not packets_in(cluster, pod)
        apply_policy(cluster.api, "in", podSelector=labelled(app="born"), ingress=[{}])
        for pod in pods:
            wait_for("the flood to be one", lambda pod=pod: packets_in(cluster, pod) > 0, timeout=10)  # type: ignore[misc]
    cluster.delete_pods(flooder.name, newest.name, *(pod.name for pod in pods))


def test_policies_hold_without_the_daemon_and_what_came_meanwhile_is_in_force_with_it(
    cluster: Cluster, server: Pod, callers: dict[str, Caller], tmp_path: Path
) -> None:
    apply_policy(cluster.api, "deny", podSelector=labelled(app="server"))
    finds(callers["far"], "silence", server.addresses)
    flooder = cluster.create_pod("flooder", "n2", serve=False)
    before = packets_in(cluster, server)
    node = cluster.nodes["n1"]
    with flooding(cluster, flooder, list(server.addresses), tmp_path):
        node.weft.kill()
        try:
            assert callers["far"].outcomes(server.addresses) == ["silence"] * 2
            assert callers["n1"].outcomes(server.addresses) == ["connected"] * 2
            peers = [{"podSelector": labelled(app="far")}]
            apply_policy(cluster.api, "allow", podSelector=labelled(app="server"), ingress=[{"from": peers}])
        finally:
            node.weft.start()
        node.weft.await_ready()
        began = time.monotonic()
        while callers["far"].outcomes(server.addresses) != ["connected"] * 2:
            assert time.monotonic() - began < IN_FORCE_SECONDS
        assert callers["near"].outcomes(server.addresses) == ["silence"] * 2
        assert packets_in(cluster, server) == before, "the restart opened a gap"
        assert not probes_failed(cluster, server)
    cluster.delete_pods(flooder.name)
