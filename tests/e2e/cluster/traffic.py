"""Traffic of the tests: requests from pods, nodes and the outside; pings and streams that go on meanwhile."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.cluster.processes import Program, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.cluster.cluster import Cluster, Pod
    from tests.e2e.cluster.node import Node

FAMILIES = ["v4", "v6"]
# Debian's static busybox crashes with the -T of its wget.
FETCH = ("timeout", "5", "wget", "-q", "-O", "-")
STREAM = Path(__file__).with_name("stream.py")
STREAM_PORT = 8099


def url(address: str, path: str = "/cgi-bin/address", port: int = 8080) -> str:
    return f"http://[{address}]:{port}{path}" if ":" in address else f"http://{address}:{port}{path}"


def plain(address: str) -> str:
    """The address as busybox tells it, without brackets, port and the IPv4-mapped form."""
    address = address.strip().removeprefix("[").split("]")[0]
    return address.removeprefix("::ffff:")


def seen_from_pod(cluster: Cluster, pod: Pod, target: str) -> str:
    """The sender's address as the target of a request from a pod sees it."""
    answer = cluster.api.execute(pod.name, *FETCH, target)
    assert answer.exit_code == 0, f"{pod.name} ({pod.node}) to {target}: {answer.messages}"
    return plain(answer.output)


def seen_from_node(node: Node, target: str) -> str:
    """The same for a process of a node."""
    return plain(node.run("/bin/busybox", *FETCH, target))


def seen_from_outside(target: str, timeout: float = 5) -> str:
    """The same for a client beyond the nodes, where the tests themselves are."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(target, timeout=timeout) as response:
        return plain(response.read().decode())


@contextlib.contextmanager
def outside_server(address: str) -> Iterator[list[str]]:
    """Accepts connections behind the nodes' gateway, and lists where they came from."""
    seen: list[str] = []
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 8080), family=family) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, peer = server.accept()
                    with connection:
                        seen.append(peer[0])
                        connection.recv(65536)
                        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield seen
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextlib.contextmanager
def pinging(cluster: Cluster, pod: Pod, targets: list[str]) -> Iterator[None]:
    """Pings from within a pod, ten times a second, for as long as the body runs; not one may be lost."""
    pings = []
    for target in targets:
        log = cluster.nodes[pod.node].directory / f"ping-{pod.name}-{target.replace(':', '-')}.log"
        log.unlink(missing_ok=True)
        command = cluster.in_network_of(pod, "ping", "-n", "-i", "0.1", "-W", "2", target)
        pings.append(Program("ping", command, log, nested=True))
    for ping in pings:
        ping.start()
    wait_for("the first answers", lambda: all("time=" in ping.tail() for ping in pings), timeout=10)
    try:
        yield
    finally:
        time.sleep(0.5)
        for ping in pings:
            ping.stop(signal.SIGINT)  # it prints its figures
    for ping in pings:
        figures = re.search(r"(\d+) packets transmitted, (\d+) (?:packets )?received", ping.tail())
        assert figures, ping.tail()
        assert int(figures[1]) - int(figures[2]) <= 1, ping.tail()  # the last one may have been under way


@contextlib.contextmanager
def streaming(cluster: Cluster, client: Pod, server: Pod) -> Iterator[None]:
    """A TCP connection of each family, with bytes going both ways all the time; none may break or stall.

    The programs run in the pods' networks only: the pods' image has nothing that would check what comes back.
    """
    directory = cluster.nodes[client.node].directory

    def program(name: str, pod: Pod, *arguments: str) -> Program:
        log = directory / f"{name}-{client.name}-{server.name}.log"
        log.unlink(missing_ok=True)
        command = cluster.in_network_of(pod, sys.executable, str(STREAM), *arguments)
        return Program(name, command, log, nested=True)

    echo = program("echo", server, "serve", str(STREAM_PORT))
    streams = [
        program(f"stream-{number}", client, "talk", address, str(STREAM_PORT))
        for number, address in enumerate(server.addresses)
    ]
    with contextlib.ExitStack() as cleaning:
        echo.start()
        cleaning.callback(echo.kill)
        wait_for("the echo server", lambda: "serving" in echo.tail(), timeout=10)
        for stream in streams:
            stream.start()
            cleaning.callback(stream.kill)
        wait_for("the streams", lambda: all("talking" in each.tail() for each in streams), timeout=10)
        yield
        for stream in streams:
            assert stream.running, f"a stream broke: {stream.tail()}"
            stream.stop(signal.SIGINT)
            figures = json.loads(stream.tail(1))
            print(f"{client.name} to {server.name}: {figures}")
            assert figures["exchanges"] > 10, figures
            assert figures["longest"] < 2, f"a stream stalled: {figures}"
