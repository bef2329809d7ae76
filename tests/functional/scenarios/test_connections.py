"""Connections under way when policies change: between real daemons' pods, on their kernels."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest

from datapath.netlink.ctnetlink import del_flow, get_flows
from datapath.netlink.transport import NETLINK_NETFILTER, Socket
from lab.echo import Bind, client_socket, sockets_in
from tests.functional.lab_cluster import LabCluster
from tests.functional.policed_pods import delete_policies, named, pod, policy

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

NODES = {"friend": "node-1", "stranger": "node-1", "remote": "node-2", "server": "node-1"}
PORT = 7000
CUT_SECONDS = 1.0
KINDS = ("tcp", "udp")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabCluster]:
    with LabCluster(tmp_path_factory.mktemp("connections") / "state", nodes=2) as lab:
        lab.call(lambda: [lab.cluster.apply(pod(name, node)) for name, node in NODES.items()])
        lab.run(lab.cluster.wait_ready(30))
        yield lab


@pytest.fixture(autouse=True)
def tidy(lab: LabCluster) -> Iterator[None]:
    """Every scenario ends without policies, and with kernels as desired."""
    yield
    delete_policies(lab)
    lab.wait(lambda: "weft-policy" not in lab.sh("node-1", "nft list tables"), "tables gone", 5)
    lab.wait(lambda: not lab.differences(), "kernels as desired", 10)


def allow(*names: str) -> dict[str, Any]:
    """Ingress from these pods."""
    return {"ingress": [{"from": [{"podSelector": named(each)} for each in names]}]}


class Talk:
    """A connection from a pod to the server."""

    def __init__(self, lab: LabCluster, source: str, address: str, kind: str) -> None:
        net = lab.sandbox(source).descriptor
        self.caller = client_socket(net, ip_address(address).version, kind)
        self.caller.settimeout(5)
        server = lab.sandbox("server").descriptor
        with contextlib.ExitStack() as undo:
            (listener,) = sockets_in(server, [Bind(kind, address, PORT)])
            listener.settimeout(5)
            self.called = undo.enter_context(listener)
            self.caller.connect((address, PORT))
            if kind == "tcp":
                self.called = listener.accept()[0]
            else:
                self.caller.send(b"?")
                self.called.connect(listener.recvfrom(16)[1])
                undo.pop_all()
        for each in (self.caller, self.called):
            each.settimeout(0)
        assert self.asks()
        assert self.answers()

    def close(self) -> None:
        self.caller.close()
        self.called.close()

    def asks(self, seconds: float = 1.0) -> bool:
        return _arrives(self.caller, self.called, seconds)

    def answers(self, seconds: float = 1.0) -> bool:
        return _arrives(self.called, self.caller, seconds)


def _arrives(one: socket.socket, other: socket.socket, seconds: float) -> bool:
    """Whether something that is said arrives within a time."""
    _drain(other)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            one.send(b".")
        time.sleep(0.02)
        if _drain(other):
            return True
    return False


def _drain(one: socket.socket) -> bool:
    found = False
    with contextlib.suppress(BlockingIOError):
        while one.recv(4096):
            found = True
    return found


@pytest.fixture
def begin(lab: LabCluster) -> Iterator[Callable[..., list[Talk]]]:
    """Makes connections from a pod to the server: of both families, of both protocols."""
    made: list[Talk] = []

    def begin(source: str, *kinds: str) -> list[Talk]:
        talks = [
            Talk(lab, source, address, kind) for address in lab.addresses("server") for kind in kinds or KINDS
        ]
        made.extend(talks)
        return talks

    yield begin
    for each in made:
        each.close()


def silent(talks: list[Talk], seconds: float = 0.3) -> bool:
    """Whether nothing gets through any more, either way."""
    return not any(talk.asks(seconds) or talk.answers(seconds) for talk in talks)


def cut_within(talks: list[Talk], act: Callable[[], None]) -> float:
    """Do something that cuts connections; return after how many seconds the last packet came through."""
    act()
    began = last = time.monotonic()
    while time.monotonic() < max(last + 0.5, began + CUT_SECONDS):
        for talk in talks:
            for one, other in ((talk.caller, talk.called), (talk.called, talk.caller)):
                with contextlib.suppress(BlockingIOError):
                    one.send(b".")
                if _drain(other):
                    last = time.monotonic()
        time.sleep(0.01)
        assert last < began + 5, "they are not cut"
    return last - began


def test_a_stricter_policy_cuts_within_a_second_and_leaves_the_allowed_alone(
    lab: LabCluster, begin: Callable[..., list[Talk]]
) -> None:
    policy(lab, "policy", **allow("friend", "stranger"))
    lab.wait(lambda: "weft-policy" in lab.sh("node-1", "nft list tables"), "in force", 5)
    strangers, friends = begin("stranger"), begin("friend")
    assert cut_within(strangers, lambda: policy(lab, "policy", **allow("friend"))) < CUT_SECONDS
    assert silent(strangers)
    for talk in friends:
        assert talk.asks(0.5)
        assert talk.answers(0.5)
    policy(lab, "policy", **allow("friend", "stranger"))
    for talk in strangers:
        lab.wait(lambda talk=talk: talk.asks() and talk.answers(), "they go on", 10)  # type: ignore[misc]


def test_the_first_policy_cuts_what_began_without_any(
    lab: LabCluster, begin: Callable[..., list[Talk]]
) -> None:
    strangers, remote = begin("stranger"), begin("remote")
    deny = {"policyTypes": ["Ingress"]}
    assert cut_within(strangers + remote, lambda: policy(lab, "policy", **deny)) < CUT_SECONDS


def test_egress_is_cut_too(lab: LabCluster, begin: Callable[..., list[Talk]]) -> None:
    strangers = begin("stranger")
    deny = {"podSelector": named("stranger"), "policyTypes": ["Egress"]}
    assert cut_within(strangers, lambda: policy(lab, "policy", **deny)) < CUT_SECONDS


def lose_flows(lab: LabCluster) -> None:
    """Have node-1 forget all connections with the server."""
    namespace = os.open(f"/proc/{lab.node('node-1').daemon.pid}/ns/net", os.O_RDONLY)
    try:
        with Socket(NETLINK_NETFILTER, namespace=namespace) as netfilter:
            listed = list(netfilter.stream(get_flows(), "flows"))
            netfilter.batch_collect([del_flow(each) for each in listed], "flows")
    finally:
        os.close(namespace)


def test_what_is_cut_stays_so_when_its_tracking_is_lost_and_the_server_speaks_first(
    lab: LabCluster, begin: Callable[..., list[Talk]]
) -> None:
    strangers, friends = begin("stranger", "tcp"), begin("friend", "tcp")
    assert cut_within(strangers, lambda: policy(lab, "policy", **allow("friend"))) < CUT_SECONDS
    lose_flows(lab)
    for talk in strangers:
        assert not talk.answers()
        assert not talk.asks()
    for talk in friends:
        assert talk.asks()
        assert talk.answers()


def test_a_foreign_flush_opens_no_connection_that_lives_on(
    lab: LabCluster, begin: Callable[..., list[Talk]]
) -> None:
    policy(lab, "policy", **allow("friend"))
    lab.wait(lambda: "weft-policy" in lab.sh("node-1", "nft list tables"), "in force", 5)
    friends = begin("friend")
    daemon = lab.node("node-1").daemon.pid
    # Held up, so that there is time to begin something.
    os.kill(daemon, signal.SIGSTOP)
    try:
        lab.sh(
            "node-1",
            "nft flush ruleset; nft add table inet others; nft add chain inet others c "
            "'{ type filter hook forward priority 0; }'; nft add rule inet others c ct state new counter",
        )
        strangers = begin("stranger")
    finally:
        os.kill(daemon, signal.SIGCONT)
    lab.wait(lambda: silent(strangers), "cut again", 10)
    lab.sh("node-1", "nft delete table inet others")
    for talk in friends:
        assert talk.asks(3)
        assert talk.answers(3)
    assert silent(strangers, 0.5)


def test_a_policy_that_came_while_the_daemon_was_away_cuts_when_it_is_back(
    lab: LabCluster, begin: Callable[..., list[Talk]]
) -> None:
    strangers, friends = begin("stranger"), begin("friend")
    former = lab.node("node-1").daemon.pid
    os.kill(former, signal.SIGKILL)
    policy(lab, "policy", **allow("friend"))
    lab.wait(lambda: lab.node("node-1").daemon.pid not in {0, former}, "another daemon", 20)
    lab.wait(lambda: silent(strangers, 0.1), "cut", 20)
    for talk in friends:
        assert talk.asks()
        assert talk.answers()


def test_the_node_and_the_pod_itself_are_never_cut(lab: LabCluster) -> None:
    net = lab.sandbox("server").descriptor
    talks = []
    for address in lab.addresses("server"):
        for source in (None, net):
            (listener,) = sockets_in(net, [Bind("tcp", address, PORT)])
            version = ip_address(address).version
            if source is None:
                node = os.open(f"/proc/{lab.node('node-1').daemon.pid}/ns/net", os.O_RDONLY)
                caller = client_socket(node, version, "tcp")
                os.close(node)
            else:
                caller = client_socket(source, version, "tcp")
            listener.settimeout(5)
            caller.settimeout(5)
            caller.connect((address, PORT))
            called = listener.accept()[0]
            listener.close()
            for each in (caller, called):
                each.settimeout(0)
            talks.append((caller, called))
    policy(lab, "policy", policyTypes=["Ingress", "Egress"])
    time.sleep(CUT_SECONDS)
    try:
        for caller, called in talks:
            assert _arrives(caller, called, 1)
            assert _arrives(called, caller, 1)
    finally:
        for caller, called in talks:
            caller.close()
            called.close()
