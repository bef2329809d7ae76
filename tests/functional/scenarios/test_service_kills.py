"""The daemon is killed in the middle of a churn of Services: nobody notices, only differences are written."""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from datapath.netlink.nfnetlink import nft_kind
from datapath.netlink.transport import NETLINK_NETFILTER, Socket
from datapath.nft import encode
from datapath.nft.connection import Nft
from datapath.nft.frontends import SERVICES, SIZE_MASK, TABLE
from tests.functional.lab_cluster import NAMESPACE
from tests.functional.service_load import Connections, Conversation, add_backend, clients, going, offered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from lab.api.resources import Object
    from tests.functional.lab_cluster import LabCluster

pytestmark = pytest.mark.root

NODE = "node-1"
NAME = "steady"
CLIENTS = ("pod-1a", "node-1")
CROWD = 300
CALM = 100
"""So many of the crowd, the first ones, never change."""
BURST = 150
"""Changes in a row: more than one batch."""
MOST_ENDPOINTS = 4
MOMENTS = 0.1
"""The daemon is killed at most so many seconds after a burst, of which it sees nothing the first time."""
RATE = 20
SETTLED = 1.0
_TABLES = frozenset(
    nft_kind(kind) for kind in (encode.NEWTABLE, encode.DELTABLE, encode.NEWSET, encode.DELSET)
)
_ELEMENTS = frozenset(nft_kind(kind) for kind in (encode.NEWSETELEM, encode.DELSETELEM))
_NFNLGRP_NFTABLES = 7


@dataclass(slots=True)
class Crowd:
    """Services with hand-made slices, whose endpoints are nobody."""

    lab: LabCluster
    chance: random.Random
    there: dict[int, bytes] = field(default_factory=dict)
    """Number → packed ClusterIP."""
    sizes: dict[bytes, int] = field(default_factory=dict)
    """Packed ClusterIP → number of endpoints."""

    def fill(self) -> None:
        """Make all of them."""
        self._each(self._create, range(CROWD))

    def change(self, count: int) -> None:
        """Change so many: other endpoints, gone, or there again."""
        self._each(lambda _: self._change(), range(count))

    def clear(self) -> None:
        """Delete all that there are."""
        self._each(self._delete, list(self.there))

    def _each(self, work: Callable[[int], None], numbers: Iterable[int]) -> None:
        """Do it for all in one go on the lab's loop."""

        def do() -> None:
            for number in numbers:
                work(number)

        self.lab.call(do)

    def calm(self) -> list[bytes]:
        """The packed ClusterIPs of those that never change."""
        return [self.there[number] for number in range(CALM)]

    def _change(self) -> None:
        number = self.chance.randrange(CALM, CROWD)
        if number not in self.there:
            self._create(number)
        elif self.chance.random() < 0.2:
            self._delete(number)
        else:
            storage = self.lab.cluster.storage
            slices = storage.catalogue.named("endpointslices")
            item = self._slice(number)
            storage.update(slices, NAMESPACE, item["metadata"]["name"], lambda _: item)

    def _create(self, number: int) -> None:
        storage = self.lab.cluster.storage
        services = storage.catalogue.named("services")
        spec = {"ports": [{"protocol": "TCP", "port": 80}]}
        service = storage.create(services, NAMESPACE, {"metadata": {"name": f"crowd-{number}"}, "spec": spec})
        self.there[number] = ip_address(service["spec"]["clusterIP"]).packed
        storage.create(storage.catalogue.named("endpointslices"), NAMESPACE, self._slice(number))

    def _delete(self, number: int) -> None:
        storage = self.lab.cluster.storage
        for plural in ("services", "endpointslices"):
            storage.delete(storage.catalogue.named(plural), NAMESPACE, f"crowd-{number}")
        del self.sizes[self.there.pop(number)]

    def _slice(self, number: int) -> Object:
        size = self.chance.randint(1, MOST_ENDPOINTS)
        self.sizes[self.there[number]] = size
        name = f"crowd-{number}"
        return {
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": [f"198.51.100.{last}"], "conditions": {"ready": True}}
                for last in self.chance.sample(range(1, 255), size)
            ],
            "ports": [{"name": "", "protocol": "TCP", "port": 8080}],
        }


