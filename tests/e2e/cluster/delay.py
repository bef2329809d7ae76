"""How long a write to the API takes to reach new connections of a node, with any number of other Services.

Two servers in pods, a Service with an EndpointSlice by hand, and a client on a node that connects all the
time (cluster/probe.py). Each round adds the Service, moves its endpoint to the other pod, and deletes the
Service.
"""

from __future__ import annotations

import ipaddress
import signal
import statistics
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from tests.e2e.cluster import probe
from tests.e2e.cluster.processes import Program, wait_for
from tests.e2e.cluster.services import PORT, SERVICES, SLICES, endpoint_slice, service
from tests.e2e.cluster.writes import MERGE, Writer, write_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.cluster.api import Api, Object
    from tests.e2e.cluster.cluster import Cluster, Pod
    from tests.e2e.cluster.node import Node

CLUSTER_IP = "10.96.200.1"
SERVER_PORT = 8097
NAME = "measured"
NOBODY = ("silence", "refused")
SETTLED_SECONDS = 0.15
"""An outcome that stays for so long was no hiccup."""
ENDPOINTS = 5
FIRST_ENDPOINT = ipaddress.IPv4Address("198.18.0.1")


@dataclass(slots=True)
class Delays:
    """Seconds from the sending of a write to the first new connection that goes by it."""

    added: list[float] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)
    deleted: list[float] = field(default_factory=list)

    @property
    def kinds(self) -> dict[str, list[float]]:
        return {"Service added": self.added, "endpoint moved": self.moved, "Service deleted": self.deleted}

    def medians(self) -> dict[str, float]:
        return {kind: statistics.median(values) for kind, values in self.kinds.items()}

    def lines(self) -> Iterator[str]:
        """A table for people, in milliseconds."""
        yield f"{'':18}{'median':>9}{'p90':>9}{'most':>9}  ms, of {len(self.added)} rounds"
        for kind, values in self.kinds.items():
            ordered = sorted(values)
            shown = (statistics.median(ordered), ordered[int(len(ordered) * 0.9)], ordered[-1])
            yield f"{kind:18}" + "".join(f"{1000 * value:9.1f}" for value in shown)


@dataclass(slots=True)
class Course:
    """The Service and who follows it."""

    pods: dict[str, Pod]
    follower: Program
    writer: Writer

    def rounds(self, count: int) -> Delays:
        delays = Delays()
        for _ in range(count):
            self.round(delays)
        return delays

    def round(self, delays: Delays) -> None:
        """Adds, moves, deletes; afterwards all is as before."""
        first, second = self.pods
        delays.added.append(self.add())
        moved = self._endpoints(second)
        delays.moved.append(self._after((second,), "PATCH", f"{SLICES}/{NAME}", moved, MERGE))
        delays.deleted.append(self.remove())
        self.writer.write("PATCH", f"{SLICES}/{NAME}", self._endpoints(first), MERGE)

    def add(self) -> float:
        """Adds the Service; returns the delay in seconds."""
        first = next(iter(self.pods))
        spec = {"clusterIP": CLUSTER_IP, "ipFamilyPolicy": "SingleStack"}
        return self._after((first,), "POST", SERVICES, service(NAME, **spec))

    def remove(self) -> float:
        """Deletes the Service; returns the delay in seconds."""
        return self._after(NOBODY, "DELETE", f"{SERVICES}/{NAME}")

    def _endpoints(self, name: str) -> dict[str, object]:
        return {"endpoints": [{"addresses": [self.pods[name].v4]}]}

    def _after(self, outcomes: tuple[str, ...], method: str, path: str, *write: object) -> float:
        began = time.monotonic()
        self.writer.write(method, path, *write)  # type: ignore[arg-type]

        def arrived() -> float:
            at, outcome = self.follower.tail(1).split()
            since = float(at)
            settled = outcome in outcomes and since > began and time.monotonic() - since > SETTLED_SECONDS
            return since if settled else 0.0

        arrival = wait_for(f"{' or '.join(outcomes)}", arrived, pause=0.02, state=self.follower.tail)
        return arrival - began


@contextmanager
def course(cluster: Cluster, node: Node) -> Iterator[Course]:
    """Prepares all that a round needs: a server on each node of the cluster, and a client on one of them."""
    with ExitStack() as cleaning:
        names = {f"delay-{place}": place for place in cluster.nodes}
        pods = {name: cluster.create_pod(name, place, serve=False) for name, place in names.items()}
        cleaning.callback(cluster.delete_pods, *pods)
        for name, pod in pods.items():
            serve = (probe.__file__, "serve", str(SERVER_PORT), name)
            command = cluster.in_network_of(pod, sys.executable, *serve)
            server = Program(name, command, node.directory / f"{name}.log", nested=True)
            server.start()
            cleaning.callback(server.kill)
            wait_for("the server", partial(server.says, "serving"), timeout=10)
        writer = Writer(cluster.api)
        cleaning.callback(writer.close)
        first = next(iter(pods.values()))
        writer.write("POST", SLICES, endpoint_slice(NAME, NAME, [first.v4], SERVER_PORT))
        cleaning.callback(cluster.api.delete, f"{SLICES}/{NAME}")
        cleaning.callback(cluster.api.delete, f"{SERVICES}/{NAME}")
        follower = node.program("follower", sys.executable, probe.__file__, "follow", CLUSTER_IP, str(PORT))
        follower.log.unlink(missing_ok=True)
        follower.start()
        cleaning.callback(follower.stop, signal.SIGINT)
        wait_for("the client", lambda: follower.tail().endswith(NOBODY), timeout=10)
        yield Course(pods, follower, writer)


def create_many(api: Api, numbers: range) -> None:
    """Creates Services of these numbers with five endpoints each, at which nobody answers, in a burst."""

    def objects() -> Iterator[tuple[str, Object]]:
        for number in numbers:
            name, first = _name(number), FIRST_ENDPOINT + ENDPOINTS * number
            endpoints = [str(first + index) for index in range(ENDPOINTS)]
            yield SLICES, endpoint_slice(name, name, endpoints, SERVER_PORT)
            yield SERVICES, service(name, ipFamilyPolicy="SingleStack")

    write_all(api, "POST", objects())


def delete_many(api: Api, numbers: range) -> None:
    """Deletes them again."""
    paths = (f"{place}/{_name(number)}" for number in numbers for place in (SERVICES, SLICES))
    write_all(api, "DELETE", ((path, None) for path in paths))


def _name(number: int) -> str:
    return f"many-{number:05}"


def resident_mebibytes(node: Node) -> float:
    """The memory of the node's agent, VmRSS."""
    status = node.path(f"/proc/{node.weft.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024