class Writes:
    """What nftables of a node tells of its changes, as long as the context lasts."""

    def __init__(self, net: int, calm: Sequence[bytes]) -> None:
        self._net = net
        self._calm = calm
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="writes")
        self.elements = 0
        """Messages about elements."""
        self.needless: list[str] = []
        """Messages about elements that nobody changed, and about whole tables and sets."""

    def __enter__(self) -> Writes:
        self._socket = Socket(NETLINK_NETFILTER, namespace=self._net, groups=(_NFNLGRP_NFTABLES,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while True:
            over = self._ends.is_set()
            while found := self._socket.receive():
                for each in found:
                    self._note(each.kind, each.payload)
            if over:
                return
            time.sleep(0.002)

    def _note(self, kind: int, payload: bytes) -> None:
        if kind in _TABLES:
            self.needless.append(f"message {kind & 0xFF} about a table or set")
        elif kind in _ELEMENTS:
            self.elements += 1
            self.needless += [
                socket.inet_ntop(_FAMILIES[len(key)], key) for key in self._calm if key in payload
            ]


_FAMILIES = {4: socket.AF_INET, 16: socket.AF_INET6}


def frontends(nft: Nft) -> dict[bytes, int]:
    """The IPv4 addresses of frontends in the kernel, and how many backends each has."""
    found = nft.elements((socket.AF_INET, TABLE, SERVICES))
    return {key[:4]: int.from_bytes(word, sys.byteorder) & SIZE_MASK for key, word in found.items()}


def generation(lab: LabCluster) -> int:
    with Nft(namespace=lab.node(NODE).namespaces.net) as nft:
        return nft.generation()


def restart(lab: LabCluster) -> None:
    """Start the daemon and wait until it is ready and the kernel as desired."""
    lab.run(lab.node(NODE).start_daemon())
    lab.wait(lambda: lab.weftctl(NODE, "status").get("ready"), "ready again", 30)
    lab.wait(lambda: not lab.differences(), "the kernel is as desired", 10)


@pytest.fixture
def crowd(lab: LabCluster) -> Iterator[Crowd]:
    crowd = Crowd(lab, random.Random(5))
    with Nft(namespace=lab.node(NODE).namespaces.net) as nft:
        before = frontends(nft)
        crowd.fill()
        lab.wait(lambda: frontends(nft) == before | crowd.sizes, "the crowd is in the kernel")
        yield crowd
        crowd.clear()
        lab.wait(lambda: frontends(nft) == before, "the crowd is out of the kernel")


@pytest.mark.parametrize("rounds", [5, pytest.param(50, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
def test_killed_in_a_churn_of_services(lab: LabCluster, crowd: Crowd, rounds: int) -> None:
    node = lab.node(NODE)
    unfinished = 0
    with offered(lab, NAME) as addresses, Nft(namespace=node.namespaces.net) as nft:
        for number in (1, 2):
            add_backend(lab, NAME, f"{NAME}-{number}", f"node-{number}")
        time.sleep(SETTLED)
        asking = clients(lab, CLIENTS, addresses)
        calm = [*crowd.calm(), *(ip_address(each).packed for each in addresses)]
        others = {each: size for each, size in frontends(nft).items() if each not in crowd.sizes}
        talks = [Conversation(client) for client in asking]
        load = Connections(asking, RATE)
        with going(lab, load, *talks), Writes(node.namespaces.net, calm) as writes:
            for number in range(rounds):
                if not number:
                    os.kill(node.daemon.pid, signal.SIGSTOP)
                crowd.change(BURST)
                time.sleep(crowd.chance.uniform(0, MOMENTS))
                lab.run(node.daemon.kill())
                unfinished += frontends(nft) != others | crowd.sizes
                crowd.change(BURST // 10)
                said = sum(talk.exchanged for talk in talks)
                restart(lab)
                lab.wait(lambda: frontends(nft) == others | crowd.sizes, f"round {number}: all is there")
                assert sum(talk.exchanged for talk in talks) > said, f"round {number}"
                assert writes.needless == [], f"round {number}"
        assert [talk.broken for talk in talks] == [""] * len(talks)
        assert load.failed == []
        assert load.served
    assert writes.elements > 0
    assert unfinished, "each time all was in the kernel already: the moments show nothing"


def test_nothing_is_written_after_a_kill_without_changes(lab: LabCluster, crowd: Crowd) -> None:
    before = generation(lab)
    with Writes(lab.node(NODE).namespaces.net, crowd.calm()) as writes:
        lab.run(lab.node(NODE).daemon.kill())
        restart(lab)
    assert (writes.elements, writes.needless, generation(lab)) == (0, [], before)
